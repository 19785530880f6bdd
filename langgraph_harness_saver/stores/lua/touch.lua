-- Renews a thread that is there. ARGV: now, ttl, expires, thread.
local now, ttl, expires, thread = unpack(ARGV)
local expiry = call('HGET', META, 'e' .. thread)
if not is_past(expiry, now) and not is_empty() then
  renew(thread, ttl, expires, expiry)
end
return 0
