-- A family's keys, all in one slot. Those of sorted sets are ordered by their members' bytes; redis_rows.py says what
-- these look like.
--   META    a hash: v, the stamp of the latest write; e.., until when a thread lives; f, until when there is a fence, see
--           absent.lua; l, until when a revision keeps others from writing
--   LIVE    live checkpoints: place, row
--   REST    hidden rows and anchors: the same
--   SPACES  live checkpoints of other namespaces than the root's: thread, id, namespace backwards
--   WRITES  writes: place, task, call, number of a regular one, the write
--   PARTS   a hash of parts
-- Strings are never compared by <, which goes by the server's locale.
local META, LIVE, REST, SPACES, WRITES, PARTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local call, byte, sub, find, char = redis.call, string.byte, string.sub, string.find, string.char
local FENCE_MS = 10000
-- What writing scripts return where the family is locked, or the thread has expired and is to be dropped first; what they
-- add where there is a fence.
local LOCKED, EXPIRED, FENCED = -1, -2, 8

-- Where an id that begins at `at` ends; a place; a thread.
local function id_end(s, at)
  if byte(s, at) == 1 then
    if byte(s, at + 17) == 0 then
      return at + 17
    end
    return find(s, '\0', at + 18, true)
  end
  return find(s, '\0', at + 1, true)
end

local function thread_end(s)
  return byte(s, 1) == 0 and 1 or id_end(s, 2)
end

local function line_end(s)
  return find(s, '\0', thread_end(s) + 1, true)
end

local function place_end(s)
  return id_end(s, line_end(s) + 1)
end

-- What sorts right after everything that begins so.
local function past(prefix)
  return sub(prefix, 1, -2) .. char(byte(prefix, -1) + 1)
end

local function all_of(key, prefix)
  return call('ZRANGEBYLEX', key, '[' .. prefix, '(' .. past(prefix))
end

local function member_at(key, place)
  return call('ZRANGEBYLEX', key, '[' .. place, '(' .. past(place), 'LIMIT', 0, 1)[1]
end

local function milliseconds()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_past(expiry, now)
  return expiry and tonumber(expiry) <= tonumber(now)
end

local function is_expired(thread, now)
  return is_past(call('HGET', META, 'e' .. thread), now)
end

local function backwards(text)
  return (string.gsub(text, '.', function(c)
    return char(255 - byte(c))
  end))
end

-- Where a live row stands in SPACES; nil for one of a root namespace.
local function space_of(place)
  local ns_at, ns_end = thread_end(place) + 1, line_end(place)
  if ns_at < ns_end then
    return sub(place, 1, ns_at - 1) .. sub(place, ns_end + 1) .. backwards(sub(place, ns_at, ns_end))
  end
end

local function add_live(place, row)
  call('ZADD', LIVE, 0, place .. row)
  local space = space_of(place)
  if space then
    call('ZADD', SPACES, 0, space)
  end
end

local function is_empty()
  return call('EXISTS', LIVE, REST, WRITES) == 0
end

-- Removes all of the family but a fence.
local function clear()
  local fence = call('HGET', META, 'f')
  -- Frees the memory aside, however much it is.
  call('UNLINK', unpack(KEYS))
  if fence then
    call('HSET', META, 'f', fence)
    call('PEXPIREAT', META, fence)
  end
end

-- Removes all of a thread. Parts belong to the family, and go with its last thread.
local function drop(thread)
  local first, last = '[' .. thread, '(' .. past(thread)
  local others = false
  for _, key in ipairs({LIVE, REST, WRITES}) do
    others = others or call('ZLEXCOUNT', key, first, last) < call('ZCARD', key)
  end
  if others then
    for _, key in ipairs({LIVE, REST, SPACES, WRITES}) do
      call('ZREMRANGEBYLEX', key, first, last)
    end
    call('HDEL', META, 'e' .. thread)
  else
    clear()
  end
end

-- Gives all keys of the family one time to go, so that none outlives another. Without a TTL of the caller's those that are
-- new have what the others have left.
local function renew(thread, ttl, expires, expiry)
  local left
  if ttl ~= '' then
    call('HSET', META, 'e' .. thread, expires)
    left = tonumber(ttl)
  elseif expiry then
    left = call('PTTL', META)
  else
    call('PERSIST', META)
    return
  end
  if left > 0 then
    local at = milliseconds() + left
    for _, key in ipairs(KEYS) do
      call('PEXPIREAT', key, at)
    end
  end
end

-- Begins a write to a thread: returns its expiry, and whether there is a fence; or nil, nil, and why it can't be written to.
local function enter(thread, now)
  local meta = call('HMGET', META, 'e' .. thread, 'f', 'l')
  local fenced, locked = false, false
  if meta[2] or meta[3] then
    local at = milliseconds()
    fenced = meta[2] and tonumber(meta[2]) > at
    locked = meta[3] and tonumber(meta[3]) > at
    if not (fenced or locked) then
      call('HDEL', META, 'f', 'l')
    end
  end
  if locked then
    return nil, nil, LOCKED
  elseif is_past(meta[1], now) then
    return nil, nil, EXPIRED
  end
  return meta[1], fenced
end

-- What a script returns that has stored live rows.
local function done(result, fenced)
  return fenced and result + FENCED or result
end

local function add_parts(from)
  for i = from, #ARGV, 2 do
    call('HSETNX', PARTS, ARGV[i], ARGV[i + 1])
  end
end
