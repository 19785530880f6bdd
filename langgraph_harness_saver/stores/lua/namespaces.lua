-- Returns the namespaces of a thread's live checkpoints, as they stand in places: those without a colon; with an id, then the
-- members of SPACES that have a greater one. ARGV: now, thread, id or ''.
local now, thread, since = unpack(ARGV)
local meta = call('HMGET', META, 'e' .. thread, whereabouts(thread))
if elsewhere(thread, meta[2]) then
  return elsewhere(thread, meta[2])
elseif is_past(meta[1], now) then
  return {{}, {}}
end
local found = {}
local lower, upper = '[' .. thread, '(' .. past(thread)
repeat
  local row = call('ZRANGEBYLEX', LIVE, lower, upper, 'LIMIT', 0, 1)[1]
  if row then
    local line = sub(row, 1, line_end(row))
    local colon = find(line, ':', #thread + 1, true)
    if not colon then
      found[#found + 1] = sub(line, #thread + 1)
    end
    -- All that begin so have one.
    lower = '[' .. past(colon and sub(line, 1, colon) or line)
  end
until not row
local newer = {}
if since ~= '' then
  newer = call('ZRANGEBYLEX', SPACES, '[' .. past(thread .. since), upper)
end
return {found, newer}
