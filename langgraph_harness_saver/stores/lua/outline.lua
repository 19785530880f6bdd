-- Returns what META holds, as facts.lua does, and of the family's live rows and anchors all but the body, each followed by the
-- size of metadata and body. ARGV: a line, and a number or ''. With a number, nothing of the rows if there are no more live ones
-- on the line; else, first, the id of the last of the newest that are so many, and only rows whose id, or their parent's,
-- isn't above it, besides anchors and those that have one as parent. An anchor's id is a UUID of version 5.
local line, newest = ARGV[1], tonumber(ARGV[2])
local facts, last, found = {}, '', {}
for _, field in ipairs(call('HKEYS', META)) do
  facts[#facts + 1] = field
  facts[#facts + 1] = call('HGET', META, field)
end
if newest then
  local bounds = call('ZREVRANGEBYLEX', LIVE, '(' .. past(line), '[' .. line, 'LIMIT', newest - 1, 2)
  if #bounds < 2 then
    return {facts, last, found}
  end
  last = sub(bounds[1], #line + 1, id_end(bounds[1], #line + 1))
end

-- Whether the id that begins in a row at `at` isn't above the last one. Bytes are compared, as `<` goes by the locale.
local function is_old(row, at)
  for i = 1, #last do
    local x, y = byte(row, at + i - 1), byte(last, i)
    if x ~= y then
      return x < y
    end
  end
  return true
end

local function add(row)
  local line_to = line_end(row)
  local at = id_end(row, line_to + 1) + 1
  local flags = byte(row, at + 8)
  local parent_at = at + 9
  local has_parent = bit.band(flags, 4) ~= 0
  local kind = bit.band(flags, 3)
  local wanted = not newest or kind == 2 or is_old(row, line_to + 1)
  if not wanted and has_parent then
    wanted = is_old(row, parent_at) or byte(row, parent_at) == 1 and math.floor(byte(row, parent_at + 7) / 16) == 5
  end
  if kind == 1 or not wanted then
    return
  end
  local to = has_parent and id_end(row, parent_at) + 1 or parent_at
  to = bit.band(flags, 8) ~= 0 and id_end(row, to) + 1 or to
  to = metadata_at(row, to)
  found[#found + 1] = sub(row, 1, to + 3 + struct.unpack('>I4', row, to))
  found[#found + 1] = #row - to - 3
end

for _, key in ipairs({LIVE, REST}) do
  for _, row in ipairs(call('ZRANGE', key, 0, -1)) do
    add(row)
  end
end
return {facts, last, found}
