-- Removes entries that still bear a mark, and takes it from the others. ARGV: stamp, how many of either, then members to
-- remove, and members that stay.
local stamp, count = ARGV[1], tonumber(ARGV[2])
for i = 3, #ARGV do
  if call('HGET', MARKS, ARGV[i]) == stamp then
    call('HDEL', MARKS, ARGV[i])
    if i <= 2 + count then
      call('ZREM', IDS, ARGV[i])
      call('ZREM', RUNS, ARGV[i])
    end
  end
end
return 0
