-- Adds live checkpoints, all or none. ARGV: now, ttl, expires, stamp, a thread that is to be here, the branch or '', its
-- record, how much of that is its source and name, for how long its pointer lives or ''; then the following, each after how
-- many of its items there are: lines and heads, as in put.lua; places and revs of bases; places and rows; places with tasks
-- and calls, and writes; ids and bytes of parts.
-- Returns what `PutResult` says, or 3, the number of a line and its head, or 4 and the thread that has the branch's name, or
-- one of those in common.lua.
local now, ttl, expires, stamp, thread, branch, record, named, lease = unpack(ARGV, 1, 9)
local lists, at = {}, 10
for i = 1, 5 do
  lists[i] = {at + 1, at + 2 * ARGV[at]}
  at = lists[i][2] + 1
end
-- Goes through a list until there is something to return.
local function each(list, work)
  for i = lists[list][1], lists[list][2], 2 do
    local result = work(ARGV[i], ARGV[i + 1], (i - lists[list][1]) / 2)
    if result ~= nil then
      return result
    end
  end
end

local _, fenced, branches, refused = enter(thread, now)
if refused == EXPIRED or refused == ENTANGLED then
  -- This says the same as bases of it which aren't there, unless it is written to.
  fenced, branches = true, call('HGET', META, 'n')
elseif refused then
  return refused
end
local threads = {}
local is_missing = each(3, function(place, row)
  threads[sub(place, 1, thread_end(place))] = true
  return not stands(place, sub(row, 1, 8), now) or nil
end)
if not is_missing then
  return 0
end
each(3, function(place)
  threads[sub(place, 1, thread_end(place))] = true
end)
for each_thread in pairs(threads) do
  if each_thread ~= branch then
    local _, _, _, why = enter(each_thread, now)
    if why then
      return why
    end
  end
end
local moved = each(1, function(line, wanted, number)
  local head = head_of(line)
  return head ~= wanted and {3, number, head} or nil
end)
if moved then
  return moved
end
if branch ~= '' then
  if call('HGET', META, 'b' .. branch) or has_any(branch) then
    return {4, branch}
  end
  for _, field in ipairs(branches and call('HKEYS', META) or {}) do
    if byte(field) == 98 and sub(call('HGET', META, field), 1, named) == sub(record, 1, named) then
      return {4, sub(field, 2)}
    end
  end
end
local is_gone = each(2, function(place, rev)
  return not stands(place, rev, now) or nil
end)
if is_gone then
  return 1
end
-- Nothing is refused from here on. Where memory is short, the first command is.
call('HSET', META, 'v', stamp)
if branch ~= '' then
  branches = (branches or 0) + 1
  local until_when = lease ~= '' and milliseconds() + lease
  local others = call('HGET', META, 'P')
  call('HSET', META, 'b' .. branch, record, 'n', branches)
  if until_when and not (others and tonumber(others) < until_when) then
    call('HSET', META, 'P', string.format('%.0f', until_when))
  end
end
each(3, function(place, row)
  remove_row(place)
  add_live(place, row)
end)
each(4, add_write)
each(5, function(part, data)
  call('HSETNX', PARTS, part, data)
end)
local result = 0
for each_thread in pairs(threads) do
  local expiry = call('HGET', META, 'e' .. each_thread)
  result = math.max(result, renew(each_thread, ttl, expires, expiry, branches))
end
return done(result, fenced)
