-- Tells whether a live checkpoint is another one's parent. ARGV: now, line, id. Returns 1 or 0.
local now, line, id = unpack(ARGV)
local thread = sub(line, 1, thread_end(line))
local meta = call('HMGET', META, 'e' .. thread, whereabouts(thread))
if elsewhere(thread, meta[2]) then
  return elsewhere(thread, meta[2])
elseif is_past(meta[1], now) then
  return 0
end
local after, upper = '(' .. past(line .. id), '(' .. past(line)
repeat
  local rows = call('ZRANGEBYLEX', LIVE, after, upper, 'LIMIT', 0, 50)
  for _, row in ipairs(rows) do
    local flags_at = id_end(row, #line + 1) + 9
    if bit.band(byte(row, flags_at), 4) ~= 0 and sub(row, flags_at + 1, id_end(row, flags_at + 1)) == id then
      return 1
    end
    after = '(' .. row
  end
until #rows == 0
return 0
