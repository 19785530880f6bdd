-- Returns what META holds: fields and values in turn.
local found = {}
for _, field in ipairs(call('HKEYS', META)) do
  found[#found + 1] = field
  found[#found + 1] = call('HGET', META, field)
end
return found
