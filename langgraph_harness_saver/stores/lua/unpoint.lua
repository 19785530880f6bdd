-- Removes a pointer that leads nowhere. ARGV: family, and the stamp of the pointer; '' for any, 'old' for any but one whose
-- branch may be under way. Returns 1 if there is no such pointer any more.
local family, stamp = unpack(ARGV)
local meta = call('HMGET', META, 'p', 'q', 'w', 'f')
if meta[1] ~= family then
  return 1
elseif stamp == 'old' and milliseconds() - meta[3] < FENCE_MS or stamp ~= 'old' and stamp ~= '' and stamp ~= meta[2] then
  return 0
end
call('HDEL', META, 'p', 'q', 'w')
if meta[4] then
  call('PEXPIREAT', META, meta[4])
end
return 1
