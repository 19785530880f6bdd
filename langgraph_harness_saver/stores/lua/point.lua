-- Points from a thread's own keys to those of the family that it is about to become a branch of: nothing else of it is here
-- then. It is written before the branch, and what it leads to is checked; so a pointer may be stale, but none is missing.
-- ARGV: family, stamp, ttl or '', and whether a pointer that is there already is to bear the stamp, too. Returns 0, or 1 if
-- there is such a thread, 2 if it was there already with another stamp.
local family, stamp, ttl, takes = unpack(ARGV)
local meta = call('HMGET', META, 'p', 'f', 'q')
if meta[1] and meta[1] ~= family or not is_empty() then
  return 1
end
local at = milliseconds()
-- q is the stamp of whoever may take it away, w the time when it was last written.
call('HSET', META, 'p', family, 'w', string.format('%.0f', at))
if not meta[1] or takes == '1' then
  call('HSET', META, 'q', stamp)
end
if ttl == '' then
  call('PERSIST', META)
else
  call('PEXPIRE', META, math.max(ttl, meta[2] and FENCE_MS or 0))
end
return done(meta[1] and meta[3] ~= stamp and 2 or 0, meta[2] and tonumber(meta[2]) > at)
