-- Removes threads from DUE, or gives them another time, unless they have got another meanwhile. ARGV: members, the times
-- that were read, and the times to come or '' in turn.
for i = 1, #ARGV, 3 do
  if tonumber(call('ZSCORE', DUE, ARGV[i]) or 'nan') == tonumber(ARGV[i + 1]) then
    if ARGV[i + 2] == '' then
      call('ZREM', DUE, ARGV[i])
    else
      call('ZADD', DUE, ARGV[i + 2], ARGV[i])
    end
  end
end
return 0
