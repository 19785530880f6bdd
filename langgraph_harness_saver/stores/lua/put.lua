-- Stores a live checkpoint. ARGV: now, ttl, expires, stamp, line, id, row, place of the base or '', its rev, the head (''
-- for any, - for none, else an id), how many live root checkpoints there may be ('' for any number, - where none are to go),
-- how many are to leave, and of each what `Leaving` says; then ids and bytes of parts in turn.
-- Returns what `PutResult` says, or 3 and the head, or one of those in common.lua.
local now, ttl, expires, stamp, line, id, row, base, base_rev, wanted_head, most, count = unpack(ARGV, 1, 12)
local KEPT = 6
local place, thread = line .. id, sub(line, 1, thread_end(line))
local expiry, fenced, branches, refused = enter(thread, now)
if refused then
  return refused
end
local there = member_at(LIVE, place)
if not there or sub(there, #place + 1, #place + 8) ~= sub(row, 1, 8) then
  if wanted_head ~= '' then
    local head = head_of(line)
    if head ~= wanted_head then
      return {3, head}
    end
  end
  if base ~= '' and not stands(base, base_rev, now, thread) then
    return 1
  end
  if there or member_at(REST, place) then
    return 2
  end
  -- Nothing is refused from here on. Where memory is short, the first command is.
  add_live(place, row)
  add_parts(13 + 8 * count)
  call('HSET', META, 'v', stamp)
end

local function has_rev(member, at, rev)
  return member and sub(member, #at + 1, #at + 8) == rev
end

local function has_tag(at)
  for _, field in ipairs(call('HKEYS', META)) do
    if byte(field) == 116 and call('HGET', META, field) == at then
      return true
    end
  end
end

-- How many rows of the line that aren't hidden have an id as their parent.
local function children_of(own)
  local children = 0
  for _, key in ipairs({LIVE, REST}) do
    for _, member in ipairs(all_of(key, line)) do
      local at = place_end(member) + 9
      local flags = byte(member, at)
      if bit.band(flags, 3) ~= 1 and has_flag(flags, 4) and sub(member, at + 1, at + #own) == own then
        children = children + 1
      end
    end
  end
  return children
end

local function hidden(member, at, rev)
  return at .. rev .. char(byte(member, #at + 9) + 1) .. sub(member, #at + 10)
end

-- A member, always with a parent, that gets another one or none.
local function with_parent(member, at, rev, parent)
  local flags = byte(member, #at + 9)
  return at .. rev .. char(parent == '' and flags - 4 or flags) .. parent .. sub(member, id_end(member, #at + 10) + 1)
end

-- Takes a root checkpoint out of sight, if it may go; see `Leaving`, of which what begins at ARGV[from] tells.
local function leave(from)
  local own, own_rev, hidden_rev, parent, heir, heir_rev, heir_new_rev, written = unpack(ARGV, from, from + 7)
  local own_at, heir_at = line .. own, line .. heir
  local own_row, heir_row = member_at(LIVE, own_at), member_at(LIVE, heir_at)
  if branches or call('EXISTS', SPACES) == 1 or not has_rev(own_row, own_at, own_rev)
    or not has_rev(heir_row, heir_at, heir_rev) or has_tag(own_at) or children_of(own) > 1
    or redis.sha1hex(table.concat(all_of(WRITES, own_at))) ~= written
  then
    return false
  end
  if parent == '' and call('ZRANGEBYLEX', LIVE, '[' .. line, '(' .. past(line), 'LIMIT', 0, 1)[1] ~= own_row then
    return false
  end
  call('ZADD', REST, 0, hidden(own_row, own_at, hidden_rev))
  call('ZADD', LIVE, 0, with_parent(heir_row, heir_at, heir_new_rev, parent))
  call('ZREM', LIVE, own_row, heir_row)
  remove_events_at(own_at)
  call('HSET', META, 'v', stamp)
  return true
end

-- Lets go what goes with this; tells whether nothing is left to be done.
local function keep()
  local limit = tonumber(most)
  local live = limit and call('ZLEXCOUNT', LIVE, '[' .. line, '(' .. past(line))
  for from = 13, 12 + 8 * count, 8 do
    if limit and live <= limit then
      return true
    end
    if not leave(from) then
      return false
    end
    live = limit and live - 1
  end
  return not limit or live <= limit
end

local result = most ~= '-' and keep() and KEPT or 0
return done(result + renew(thread, ttl, expires, expiry, branches), fenced)
