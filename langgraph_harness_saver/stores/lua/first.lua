-- Returns the first live root checkpoints of a thread, and the writes of each. ARGV: now, thread, how many.
local now, thread, size = unpack(ARGV)
local meta = call('HMGET', META, 'e' .. thread, whereabouts(thread))
if elsewhere(thread, meta[2]) then
  return elsewhere(thread, meta[2])
elseif is_past(meta[1], now) then
  return {}
end
local found = {}
local line = thread .. '\0'
for _, row in ipairs(call('ZRANGEBYLEX', LIVE, '[' .. line, '(' .. past(line), 'LIMIT', 0, size)) do
  found[#found + 1] = row
  found[#found + 1] = all_of(WRITES, sub(row, 1, place_end(row)))
end
return found
