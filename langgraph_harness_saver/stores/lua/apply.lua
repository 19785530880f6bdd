-- Applies a revision, if the family is still as it was read. ARGV: now, ttl, expires, stamp, thread, the stamp that was
-- read, whether this is a sign of life, whether the thread is to have expired, then the following, each after how
-- many of its items there are: threads that end; places of rows to delete; places and rows; places whose writes are replaced;
-- members of WRITES; ids and bytes of parts; ids of parts to drop; places with ids of events, and the events; threads, and
-- their records as branches or ''. Returns 1 if it has been done, 0 if the family is another, or one of those in common.lua.
local now, ttl, expires, stamp, thread, read_stamp, renews, if_expired = unpack(ARGV, 1, 8)
local meta = call('HMGET', META, 'e' .. thread, 'f', 'n', whereabouts(thread), 'v')
local expiry, fenced, there = meta[1], meta[2] and tonumber(meta[2]) > milliseconds(), meta[5] or ''
if there == stamp then
  -- It has been sent before, and the answer was lost; with it, whether there was a fence.
  return done(1, true)
elseif elsewhere(thread, meta[4]) then
  return elsewhere(thread, meta[4])
elseif there ~= read_stamp or if_expired == '1' and not is_past(expiry, now) then
  return 0
elseif not meta[3] and is_past(expiry, now) then
  return EXPIRED
end
local at = 9
local function each(width, work)
  local count = tonumber(ARGV[at])
  for i = at + 1, at + width * count, width do
    work(ARGV[i], ARGV[i + 1])
  end
  at = at + 1 + width * count
end

local function remove_writes(place)
  call('ZREMRANGEBYLEX', WRITES, '[' .. place, '(' .. past(place))
end

local is_new = not has_any(thread)
local ended = {}
each(1, function(name)
  ended[#ended + 1] = name
end)
if ARGV[at] == '0' then
  -- Where memory is short, what only adds is refused here. What deletes isn't: in the end it takes less.
  call('HSET', META, 'v', stamp)
end
local gone, bereft = {}, {}
local function leaves(place)
  if member_at(LIVE, place) then
    gone[#gone + 1] = place
  end
end
each(1, function(place)
  leaves(place)
  remove_row(place)
  remove_writes(place)
  bereft[sub(place, 1, thread_end(place))] = true
end)
each(2, function(place, row)
  if bit.band(byte(row, 9), 3) == 0 then
    remove_row(place)
    add_live(place, row)
  else
    leaves(place)
    remove_row(place)
    call('ZADD', REST, 0, place .. row)
  end
end)
for _, place in ipairs(gone) do
  remove_events_at(place)
end
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
for _, name in ipairs(ended) do
  remove_events(name)
end
add_events(at + 1, at + 2 * ARGV[at])
at = at + 1 + 2 * ARGV[at]
local branches = tonumber(meta[3] or 0)
each(2, function(branch, record)
  local field = 'b' .. branch
  branches = branches - call('HDEL', META, field)
  if record ~= '' then
    call('HSET', META, field, record)
    branches = branches + 1
  else
    -- Whatever is left of it couldn't be found any more.
    drop(branch)
  end
end)
for _, name in ipairs(ended) do
  call('HDEL', META, 'e' .. name)
  local known = {}
  for _, member in ipairs(all_of(WRITES, name)) do
    local place = sub(member, 1, place_end(member))
    if not (known[place] or member_at(LIVE, place) or member_at(REST, place)) then
      remove_writes(place)
    end
    known[place] = true
  end
end
for _, field in ipairs(call('HKEYS', META)) do
  if byte(field) == 116 and not member_at(LIVE, call('HGET', META, field)) then
    call('HDEL', META, field)
  end
end
for each_thread in pairs(bereft) do
  if not is_there(each_thread) then
    remove_events(each_thread)
  end
end
local lease = 0
if branches == 0 and is_bare() then
  clear()
else
  call('HDEL', META, 'l', 'n')
  call('HSET', META, 'v', stamp)
  if branches > 0 then
    call('HSET', META, 'n', branches)
  else
    call('HDEL', META, 'P')
  end
  if renews == '1' or is_new and has_any(thread) then
    lease = renew(thread, ttl, expires, expiry, branches > 0)
  else
    keep_time()
  end
end
return done(1 + lease, fenced)
