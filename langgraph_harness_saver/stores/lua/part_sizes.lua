-- Returns the ids of a family's parts and their sizes in turn.
local sizes = {}
for _, part in ipairs(call('HKEYS', PARTS)) do
  sizes[#sizes + 1] = part
  sizes[#sizes + 1] = call('HSTRLEN', PARTS, part)
end
return sizes
