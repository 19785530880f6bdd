-- Returns what META holds, as facts.lua does, rows, and writes. ARGV: how many places, these, of which writes are returned too,
-- then the lower and the upper bound of ranges of rows.
local facts, rows, writes = {}, {}, {}
for _, field in ipairs(call('HKEYS', META)) do
  facts[#facts + 1] = field
  facts[#facts + 1] = call('HGET', META, field)
end
local count = tonumber(ARGV[1])
for i = 2, count + 1 do
  rows[#rows + 1] = member_at(LIVE, ARGV[i]) or member_at(REST, ARGV[i])
  for _, member in ipairs(all_of(WRITES, ARGV[i])) do
    writes[#writes + 1] = member
  end
end
for i = count + 2, #ARGV, 2 do
  for _, key in ipairs({LIVE, REST}) do
    for _, member in ipairs(call('ZRANGEBYLEX', key, '[' .. ARGV[i], '(' .. past(ARGV[i + 1]))) do
      rows[#rows + 1] = member
    end
  end
end
return {facts, rows, writes}
