-- Stores one call's writes. ARGV: now, ttl, expires, stamp, place, how many writes, then for each task and call, and the
-- write; then ids and bytes of parts in turn. Returns 0, or one of those in common.lua.
local now, ttl, expires, stamp, place, count = unpack(ARGV, 1, 6)
local thread = sub(place, 1, thread_end(place))
local expiry, _, refused = enter(thread, now)
if refused then
  return refused
end
for i = 7, 6 + 2 * count, 2 do
  local under, write = place .. ARGV[i], ARGV[i + 1]
  local there = all_of(WRITES, under)
  if byte(under, -1) == 0 then
    local last, stored = 0, false
    for _, member in ipairs(there) do
      last = struct.unpack('>I4', member, #under + 1)
      stored = stored or sub(member, #under + 5) == write
    end
    if not stored then
      call('ZADD', WRITES, 0, under .. struct.pack('>I4', last + 1) .. write)
    end
  else
    -- Added first: where memory is short, this is refused before anything has changed.
    call('ZADD', WRITES, 0, under .. write)
    for _, member in ipairs(there) do
      if member ~= under .. write then
        call('ZREM', WRITES, member)
      end
    end
  end
end
add_parts(7 + 2 * count)
call('HSET', META, 'v', stamp)
renew(thread, ttl, expires, expiry)
return 0
