-- Tells of each thread whether it has events: 1 or 0, or what common.lua says of one that is elsewhere. ARGV: now, then threads.
local now, found = ARGV[1], {}
for i = 2, #ARGV do
  local thread = ARGV[i]
  local meta = call('HMGET', META, 'e' .. thread, whereabouts(thread))
  found[#found + 1] = elsewhere(thread, meta[2])
    or not is_past(meta[1], now) and member_at(EVENTS, thread) and 1 or 0
end
return found
