-- Deletes a thread. ARGV: now, the stamp of the change, thread, and whether it is to have expired.
-- Returns how many live checkpoints it had, or -1 where it hasn't expired; its expiry; then a place and a run or '' of each.
local now, stamp, thread, if_expired = unpack(ARGV)
local expiry = call('HGET', META, 'e' .. thread)
local expired = is_past(expiry, now)
if if_expired == '1' and not expired then
  return {-1, expiry}
end
local found = {0, expiry}
local after, last = '[' .. thread, '(' .. past(thread)
repeat
  -- In pieces: all of a long thread at once would be copied at once.
  local rows = call('ZRANGEBYLEX', LIVE, after, last, 'LIMIT', 0, 500)
  for _, row in ipairs(rows) do
    local to = place_end(row)
    local flags, at = byte(row, to + 9), to + 10
    if bit.band(flags, 4) ~= 0 then
      at = id_end(row, at) + 1
    end
    found[#found + 1] = sub(row, 1, to)
    found[#found + 1] = bit.band(flags, 8) ~= 0 and sub(row, at, id_end(row, at)) or ''
    if not expired then
      found[1] = found[1] + 1
    end
    after = '(' .. row
  end
until #rows == 0
drop(thread)
if not is_empty() then
  call('HSET', META, 'v', stamp)
end
return found
