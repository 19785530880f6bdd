-- Enters checkpoints and threads. ARGV: the TTL of what is entered or '', how many of each, then members of IDS, members of
-- RUNS, times and members of DUE in turn. No key goes before what it names: one that names what lasts has no TTL.
local ttl, ids, runs = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local left = {}
for i = 1, 3 do
  left[i] = call('PTTL', KEYS[i])
end
local is_marked = call('EXISTS', MARKS) == 1
local function add(key, from, to)
  for i = from, to do
    if is_marked then
      call('HDEL', MARKS, ARGV[i])
    end
    call('ZADD', key, 0, ARGV[i])
  end
end
add(IDS, 4, 3 + ids)
add(RUNS, 4 + ids, 3 + ids + runs)
for i = 4 + ids + runs, #ARGV, 2 do
  call('ZADD', DUE, ARGV[i], ARGV[i + 1])
end
for i = 1, 3 do
  if ttl == '' then
    if left[i] >= 0 then
      call('PERSIST', KEYS[i])
    end
  elseif left[i] == -2 or left[i] >= 0 and left[i] < tonumber(ttl) then
    call('PEXPIRE', KEYS[i], ttl)
  end
end
return 0
