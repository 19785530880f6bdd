-- Applies a revision, if the family is still as it was read. ARGV: now, ttl, expires, stamp, thread, the stamp that was
-- read, whether this is a sign of life, then the following, each after how many of its items there are: places of rows to
-- delete; places and rows; places whose writes are replaced; members of WRITES; ids and bytes of parts; ids of parts to
-- drop. Returns 1 if it has been done, 0 if the family is another, or one of those in common.lua.
local now, ttl, expires, stamp, thread, read_stamp, renews = unpack(ARGV, 1, 7)
local there = call('HGET', META, 'v') or ''
if there == stamp then
  -- It has been sent before, and the answer was lost; with it, whether there was a fence.
  return done(1, true)
elseif there ~= read_stamp then
  return 0
end
local at = 8
local function each(width, work)
  local count = tonumber(ARGV[at])
  for i = at + 1, at + width * count, width do
    work(ARGV[i], ARGV[i + 1])
  end
  at = at + 1 + width * count
end

local function remove(place)
  for _, key in ipairs({LIVE, REST}) do
    call('ZREMRANGEBYLEX', key, '[' .. place, '(' .. past(place))
  end
  local space = space_of(place)
  if space then
    call('ZREM', SPACES, space)
  end
end

local function remove_writes(place)
  call('ZREMRANGEBYLEX', WRITES, '[' .. place, '(' .. past(place))
end

local meta = call('HMGET', META, 'e' .. thread, 'f')
local expiry, fenced = meta[1], meta[2] and tonumber(meta[2]) > milliseconds()
if is_past(expiry, now) then
  return EXPIRED
end
local is_new = is_empty()
if ARGV[at] == '0' then
  -- Where memory is short, what only adds is refused here. What deletes isn't: in the end it takes less.
  call('HSET', META, 'v', stamp)
end
each(1, function(place)
  remove(place)
  remove_writes(place)
end)
each(2, function(place, row)
  remove(place)
  if bit.band(byte(row, 9), 3) == 0 then
    add_live(place, row)
  else
    call('ZADD', REST, 0, place .. row)
  end
end)
each(1, remove_writes)
each(1, function(member)
  call('ZADD', WRITES, 0, member)
end)
each(2, function(part, data)
  call('HSETNX', PARTS, part, data)
end)
each(1, function(part)
  call('HDEL', PARTS, part)
end)
if is_empty() then
  clear()
else
  call('HDEL', META, 'l')
  call('HSET', META, 'v', stamp)
  local touches = renews == '1' or is_new
  renew(thread, touches and ttl or '', expires, expiry)
end
return done(1, fenced)
