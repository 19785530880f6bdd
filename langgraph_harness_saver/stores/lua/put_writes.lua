-- Stores one call's writes. ARGV: now, ttl, expires, stamp, place, how many writes, then for each task and call, and the
-- write; how many parts have to be there, and their ids; then ids and bytes of parts in turn.
-- Returns what `PutResult` says, or one of those in common.lua.
local now, ttl, expires, stamp, place, count = unpack(ARGV, 1, 6)
local needed = 7 + 2 * count
local parts = needed + 1 + ARGV[needed]
local thread = sub(place, 1, thread_end(place))
local expiry, _, branches, refused = enter(thread, now)
if refused then
  return refused
end
for i = needed + 1, parts - 1 do
  if call('HSTRLEN', PARTS, ARGV[i]) == 0 then
    return 1
  end
end
for i = 7, needed - 1, 2 do
  add_write(place .. ARGV[i], ARGV[i + 1])
end
add_parts(parts)
call('HSET', META, 'v', stamp)
return renew(thread, ttl, expires, expiry, branches)
