-- Marks entries. ARGV: stamp, then members.
-- A script that has begun to delete is not refused where memory is short; this one leads to more of it.
call('HDEL', MARKS, '')
for i = 2, #ARGV do
  call('HSET', MARKS, ARGV[i], ARGV[1])
end
call('PEXPIRE', MARKS, MARKS_MS)
return 0
