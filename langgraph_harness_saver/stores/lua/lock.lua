-- Keeps others from writing to a family for a while. ARGV: for how many milliseconds. Returns 1 if it is locked now.
local meta = call('HMGET', META, 'v', 'l')
local at = milliseconds()
if not meta[1] or meta[2] and tonumber(meta[2]) > at then
  return 0
end
call('HSET', META, 'l', string.format('%.0f', at + ARGV[1]))
return 1
