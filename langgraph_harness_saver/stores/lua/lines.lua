-- Returns the ids of threads' live root checkpoints, newest first: for each thread ids one after the other, or what common.lua
-- says of one that is elsewhere. ARGV: now, of how many newest of each or '', then threads.
local now, left = ARGV[1], tonumber(ARGV[2])

local function ids_of(thread)
  local meta = call('HMGET', META, 'e' .. thread, whereabouts(thread))
  if elsewhere(thread, meta[2]) then
    return elsewhere(thread, meta[2])
  elseif is_past(meta[1], now) then
    return ''
  end
  local line, ids = thread .. '\0', {}
  local upper, lower = '(' .. past(line), '[' .. line
  repeat
    -- In pieces: all of a long line at once would be copied at once.
    local rows = call('ZREVRANGEBYLEX', LIVE, upper, lower, 'LIMIT', 0, math.min(500, left and left - #ids or 500))
    for _, row in ipairs(rows) do
      local to = id_end(row, #line + 1)
      ids[#ids + 1] = sub(row, #line + 1, to)
      upper = '(' .. sub(row, 1, to)
    end
  until #rows == 0 or #ids == left
  return table.concat(ids)
end

local found = {}
for i = 3, #ARGV do
  found[#found + 1] = ids_of(ARGV[i])
end
return found
