-- Stores one call's writes. ARGV: now, ttl, expires, stamp, place, how many writes, then for each task and call, and the
-- write; then ids and bytes of parts in turn. Returns 0, or one of those in common.lua.
local now, ttl, expires, stamp, place, count = unpack(ARGV, 1, 6)
local thread = sub(place, 1, thread_end(place))
local expiry, _, branches, refused = enter(thread, now)
if refused then
  return refused
end
for i = 7, 6 + 2 * count, 2 do
  add_write(place .. ARGV[i], ARGV[i + 1])
end
add_parts(7 + 2 * count)
call('HSET', META, 'v', stamp)
return renew(thread, ttl, expires, expiry, branches)
