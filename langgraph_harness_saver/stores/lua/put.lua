-- Stores a live checkpoint. ARGV: now, ttl, expires, stamp, line, id, row, place of the base or '', its rev, the head (''
-- for any, - for none, else an id), then ids and bytes of parts in turn.
-- Returns what `PutResult` says, or 3 and the head, or one of those in common.lua.
local now, ttl, expires, stamp, line, id, row, base, base_rev, wanted_head = unpack(ARGV, 1, 10)
local place, thread = line .. id, sub(line, 1, thread_end(line))
local expiry, fenced, refused = enter(thread, now)
if refused then
  return refused
end
local there = member_at(LIVE, place)
if not there or sub(there, #place + 1, #place + 8) ~= sub(row, 1, 8) then
  if wanted_head ~= '' then
    local latest = call('ZREVRANGEBYLEX', LIVE, '(' .. past(line), '[' .. line, 'LIMIT', 0, 1)[1]
    local head = latest and sub(latest, #line + 1, id_end(latest, #line + 1)) or '-'
    if head ~= wanted_head then
      return {3, head}
    end
  end
  if base ~= '' then
    local base_thread = sub(base, 1, thread_end(base))
    local is_gone = base_thread ~= thread and is_expired(base_thread, now)
    local found = not is_gone and (member_at(LIVE, base) or member_at(REST, base))
    if not found or sub(found, #base + 1, #base + 8) ~= base_rev then
      return 1
    end
  end
  if there or member_at(REST, place) then
    return 2
  end
  -- Nothing is refused from here on. Where memory is short, the first command is.
  add_live(place, row)
  add_parts(11)
  call('HSET', META, 'v', stamp)
end
renew(thread, ttl, expires, expiry)
return done(0, fenced)
