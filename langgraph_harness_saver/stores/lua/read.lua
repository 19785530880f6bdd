-- Reads checkpoints with all that is needed to read them. ARGV: now, what is wanted of each, then what to look for:
--   latest  line, the place and the rev that the caller has
--   one     place, the place and the rev that the caller has: live, or an anchor
--   live    places of one thread: live ones
--   writes  places of one thread: their writes alone, whether they are there or not
--   line    how many, upper and lower bound in LIVE
--   thread  how many, upper and lower bound in LIVE and in SPACES
-- all: with writes, other rows, parts; rows: with writes and their parts; bare: as far as the metadata goes.
-- Returns rows, writes, other rows, ids and bytes of parts in turn.
local now, wanted, what = ARGV[1], ARGV[2], ARGV[3]
local rows = {}
local known_place, known_rev

-- Whether one string of bytes stands above another.
local function is_above(a, b)
  for i = 1, #a do
    local x, y = byte(a, i), byte(b, i)
    if x ~= y then
      return not y or x > y
    end
  end
  return false
end

local function down(key, upper, lower, count)
  return call('ZREVRANGEBYLEX', key, upper, lower, 'LIMIT', 0, count)
end

-- What stands in SPACES, as a place.
local function place_of_space(space)
  local thread_to = thread_end(space)
  local id_to = id_end(space, thread_to + 1)
  return sub(space, 1, thread_to) .. backwards(sub(space, id_to + 1)) .. sub(space, thread_to + 1, id_to)
end

-- The next rows of a thread: those of the root, and of all other namespaces. Of equal ids the root's comes first.
local function merge(roots, spaces, count)
  local r, s = 1, 1
  while #rows < count and (roots[r] or spaces[s]) do
    local root, space = roots[r], spaces[s]
    local takes_root = root and not space
    if root and space then
      local root_id = sub(root, line_end(root) + 1, place_end(root))
      local at = thread_end(space) + 1
      takes_root = not is_above(sub(space, at, id_end(space, at)), root_id)
    end
    if takes_root then
      rows[#rows + 1] = root
      r = r + 1
    else
      rows[#rows + 1] = member_at(LIVE, place_of_space(space))
      s = s + 1
    end
  end
end

local first = (what == 'line' or what == 'thread') and sub(ARGV[6], 2) or ARGV[4]
local thread = sub(first, 1, thread_end(first))
local meta = call('HMGET', META, 'e' .. thread, whereabouts(thread))
if elsewhere(thread, meta[2]) then
  return elsewhere(thread, meta[2])
elseif is_past(meta[1], now) then
  return {{}, {}, {}, {}}
end
if what == 'latest' then
  local line = ARGV[4]
  known_place, known_rev = ARGV[5], ARGV[6]
  rows = down(LIVE, '(' .. past(line), '[' .. line, 1)
elseif what == 'one' then
  known_place, known_rev = ARGV[5], ARGV[6]
  local row = member_at(LIVE, ARGV[4]) or member_at(REST, ARGV[4])
  if row and bit.band(byte(row, #ARGV[4] + 9), 3) ~= 1 then
    rows[1] = row
  end
elseif what == 'live' then
  for i = 4, #ARGV do
    rows[#rows + 1] = member_at(LIVE, ARGV[i])
  end
elseif what ~= 'writes' then
  local count, upper, lower = tonumber(ARGV[4]), ARGV[5], ARGV[6]
  local roots = down(LIVE, upper, lower, count)
  if what == 'thread' then
    merge(roots, down(SPACES, ARGV[7], ARGV[8], count), count)
  else
    rows = roots
  end
end

local writes, support, parts, wanted_parts = {}, {}, {}, {}
local ranges, taken, has_rest = 0, {}, call('EXISTS', REST) == 1

local function name_parts(s, at)
  local count = struct.unpack('>H', s, at)
  for i = 0, count - 1 do
    local from = at + 2 + 16 * i
    wanted_parts[#wanted_parts + 1] = sub(s, from, from + 15)
  end
  return at + 2 + 16 * count
end

-- Adds the rows from one place to another. One range often holds the next one.
local function add_range(lower, upper)
  if taken[lower] and taken[lower] == taken[upper] then
    return
  end
  ranges = ranges + 1
  for _, key in ipairs({LIVE, has_rest and REST or nil}) do
    for _, member in ipairs(call('ZRANGEBYLEX', key, '[' .. lower, '(' .. past(upper))) do
      local place = sub(member, 1, place_end(member))
      if not taken[place] then
        support[#support + 1] = member
      end
      taken[place] = ranges
    end
  end
  taken[lower], taken[upper] = ranges, ranges
end

local function add_writes(place)
  for _, member in ipairs(all_of(WRITES, place)) do
    writes[#writes + 1] = member
    local at = id_end(member, #place + 1) + 1
    name_parts(member, byte(member, at) == 0 and at + 5 or at + 1)
  end
end

local function add_spans(place, row, at)
  local count = struct.unpack('>H', row, at)
  at = at + 2
  for _ = 1, count do
    local kind = byte(row, at)
    local line = sub(place, 1, line_end(place))
    at = at + 1
    if kind == 2 then
      local to = line_end(sub(row, at)) + at - 1
      line, at = sub(row, at, to), to + 1
    end
    local to = id_end(row, at)
    local lower, upper = line .. sub(row, at, to), place
    at = to + 1
    if kind ~= 0 then
      to = id_end(row, at)
      upper, at = line .. sub(row, at, to), to + 1
    end
    add_range(lower, upper)
  end
  return at
end

if what == 'writes' then
  for i = 4, #ARGV do
    add_writes(ARGV[i])
  end
end
for i, row in ipairs(rows) do
  local place = sub(row, 1, place_end(row))
  local at = #place + 1
  local flags = byte(row, at + 8)
  local run_to = skip_id(row, skip_id(row, at + 9, bit.band(flags, 4) ~= 0), bit.band(flags, 8) ~= 0) - 1
  if wanted == 'all' or wanted == 'rows' then
    add_writes(place)
    if place == known_place and sub(row, at, at + 7) == known_rev then
      rows[i] = sub(row, 1, at + 7) .. char(bit.bor(flags, 16)) .. sub(row, at + 9, run_to)
    elseif wanted == 'all' then
      name_parts(row, add_spans(place, row, run_to + 1))
    end
  else
    local to = metadata_at(row, run_to + 1)
    rows[i] = sub(row, 1, to + 3 + struct.unpack('>I4', row, to))
  end
end

local named = {}
for _, part in ipairs(wanted_parts) do
  if not named[part] then
    named[part] = true
    parts[#parts + 1] = part
    parts[#parts + 1] = call('HGET', PARTS, part)
  end
end
return {rows, writes, support, parts}
