-- name: schema
SELECT major, minor FROM harness_schema

-- name: has_schema
SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'harness_schema'

-- name: thread
SELECT id, expires_at FROM harness_thread WHERE thread_id = ?

-- name: add_thread
INSERT INTO harness_thread (thread_id, expires_at) VALUES (?, ?)

-- name: renew_thread
UPDATE harness_thread SET expires_at = ? WHERE id = ?

-- name: drop_thread
DELETE FROM harness_thread WHERE id = ?

-- name: drop_thread_parts
DELETE FROM harness_part WHERE thread = ?

-- name: drop_thread_checkpoints
DELETE FROM harness_checkpoint WHERE thread = ?

-- name: count_live
SELECT count(*) FROM harness_checkpoint WHERE thread = ? AND kind = 0

-- name: is_empty
SELECT NOT EXISTS (SELECT 1 FROM harness_checkpoint WHERE thread = ?)

-- name: expired
SELECT id FROM harness_thread AS t
WHERE expires_at <= ? AND family IS NULL AND NOT EXISTS (SELECT 1 FROM harness_branch AS b WHERE b.family = t.thread_id)
ORDER BY expires_at LIMIT ?

-- name: entangled
SELECT thread_id FROM harness_thread AS t
WHERE expires_at <= ?
  AND (family IS NOT NULL OR EXISTS (SELECT 1 FROM harness_branch AS b WHERE b.family = t.thread_id))

-- name: place
SELECT id, kind, rev FROM harness_checkpoint WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id = ?

-- name: put_places
SELECT t.id, t.expires_at, c.id, c.kind, c.rev, b.rev
FROM harness_thread AS t
LEFT JOIN harness_checkpoint AS c ON c.thread = t.id AND c.checkpoint_ns = ?2 AND c.checkpoint_id = ?3
LEFT JOIN harness_checkpoint AS b ON b.thread = t.id AND b.checkpoint_ns = ?4 AND b.checkpoint_id = ?5
WHERE t.thread_id = ?1

-- name: head
SELECT id, checkpoint_id FROM harness_checkpoint
WHERE thread = ? AND checkpoint_ns = ? AND kind = 0
ORDER BY checkpoint_id DESC LIMIT 1

