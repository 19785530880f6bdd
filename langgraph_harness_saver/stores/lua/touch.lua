-- Renews a thread that is there. ARGV: now, ttl, expires, thread.
local now, ttl, expires, thread = unpack(ARGV)
local meta = call('HMGET', META, 'e' .. thread, 'n', whereabouts(thread))
if elsewhere(thread, meta[3]) then
  return elsewhere(thread, meta[3])
end
if not is_past(meta[1], now) and not is_empty() then
  return renew(thread, ttl, expires, meta[1], meta[2])
end
return 0
