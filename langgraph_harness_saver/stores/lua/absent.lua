-- Tells which of some live rows aren't there, and puts up a fence: whoever stores one of them within the next seconds is
-- told to enter it in the indexes once more. ARGV: places of one thread and runs or '' in turn. Returns the numbers of those
-- absent.
local absent = {}
local thread = sub(ARGV[1], 1, thread_end(ARGV[1]))
local away = elsewhere(thread, call('HGET', META, whereabouts(thread)))
if away then
  return away
end
for i = 1, #ARGV, 2 do
  local place, run = ARGV[i], ARGV[i + 1]
  local row = member_at(LIVE, place)
  if row and run ~= '' then
    local at = #place + 10
    local flags = byte(row, at - 1)
    if bit.band(flags, 4) ~= 0 then
      at = id_end(row, at) + 1
    end
    if bit.band(flags, 8) == 0 or sub(row, at, id_end(row, at)) ~= run then
      row = nil
    end
  end
  if not row then
    absent[#absent + 1] = (i - 1) / 2
  end
end
if #absent > 0 then
  -- As in index_mark.lua.
  call('HDEL', META, 'f')
  call('HSET', META, 'f', string.format('%.0f', milliseconds() + FENCE_MS))
  local left = call('PTTL', META)
  if is_empty() and not call('HGET', META, 'n') or left >= 0 and left < FENCE_MS then
    call('PEXPIRE', META, FENCE_MS)
  end
end
return absent
