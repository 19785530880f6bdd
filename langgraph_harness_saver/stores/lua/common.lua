-- A family's keys, all in one slot. Those of sorted sets are ordered by their members' bytes; redis_rows.py says what
-- these look like.
--   META    a hash: v, the stamp of the latest write; e.., until when a thread lives; f, until when there is a fence, see
--           absent.lua; l, until when a revision keeps others from writing; b.., the record of a branch; n, how many of
--           these there are; t.., a thread's tag, with the place that it names; P, until when all branches' pointers live
--           at least, unless they live for ever. Of a branch's own: p, its family; see point.lua
--   LIVE    live checkpoints: place, row
--   REST    hidden rows and anchors: the same
--   SPACES  live checkpoints of other namespaces than the root's: thread, id, namespace backwards
--   WRITES  writes: place, task, call, number of a regular one, the write
--   PARTS   a hash of parts
--   EVENTS  events: place of a root checkpoint, id of the event and 00, length of its head, head, body
-- Strings are never compared by <, which goes by the server's locale.
local META, LIVE, REST, SPACES, WRITES, PARTS, EVENTS = unpack(KEYS)
local call, byte, sub, find, char = redis.call, string.byte, string.sub, string.find, string.char
local FENCE_MS = 10000
-- What writing scripts return where the family is locked; the thread has expired and is to be dropped first; or can't be, as
-- it has branches or is one. What they add where there is a fence, or pointers are to live longer.
local LOCKED, EXPIRED, ENTANGLED, FENCED, LEASED = -1, -2, -3, 8, 16

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

local function has_flag(flags, flag)
  return bit.band(flags, flag) ~= 0
end

-- Where what follows an id, or nothing, begins.
local function skip_id(s, at, is_there)
  return is_there and id_end(s, at) + 1 or at
end

-- Where what follows the reach and the parts begins: the length of the metadata.
local function metadata_at(row, at)
  local spans = struct.unpack('>H', row, at)
  at = at + 2
  for _ = 1, spans do
    local kind = byte(row, at)
    at = at + 1
    if kind == 2 then
      at = at + line_end(sub(row, at))
    end
    at = id_end(row, at) + 1
    if kind ~= 0 then
      at = id_end(row, at) + 1
    end
  end
  return at + 2 + 16 * struct.unpack('>H', row, at)
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

local function remove_row(place)
  for _, key in ipairs({LIVE, REST}) do
    call('ZREMRANGEBYLEX', key, '[' .. place, '(' .. past(place))
  end
  local space = space_of(place)
  if space then
    call('ZREM', SPACES, space)
  end
end

-- Whether there is nothing that events could hang on.
local function is_bare()
  return call('EXISTS', LIVE, REST, WRITES) == 0
end

local function is_empty()
  return is_bare() and call('EXISTS', EVENTS) == 0
end

local function is_there(thread)
  return member_at(LIVE, thread) or member_at(REST, thread) or member_at(WRITES, thread)
end

local function has_any(thread)
  return is_there(thread) or member_at(EVENTS, thread)
end

-- Adds events that aren't there yet: places with their ids, and what stands there, in turn.
local function add_events(from, to)
  for i = from, to, 2 do
    if not member_at(EVENTS, ARGV[i]) then
      call('ZADD', EVENTS, 0, ARGV[i] .. ARGV[i + 1])
    end
  end
end

local function remove_events(thread)
  call('ZREMRANGEBYLEX', EVENTS, '[' .. thread, '(' .. past(thread))
end

-- Removes what goes with a root checkpoint that is live no longer: its events, and those of ids that were never stored, down
-- to the live one before.
local function remove_events_at(place)
  local line = sub(place, 1, line_end(place))
  if #line == thread_end(place) + 1 then
    local before = call('ZREVRANGEBYLEX', LIVE, '(' .. place, '[' .. line, 'LIMIT', 0, 1)[1]
    local lower = before and past(sub(before, 1, place_end(before))) or line
    call('ZREMRANGEBYLEX', EVENTS, '[' .. lower, '(' .. past(place))
  end
end

-- The field of META that tells whether a thread is elsewhere, and the answer to a call then: its family, or '' where it is
-- no branch of this one.
local function whereabouts(thread)
  return thread == '\0' and 'p' or 'b' .. thread
