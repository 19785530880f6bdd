-- Returns up to so many members of RUNS of each of some runs, after a member. ARGV: how many, then runs and the members
-- after which to begin, or '', in turn.
local found = {}
for i = 2, #ARGV, 2 do
  local run, after = ARGV[i], ARGV[i + 1]
  local upper = string.sub(run, 1, -2) .. string.char(string.byte(run, -1) + 1)
  local lower = after == '' and '[' .. run or '(' .. after
  found[#found + 1] = call('ZRANGEBYLEX', RUNS, lower, '(' .. upper, 'LIMIT', 0, ARGV[1])
end
return found
