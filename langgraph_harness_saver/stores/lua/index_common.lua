-- One shard of the indexes: what can't be found within a family. Its keys are in one slot.
--   IDS    live checkpoints of all threads by id
--   RUNS   the same by run and id
--   DUE    threads that expire, with the time: not before then need they be looked at
--   MARKS  a hash: entries that somebody is about to remove, and the stamp of that attempt
-- An entry is written before what it names, and checked by whoever reads it. So it may be stale, but never missing. To
-- remove one takes three steps: it is marked here; the family is asked, and puts up a fence if the row isn't there; it is
-- removed here, if it still bears this mark. Whoever stores the row meanwhile has written the entry before, which takes the
-- mark away; or has written it before it was marked and stores the row after the family was asked, and then meets the
-- fence and writes the entry once more.
local IDS, RUNS, DUE, MARKS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local call = redis.call
local MARKS_MS = 3600000