-- name: add_checkpoint
INSERT INTO harness_checkpoint
  (thread, checkpoint_ns, checkpoint_id, kind, parent_id, run_id, rev, reach, parts, metadata, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: set_checkpoint
UPDATE harness_checkpoint
SET kind = ?, parent_id = ?, run_id = ?, rev = ?, reach = ?, parts = ?, metadata = ?, body = ?
WHERE id = ?

-- name: add_stub
INSERT INTO harness_checkpoint (thread, checkpoint_ns, checkpoint_id, kind) VALUES (?, ?, ?, 3)

-- name: drop_checkpoint
DELETE FROM harness_checkpoint WHERE id = ?

-- name: checkpoint
SELECT t.thread_id, c.checkpoint_ns, c.checkpoint_id, c.kind, c.parent_id, c.run_id, c.rev, c.reach, c.parts,
  c.metadata, c.body, c.id, c.thread
FROM harness_checkpoint AS c JOIN harness_thread AS t ON t.id = c.thread
WHERE c.id = ?

-- name: bodies
SELECT checkpoint_id, body FROM harness_checkpoint
WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id BETWEEN ? AND ? AND kind <> 3

-- name: thread_checkpoints
SELECT id FROM harness_checkpoint WHERE thread = ?

-- name: writes
SELECT task_id, task_path, call, body, parts FROM harness_write WHERE id BETWEEN ? AND ? ORDER BY id

-- name: replace_write
DELETE FROM harness_write WHERE id >> 20 = ? AND task_id = ? AND call = ? AND call <> 0

-- name: add_write
INSERT INTO harness_write (id, task_id, task_path, call, body, parts)
SELECT coalesce((SELECT min(max(id) + 1, ?2) FROM harness_write WHERE id BETWEEN ?1 AND ?2), ?1), ?3, ?4, ?5, ?6, ?7
WHERE NOT EXISTS (
  SELECT 1 FROM harness_write
  WHERE id BETWEEN (SELECT max(id) - 15 FROM harness_write WHERE id BETWEEN ?1 AND ?2) AND ?2
    AND id >= ?1 AND task_id = ?3 AND task_path IS ?4 AND call = ?5 AND body = ?6
)

-- name: put_write
INSERT INTO harness_write (id, task_id, task_path, call, body)
SELECT
  coalesce((
    SELECT min(max(id) + 1, (c.id + 1 << 20) - 1) FROM harness_write
    WHERE id BETWEEN c.id << 20 AND (c.id + 1 << 20) - 1
  ), c.id << 20), ?4, ?5, 0, ?6
FROM harness_thread AS t CROSS JOIN harness_checkpoint AS c
WHERE t.thread_id = ?1 AND (t.expires_at IS NULL OR t.expires_at > ?7)
  AND c.thread = t.id AND c.checkpoint_ns = ?2 AND c.checkpoint_id = ?3
  AND NOT EXISTS (
    SELECT 1 FROM harness_write
    WHERE id BETWEEN c.id << 20 AND (c.id + 1 << 20) - 1 AND id >= (
      SELECT max(id) - 15 FROM harness_write WHERE id BETWEEN c.id << 20 AND (c.id + 1 << 20) - 1
    ) AND task_id = ?4 AND task_path IS ?5 AND call = 0 AND body = ?6
  )

-- name: drop_writes
DELETE FROM harness_write WHERE id BETWEEN ? AND ?

-- name: part
SELECT data FROM harness_part
WHERE thread = coalesce((SELECT family FROM harness_thread WHERE id = ?1), ?1) AND part_id = ?2

-- name: has_part
SELECT 1 FROM harness_part
WHERE thread = coalesce((SELECT family FROM harness_thread WHERE id = ?1), ?1) AND part_id = ?2

-- name: part_size
SELECT length(data) FROM harness_part
WHERE thread = coalesce((SELECT family FROM harness_thread WHERE id = ?1), ?1) AND part_id = ?2

-- name: part_ids
SELECT part_id FROM harness_part WHERE thread = coalesce((SELECT family FROM harness_thread WHERE id = ?1), ?1)

-- name: add_part
INSERT OR IGNORE INTO harness_part (thread, part_id, data)
VALUES (coalesce((SELECT family FROM harness_thread WHERE id = ?1), ?1), ?2, ?3)

-- name: drop_part
DELETE FROM harness_part
WHERE thread = coalesce((SELECT family FROM harness_thread WHERE id = ?1), ?1) AND part_id = ?2

-- name: threads_of_run
SELECT DISTINCT t.thread_id
FROM harness_checkpoint AS c JOIN harness_thread AS t ON t.id = c.thread
WHERE c.run_id = ? AND c.kind = 0 AND (t.expires_at IS NULL OR t.expires_at > ?)

-- name: scan_line
SELECT c.id, c.metadata
FROM harness_checkpoint AS c
WHERE c.thread = :thread AND c.checkpoint_ns = :ns AND c.kind = 0
  AND c.checkpoint_id < coalesce(:before, x'ff') AND c.checkpoint_id < coalesce(:after, x'ff')
  AND (:id IS NULL OR c.checkpoint_id = :id)
ORDER BY c.checkpoint_id DESC LIMIT :limit

-- name: scan_thread
SELECT c.id, c.metadata
FROM harness_checkpoint AS c
WHERE c.thread = :thread AND c.kind = 0
  AND c.checkpoint_id < coalesce(:before, x'ff') AND c.checkpoint_id <= coalesce(:after, x'ff')
  AND (c.checkpoint_id < coalesce(:after, x'ff') OR c.checkpoint_ns > :after_ns)
  AND (:id IS NULL OR c.checkpoint_id = :id)
ORDER BY +c.checkpoint_id DESC, c.checkpoint_ns LIMIT :limit

-- name: scan_all
SELECT c.id, c.metadata
FROM harness_checkpoint AS c INDEXED BY harness_checkpoint_order
JOIN harness_thread AS t ON t.id = c.thread
WHERE c.kind = 0 AND (t.expires_at IS NULL OR t.expires_at > :now)
  AND c.checkpoint_id < coalesce(:before, x'ff') AND c.checkpoint_id <= coalesce(:after, x'ff')
  AND (c.checkpoint_id < coalesce(:after, x'ff') OR (t.thread_id, c.checkpoint_ns) > (:after_thread, :after_ns))
  AND (:id IS NULL OR c.checkpoint_id = :id) AND (:ns IS NULL OR c.checkpoint_ns = :ns)
ORDER BY c.checkpoint_id DESC, t.thread_id, c.checkpoint_ns LIMIT :limit

-- name: set_family
UPDATE harness_thread SET family = ? WHERE id = ?

-- name: no_expiry
UPDATE harness_thread SET expires_at = NULL WHERE id = ?

-- name: branches
SELECT thread_id, family, source, checkpoint_id, name, created_at FROM harness_branch
WHERE family = coalesce((SELECT family FROM harness_branch WHERE thread_id = ?1), ?1)
ORDER BY created_at, thread_id

-- name: set_branch
INSERT OR REPLACE INTO harness_branch (thread_id, family, source, checkpoint_id, name, created_at)
VALUES (?, ?, ?, ?, ?, ?)

-- name: branch_named
SELECT thread_id FROM harness_branch WHERE source = ? AND name = ?

-- name: drop_branch
DELETE FROM harness_branch WHERE thread_id = ?

-- name: early_writes
SELECT id FROM harness_checkpoint WHERE thread = ? AND kind = 3

-- name: has_child
SELECT EXISTS (
  SELECT 1 FROM harness_checkpoint
  WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id > ?3 AND kind = 0 AND parent_id = ?3
)

-- name: namespaces
WITH RECURSIVE line (ns) AS (
  SELECT min(checkpoint_ns) FROM harness_checkpoint WHERE thread = :thread
  UNION ALL
  SELECT (SELECT min(checkpoint_ns) FROM harness_checkpoint WHERE thread = :thread AND checkpoint_ns > ns)
  FROM line WHERE ns IS NOT NULL
)
SELECT ns FROM line
WHERE ns IS NOT NULL AND EXISTS (
  SELECT 1 FROM harness_checkpoint AS c
  WHERE c.thread = :thread AND c.checkpoint_ns = ns AND c.kind = 0
    AND (instr(ns, x'3a') = 0 OR c.checkpoint_id > :since)
)

-- name: tag
INSERT OR REPLACE INTO harness_tag (thread, name, checkpoint_ns, checkpoint_id) VALUES (?, ?, ?, ?)

-- name: untag
DELETE FROM harness_tag WHERE thread = ? AND name = ?

-- name: tags
SELECT name, checkpoint_ns, checkpoint_id FROM harness_tag WHERE thread = ? ORDER BY name

-- name: drop_tags
DELETE FROM harness_tag
WHERE thread = ? AND NOT EXISTS (
  SELECT 1 FROM harness_checkpoint AS c
  WHERE c.thread = harness_tag.thread AND c.checkpoint_ns = harness_tag.checkpoint_ns
    AND c.checkpoint_id = harness_tag.checkpoint_id AND c.kind = 0
)

-- name: add_event
INSERT OR IGNORE INTO harness_event (thread, checkpoint_id, event_id, head, body) VALUES (?, ?, ?, ?, ?)

-- name: drop_events
DELETE FROM harness_event WHERE thread = ?

-- name: events
SELECT checkpoint_id, event_id, head, CASE WHEN :bare THEN x'' ELSE body END FROM harness_event
WHERE thread = :thread AND (checkpoint_id, event_id) > (:after_id, :after_event)
ORDER BY checkpoint_id, event_id LIMIT :limit

-- name: events_of
SELECT checkpoint_id, event_id, head, CASE WHEN :bare THEN x'' ELSE body END FROM harness_event
WHERE thread = :thread AND checkpoint_id = :id AND event_id > :after_event
ORDER BY event_id LIMIT :limit

-- name: nodes
SELECT checkpoint_ns, checkpoint_id, parent_id, rev, kind, metadata, length(metadata) + length(body)
FROM harness_checkpoint WHERE thread = ? AND kind IN (0, 2)

-- name: nodes_until
-- An anchor's id is a UUID of version 5.
SELECT checkpoint_ns, checkpoint_id, parent_id, rev, kind, metadata, length(metadata) + length(body)
FROM harness_checkpoint
WHERE thread = ?1 AND kind IN (0, 2)
  AND (checkpoint_id <= ?2 OR parent_id <= ?2 OR kind = 2 OR substr(parent_id, 8, 1) BETWEEN x'50' AND x'5f')

-- name: nth_root
SELECT checkpoint_id FROM harness_checkpoint
WHERE thread = ?1 AND checkpoint_ns = x'' AND kind = 0
ORDER BY checkpoint_id DESC LIMIT 2 OFFSET ?2

-- name: first_roots
SELECT t.thread_id, c.checkpoint_ns, c.checkpoint_id, c.kind, c.parent_id, c.run_id, c.rev, c.reach, c.parts,
  c.metadata, c.body, c.id, c.thread
FROM harness_checkpoint AS c JOIN harness_thread AS t ON t.id = c.thread
WHERE c.thread = ? AND c.checkpoint_ns = x'' AND c.kind = 0
ORDER BY c.checkpoint_id LIMIT ?

-- name: line_facts
-- Of a thread's root: how many are live, how many of these come before ?1, and how many rows have that as parent.
SELECT total(kind = 0), total(kind = 0 AND checkpoint_id < ?1), total(parent_id = ?1)
FROM harness_checkpoint WHERE thread = ?2 AND checkpoint_ns = x'' AND kind IN (0, 2)

-- name: is_held
-- Whether a root checkpoint has a tag, or its thread other namespaces.
SELECT EXISTS (SELECT 1 FROM harness_tag WHERE thread = ?1 AND checkpoint_ns = x'' AND checkpoint_id = ?2)
  OR EXISTS (SELECT 1 FROM harness_checkpoint WHERE thread = ?1 AND checkpoint_ns > x'')

-- name: writes_stamp
SELECT count(*), max(id), total(call), total(length(body)) FROM harness_write WHERE id BETWEEN ? AND ?

-- name: hide_checkpoint
UPDATE harness_checkpoint SET kind = 1, rev = ? WHERE id = ?

-- name: give_parent
UPDATE harness_checkpoint SET parent_id = ?, rev = ? WHERE id = ?

-- name: line
SELECT checkpoint_id FROM harness_checkpoint
WHERE thread = ? AND checkpoint_ns = x'' AND kind = 0
ORDER BY checkpoint_id DESC LIMIT ?

-- name: newest
SELECT t.thread_id, c.checkpoint_id
FROM harness_checkpoint AS c INDEXED BY harness_checkpoint_order
JOIN harness_thread AS t ON t.id = c.thread
WHERE c.kind = 0 AND c.checkpoint_ns = x'' AND c.checkpoint_id <= ?1
  AND (c.checkpoint_id < ?1 OR t.thread_id > ?2) AND (t.expires_at IS NULL OR t.expires_at > ?3)
ORDER BY c.checkpoint_id DESC, t.thread_id LIMIT ?4

-- name: rows
SELECT id, checkpoint_id, parent_id, run_id, rev, kind, metadata, body FROM harness_checkpoint
WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id IN ({ids}) AND kind <> 3

-- name: writes_of_rows
SELECT c.id, w.task_id, w.task_path, w.call, w.body, w.parts
FROM harness_checkpoint AS c CROSS JOIN harness_write AS w ON w.id BETWEEN c.id << 20 AND (c.id + 1 << 20) - 1
WHERE c.thread = ? AND c.checkpoint_ns = ? AND c.checkpoint_id IN ({ids}) AND c.kind <> 3
ORDER BY w.id

-- name: has_events
SELECT 1 FROM harness_event WHERE thread = ? LIMIT 1

-- name: numbers_between
SELECT id FROM harness_checkpoint
WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id BETWEEN ? AND ? AND kind <> 3

-- name: threads
SELECT t.thread_id FROM harness_thread AS t
WHERE (t.thread_id > ?1 OR ?2) AND (t.expires_at IS NULL OR t.expires_at > ?3)
  AND EXISTS (SELECT 1 FROM harness_checkpoint AS c WHERE c.thread = t.id AND c.kind = 0)
ORDER BY t.thread_id LIMIT ?4