end

local function elsewhere(thread, found)
  if thread == '\0' then
    return found and {'elsewhere', found}
  end
  return not found and {'elsewhere', ''}
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

-- Removes all of a thread, where there are others.
local function drop(thread)
  for _, key in ipairs({LIVE, REST, SPACES, WRITES}) do
    call('ZREMRANGEBYLEX', key, '[' .. thread, '(' .. past(thread))
  end
  remove_events(thread)
  call('HDEL', META, 'e' .. thread)
end

local function expire_all(left)
  local at = milliseconds() + left
  for _, key in ipairs(KEYS) do
    call('PEXPIREAT', key, at)
  end
  return at
end

-- Has keys that are new go with the others.
local function keep_time()
  local left = call('PTTL', META)
  if left > 0 then
    expire_all(left)
  end
end

-- Gives all keys of the family one time to go, so that none outlives another: that of the thread which lives longest.
-- Without a TTL of the caller's those that are new have what the others have left. Returns what is to be added to a reply.
local function renew(thread, ttl, expires, expiry, branches)
  if ttl ~= '' then
    call('HSET', META, 'e' .. thread, expires)
  elseif expiry then
    keep_time()
    return 0
  end
  local left = tonumber(ttl)
  if branches and left then
    local there = call('PTTL', META)
    left = there >= 0 and math.max(left, there) or nil
  end
  local at
  if left then
    at = left > 0 and expire_all(left)
  else
    for _, key in ipairs(branches and KEYS or {META}) do
      call('PERSIST', key)
    end
  end
  local lease = branches and call('HGET', META, 'P')
  -- Long before they go, so that whoever fails to see to it is followed by others.
  return lease and not (at and at + tonumber(ttl) / 2 < tonumber(lease)) and LEASED or 0
end

-- Begins a write to a thread: returns its expiry, whether there is a fence, and how many branches the family has, if any;
-- or nil, nil, nil, and why it can't be written to.
local function enter(thread, now)
  local meta = call('HMGET', META, 'e' .. thread, 'f', 'l', 'n', whereabouts(thread))
  local away = elsewhere(thread, meta[5])
  if away then
    return nil, nil, nil, away
  end
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
    return nil, nil, nil, LOCKED
  elseif is_past(meta[1], now) then
    return nil, nil, nil, meta[4] and ENTANGLED or EXPIRED
  end
  return meta[1], fenced, meta[4]
end

-- What a script returns that has stored live rows.
local function done(result, fenced)
  return fenced and result + FENCED or result
end

-- Adds a write to what stands under a place, task and call.
local function add_write(under, write)
  local there = all_of(WRITES, under)
  if byte(under, -1) == 0 then
    local last, stored = 0, false
    for _, member in ipairs(there) do
      last = struct.unpack('>I4', member, #under + 1)
      stored = stored or sub(member, #under + 5) == write
    end
    if not stored then
      call('ZADD', WRITES, 0, under .. struct.pack('>I4', last + 1) .. write)
    end
  else
    -- Added first: where memory is short, this is refused before anything has changed.
    call('ZADD', WRITES, 0, under .. write)
    for _, member in ipairs(there) do
      if member ~= under .. write then
        call('ZREM', WRITES, member)
      end
    end
  end
end

local function head_of(line)
  local latest = call('ZREVRANGEBYLEX', LIVE, '(' .. past(line), '[' .. line, 'LIMIT', 0, 1)[1]
  return latest and sub(latest, #line + 1, id_end(latest, #line + 1)) or '-'
end

-- Whether a row stands at a place with this rev, in a thread that hasn't expired; of one thread that is known.
local function stands(place, rev, now, sound)
  local found = member_at(LIVE, place) or member_at(REST, place)
  if not found or sub(found, #place + 1, #place + 8) ~= rev then
    return false
  end
  local thread = sub(place, 1, thread_end(place))
  return thread == sound or not is_past(call('HGET', META, 'e' .. thread), now)
end

local function add_parts(from)
  for i = from, #ARGV, 2 do
    call('HSETNX', PARTS, ARGV[i], ARGV[i + 1])
  end
end
