-- Stores a live checkpoint. ARGV: now, ttl, expires, stamp, line, id, row, place of the base or '', its rev, the head (''
-- for any, - for none, else an id), then ids and bytes of parts in turn.
-- Returns what `PutResult` says, or 3 and the head, or one of those in common.lua.
local now, ttl, expires, stamp, line, id, row, base, base_rev, wanted_head = unpack(ARGV, 1, 10)
local place, thread = line .. id, sub(line, 1, thread_end(line))
local expiry, fenced, branches, refused = enter(thread, now)
if refused then
  return refused
end
local there = member_at(LIVE, place)
if not there or sub(there, #place + 1, #place + 8) ~= sub(row, 1, 8) then
  if wanted_head ~= '' then
    local head = head_of(line)
    if head ~= wanted_head then
      return {3, head}
    end
  end
  if base ~= '' and not stands(base, base_rev, now, thread) then
    return 1
  end
  if there or member_at(REST, place) then
    return 2
  end
  -- Nothing is refused from here on. Where memory is short, the first command is.
  add_live(place, row)
  add_parts(11)
  call('HSET', META, 'v', stamp)
end
return done(renew(thread, ttl, expires, expiry, branches), fenced)
