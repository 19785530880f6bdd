-- Stores events of one thread; those that are there already stay as they are. ARGV: now, ttl, expires, stamp, thread, then
-- places with the events' ids, and what stands there, in turn. Returns 0, or one of those in common.lua.
local now, ttl, expires, stamp, thread = unpack(ARGV, 1, 5)
local expiry, _, branches, refused = enter(thread, now)
if refused then
  return refused
end
add_events(6, #ARGV)
-- Nothing that a revision is planned on has changed, but there has to be something.
call('HSETNX', META, 'v', stamp)
return renew(thread, ttl, expires, expiry, branches)
