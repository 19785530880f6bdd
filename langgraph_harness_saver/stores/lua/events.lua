-- Returns a thread's next events, as members of EVENTS. ARGV: now, thread, how many, whether to leave bodies out, then a lower
-- and an upper bound of each range to look in, in turn.
local now, thread, count, bare = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local meta = call('HMGET', META, 'e' .. thread, whereabouts(thread))
if elsewhere(thread, meta[2]) then
  return elsewhere(thread, meta[2])
elseif is_past(meta[1], now) then
  return {}
end
local found = {}
for i = 5, #ARGV, 2 do
  if #found == count then
    break
  end
  for _, event in ipairs(call('ZRANGEBYLEX', EVENTS, ARGV[i], ARGV[i + 1], 'LIMIT', 0, count - #found)) do
    if bare then
      local at = place_end(event) + 18
      event = sub(event, 1, at + 3 + struct.unpack('>I4', event, at))
    end
    found[#found + 1] = event
  end
end
return found
