-- Deletes a thread. ARGV: now, thread, and whether it is to have expired.
-- Returns how many live checkpoints it had, or -1 where it hasn't expired; its expiry; then a place and a run or '' of each;
-- or one of those in common.lua.
local now, thread, if_expired = unpack(ARGV)
local meta = call('HMGET', META, 'e' .. thread, 'n', whereabouts(thread))
local expiry = meta[1]
if elsewhere(thread, meta[3]) then
  return elsewhere(thread, meta[3])
end
local expired = is_past(expiry, now)
if if_expired == '1' and not expired then
  return {-1, expiry}
elseif meta[2] then
  return ENTANGLED
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
-- No other thread is in a family without branches.
clear()
return found
