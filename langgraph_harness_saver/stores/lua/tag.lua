-- Gives a name to a live checkpoint, or takes it away. ARGV: now, thread, name, place or ''. Returns 1 if it is done.
local now, thread, name, place = unpack(ARGV)
local meta = call('HMGET', META, 'e' .. thread, whereabouts(thread))
if elsewhere(thread, meta[2]) then
  return elsewhere(thread, meta[2])
elseif is_past(meta[1], now) then
  return 0
end
local field = 't' .. thread .. name
if place == '' then
  return call('HDEL', META, field)
elseif not member_at(LIVE, place) then
  return 0
end
call('HSET', META, field, place)
return 1
