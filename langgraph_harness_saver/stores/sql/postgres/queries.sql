-- name: put_one
SELECT 1, status, head FROM {schema}.harness_put_one(
  $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20
)

-- name: put_write
SELECT 0, 0, NULL::bytea FROM {schema}.harness_put_write($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- name: put
SELECT n, status, head FROM {schema}.harness_put(
  $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23
)

-- name: put_writes
SELECT 0, 0, NULL::bytea FROM {schema}.harness_put_writes($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)

-- name: put_both
SELECT n, status, head FROM {schema}.harness_put(
  $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23
)
UNION ALL
SELECT 0, 0, NULL FROM {schema}.harness_put_writes($1, $2, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34)

-- name: put_writes_leaning
SELECT n, 1, NULL::bytea FROM {schema}.harness_put_leaning(
  $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18
) AS n

-- name: put_both_leaning
SELECT n, status, head FROM {schema}.harness_put(
  $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23
)
UNION ALL
SELECT n, 1, NULL FROM {schema}.harness_put_leaning(
  $1, $2, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39
) AS n

-- name: put_both_leaning_keep
SELECT n, status, head FROM {schema}.harness_put(
  $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23
)
UNION ALL
SELECT n, 1, NULL FROM {schema}.harness_put_leaning(
  $1, $2, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39
) AS n
UNION ALL
SELECT n, 6, NULL FROM {schema}.harness_keep($40, $41, $42, $43, $44, $45, $46, $47, $48, $49, $50, $51) AS n

-- name: put_one_keep
SELECT 1, status, head FROM {schema}.harness_put_one(
  $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20
)
UNION ALL
SELECT n, 6, NULL FROM {schema}.harness_keep($21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32) AS n

-- name: put_keep
SELECT n, status, head FROM {schema}.harness_put(
  $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23
)
UNION ALL
SELECT n, 6, NULL FROM {schema}.harness_keep($24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35) AS n

-- name: put_both_keep
SELECT n, status, head FROM {schema}.harness_put(
  $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23
)
UNION ALL
SELECT 0, 0, NULL FROM {schema}.harness_put_writes($1, $2, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34)
UNION ALL
SELECT n, 6, NULL FROM {schema}.harness_keep($35, $36, $37, $38, $39, $40, $41, $42, $43, $44, $45, $46) AS n

-- name: first_roots
SELECT rev, kind, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, metadata, body,
  {schema}.harness_writes_stamp(thread, checkpoint_id) AS stamp
FROM {schema}.harness_checkpoint
WHERE thread = $2::text::uuid AND checkpoint_ns = '' AND kind = 0 AND NOT {schema}.harness_is_expired($2::text::uuid, $1)
ORDER BY checkpoint_id LIMIT $3

-- name: get
SELECT * FROM {schema}.harness_get($1, $2, $3, $4, $5, $6, $7)

-- name: gets
SELECT u.n, i.*
FROM unnest($2::text[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bigint[], $7::boolean[])
  WITH ORDINALITY AS u(thread, ns, id, known_id, known_rev, expired, n)
CROSS JOIN LATERAL {schema}.harness_get($1, u.thread, u.ns, u.id, u.known_id, u.known_rev, u.expired) AS i

-- name: scan
SELECT * FROM {schema}.harness_find($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- name: row_of
SELECT rev, kind, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, metadata, body
FROM {schema}.harness_checkpoint
WHERE thread = $2::text::uuid AND checkpoint_ns = $3 AND checkpoint_id = $4 AND kind IN (0, 2)
  AND NOT {schema}.harness_is_expired($2::text::uuid, $1)

-- name: rows_below
SELECT rev, kind, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, metadata, body
FROM {schema}.harness_checkpoint
WHERE thread = $2::text::uuid AND checkpoint_ns = $3 AND checkpoint_id < $4 AND kind = 0
  AND NOT {schema}.harness_is_expired($2::text::uuid, $1)
ORDER BY checkpoint_id DESC LIMIT $5

-- name: writes_of
SELECT w.checkpoint_ns, w.checkpoint_id, w.task_id, w.task_path, w.call, w.parts, w.body
FROM unnest($3::bytea[], $4::bytea[]) AS u(checkpoint_ns, checkpoint_id)
JOIN {schema}.harness_write w
  ON w.thread = $2::text::uuid AND w.checkpoint_ns = u.checkpoint_ns AND w.checkpoint_id = u.checkpoint_id
WHERE NOT {schema}.harness_is_expired($2::text::uuid, $1)
ORDER BY w.arrival

-- name: parts_of
SELECT part_id, data FROM {schema}.harness_part
WHERE thread IN ({schema}.harness_family($1::text::uuid), $1::text::uuid) AND part_id = ANY ($2::bytea[])

-- name: delete_thread
SELECT {schema}.harness_delete($1, $2)

-- name: threads_of_runs
SELECT DISTINCT coalesce(c.thread_id, convert_to(c.thread::text, 'UTF8')) AS thread_id
FROM {schema}.harness_checkpoint c
WHERE c.run_id = ANY ($2::bytea[]) AND c.kind = 0
  AND NOT EXISTS (SELECT FROM {schema}.harness_thread t WHERE t.thread = c.thread AND t.expires_at <= $1)

-- name: sweep
SELECT * FROM {schema}.harness_sweep($1, $2, $3)

-- name: is_expired
SELECT 1 FROM {schema}.harness_thread WHERE thread = $1::text::uuid AND expires_at <= $2

-- name: graft
SELECT status, note, n FROM {schema}.harness_graft(
  $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26,
  $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39
)

-- name: branches
SELECT * FROM {schema}.harness_branches($1)

-- name: has_child
SELECT {schema}.harness_has_child($1, $2, $3, $4)

-- name: namespaces
SELECT * FROM {schema}.harness_namespaces($1, $2, $3)

-- name: tag
SELECT {schema}.harness_set_tag($1, $2, $3, $4, $5)

-- name: untag
DELETE FROM {schema}.harness_tag t
WHERE t.thread = $2::text::uuid AND t.name = $3
  AND NOT EXISTS (SELECT FROM {schema}.harness_thread h WHERE h.thread = t.thread AND h.expires_at <= $1)
RETURNING 1

-- name: tags
SELECT u.n, t.name, t.checkpoint_ns, t.checkpoint_id
FROM unnest($2::text[]) WITH ORDINALITY AS u(thread, n) JOIN {schema}.harness_tag t ON t.thread = u.thread::uuid
WHERE NOT EXISTS (SELECT FROM {schema}.harness_thread h WHERE h.thread = t.thread AND h.expires_at <= $1)
ORDER BY u.n, t.name

-- name: lines
SELECT u.n, c.checkpoint_id
FROM unnest($2::text[]) WITH ORDINALITY AS u(thread, n)
CROSS JOIN LATERAL (
  SELECT checkpoint_id FROM {schema}.harness_checkpoint
  WHERE thread = u.thread::uuid AND checkpoint_ns = '' AND kind = 0 ORDER BY checkpoint_id DESC LIMIT $3
) c
WHERE NOT EXISTS (SELECT FROM {schema}.harness_thread h WHERE h.thread = u.thread::uuid AND h.expires_at <= $1)
ORDER BY u.n, c.checkpoint_id DESC

-- name: newest
SELECT named.thread_id, c.checkpoint_id
FROM {schema}.harness_checkpoint c
CROSS JOIN LATERAL (SELECT coalesce(c.thread_id, convert_to(c.thread::text, 'UTF8')) AS thread_id) named
WHERE c.kind = 0 AND c.checkpoint_ns = '' AND c.checkpoint_id <= $2
  AND (c.checkpoint_id < $2 OR named.thread_id > $3)
  AND NOT EXISTS (SELECT FROM {schema}.harness_thread t WHERE t.thread = c.thread AND t.expires_at <= $1)
ORDER BY c.checkpoint_id DESC, named.thread_id LIMIT $4

-- name: some_rows
SELECT u.n, c.rev, c.kind, c.parent_id, c.run_id, c.metadata, c.body
FROM unnest($1::text[], $2::bytea[], $3::bytea[]) WITH ORDINALITY AS u(thread, ns, id, n)
JOIN {schema}.harness_checkpoint c ON c.thread = u.thread::uuid AND c.checkpoint_ns = u.ns AND c.checkpoint_id = u.id

-- name: writes_of_rows
SELECT u.n, w.task_id, w.task_path, w.call, w.parts, w.body
FROM unnest($1::text[], $2::bytea[], $3::bytea[]) WITH ORDINALITY AS u(thread, ns, id, n)
JOIN {schema}.harness_write w ON w.thread = u.thread::uuid AND w.checkpoint_ns = u.ns AND w.checkpoint_id = u.id
ORDER BY w.arrival

-- name: eventful
SELECT u.n FROM unnest($2::text[]) WITH ORDINALITY AS u(thread, n)
WHERE EXISTS (SELECT FROM {schema}.harness_event e WHERE e.thread = u.thread::uuid)
  AND NOT EXISTS (SELECT FROM {schema}.harness_thread t WHERE t.thread = u.thread::uuid AND t.expires_at <= $1)

-- name: entangled
SELECT coalesce(own.thread_id, root.family_id, convert_to(t.thread::text, 'UTF8'))
FROM {schema}.harness_thread t
LEFT JOIN {schema}.harness_branch own ON own.thread = t.thread
LEFT JOIN LATERAL (
  SELECT b.family, b.family_id FROM {schema}.harness_branch b WHERE b.family = t.thread LIMIT 1
) root ON true
WHERE t.expires_at <= $1 AND (own.thread IS NOT NULL OR root.family IS NOT NULL)

-- name: rows
SELECT rev, kind, thread::text AS thread, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, metadata,
  body
FROM {schema}.harness_checkpoint WHERE thread = ANY ($1::text[]::uuid[])

-- name: rows_locked
SELECT rev, kind, thread::text AS thread, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, metadata,
  body
FROM {schema}.harness_checkpoint WHERE thread = ANY ($1::text[]::uuid[])
ORDER BY thread, checkpoint_ns, checkpoint_id FOR UPDATE

-- name: some_locked
SELECT c.rev, c.kind, c.thread::text AS thread, c.checkpoint_ns, c.checkpoint_id, c.parent_id, c.run_id, c.since, c.reach,
  c.parts, c.metadata, c.body
FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS u(thread, ns, id)
JOIN {schema}.harness_checkpoint c ON c.thread = u.thread::uuid AND c.checkpoint_ns = u.ns AND c.checkpoint_id = u.id
ORDER BY c.thread, c.checkpoint_ns, c.checkpoint_id FOR UPDATE OF c

-- name: some_writes
SELECT w.arrival, w.thread::text AS thread, w.checkpoint_ns, w.checkpoint_id, w.task_id, w.task_path, w.call, w.parts,
  w.body
FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS u(thread, ns, id)
JOIN {schema}.harness_write w ON w.thread = u.thread::uuid AND w.checkpoint_ns = u.ns AND w.checkpoint_id = u.id
ORDER BY w.arrival

-- name: rows_between
SELECT rev, kind, thread::text AS thread, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, metadata,
  body
FROM {schema}.harness_checkpoint
WHERE thread = $1::text::uuid AND checkpoint_ns = $2 AND checkpoint_id BETWEEN $3 AND $4

-- name: outline
-- Of a thread's newest live root checkpoints, with $4, `last` is the one that so many come before. An anchor's id is a UUID
-- of version 5.
WITH bounds AS MATERIALIZED (
  SELECT checkpoint_id FROM {schema}.harness_checkpoint
  WHERE $4::bigint IS NOT NULL AND thread = $2::text::uuid AND checkpoint_ns = '' AND kind = 0
  ORDER BY checkpoint_id DESC LIMIT 2 OFFSET coalesce($4, 0)
),
b AS MATERIALIZED (
  SELECT (array_agg(checkpoint_id ORDER BY checkpoint_id DESC))[1] AS last, $4::bigint IS NULL AS is_all, count(*) AS n
  FROM bounds
)
SELECT c.rev, c.kind, c.thread::text AS thread, c.checkpoint_ns, c.checkpoint_id, c.parent_id, c.metadata,
  octet_length(c.metadata) + octet_length(c.body) AS size, b.last,
  EXISTS (
    SELECT FROM {schema}.harness_tag t
    WHERE t.thread = c.thread AND t.checkpoint_ns = c.checkpoint_ns AND t.checkpoint_id = c.checkpoint_id
  ) AS is_tagged
FROM b, {schema}.harness_checkpoint c
WHERE c.thread = ANY ($3::text[]::uuid[]) AND c.kind <> 1
  AND (b.is_all OR b.n = 2 AND (
    c.checkpoint_id <= b.last OR c.parent_id <= b.last OR c.kind = 2
    OR octet_length(c.parent_id) = 17 AND get_byte(c.parent_id, 7) >> 4 = 5
  ))
  AND NOT EXISTS (
    SELECT FROM {schema}.harness_thread t
    WHERE cardinality($3::text[]) = 1 AND t.thread = c.thread AND t.expires_at <= $1
  )

-- name: keys_locked
SELECT thread::text AS thread, checkpoint_ns, checkpoint_id
FROM {schema}.harness_checkpoint WHERE thread = ANY ($1::text[]::uuid[])
ORDER BY thread, checkpoint_ns, checkpoint_id FOR UPDATE

-- name: places
SELECT thread::text AS thread, checkpoint_ns, checkpoint_id, NULL::bigint AS arrival
FROM {schema}.harness_checkpoint WHERE thread = ANY ($1::text[]::uuid[])
UNION ALL
SELECT thread::text, checkpoint_ns, checkpoint_id, arrival
FROM {schema}.harness_write WHERE thread = ANY ($1::text[]::uuid[])

-- name: writes
SELECT arrival, thread::text AS thread, checkpoint_ns, checkpoint_id, task_id, task_path, call, parts, body
FROM {schema}.harness_write WHERE thread = ANY ($1::text[]::uuid[]) ORDER BY arrival

-- name: part_sizes
SELECT part_id, octet_length(data) AS size FROM {schema}.harness_part WHERE thread = ANY ($1::text[]::uuid[])

-- name: part_sizes_locked
SELECT part_id, octet_length(data) AS size FROM {schema}.harness_part
WHERE thread = ANY ($1::text[]::uuid[]) ORDER BY thread, part_id FOR UPDATE

-- name: parts
SELECT part_id, data FROM {schema}.harness_part
WHERE thread = ANY ($1::text[]::uuid[]) AND part_id = ANY ($2::bytea[])

-- name: begin_revision
SELECT {schema}.harness_begin($1, $2, $3), set_config('enable_seqscan', 'off', true)

-- name: drop_checkpoints
WITH k AS (
  SELECT u.thread::uuid, u.checkpoint_ns, u.checkpoint_id
  FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS u(thread, checkpoint_ns, checkpoint_id)
),
w AS (
  DELETE FROM {schema}.harness_write w USING k
  WHERE w.thread = k.thread AND w.checkpoint_ns = k.checkpoint_ns AND w.checkpoint_id = k.checkpoint_id
)
DELETE FROM {schema}.harness_checkpoint c USING k
WHERE c.thread = k.thread AND c.checkpoint_ns = k.checkpoint_ns AND c.checkpoint_id = k.checkpoint_id

-- name: drop_writes
DELETE FROM {schema}.harness_write w
USING unnest($1::text[], $2::bytea[], $3::bytea[], $4::bigint[]) AS k(thread, checkpoint_ns, checkpoint_id, arrival)
WHERE w.thread = k.thread::uuid AND w.checkpoint_ns = k.checkpoint_ns AND w.checkpoint_id = k.checkpoint_id
  AND w.arrival = k.arrival

-- name: add_writes
INSERT INTO {schema}.harness_write (call, thread, checkpoint_ns, checkpoint_id, task_id, task_path, parts, body)
SELECT u.call, u.thread::uuid, u.ns, u.id, u.task, u.path, u.parts, u.body
FROM unnest(
  $1::text[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bigint[], $6::bytea[], $7::bytea[], $8::bytea[]
) WITH ORDINALITY AS u(thread, ns, id, task, call, path, parts, body, n)
ORDER BY u.n
ON CONFLICT DO NOTHING

-- name: set_checkpoints
UPDATE {schema}.harness_checkpoint c
SET rev = u.rev, kind = u.kind, parent_id = u.parent_id, run_id = u.run_id, since = u.since,
  reach = u.reach, parts = u.parts, thread_id = u.thread_id, search = NULL, metadata = u.metadata, body = u.body
FROM unnest(
  $1::bigint[], $2::smallint[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bytea[], $8::bytea[], $9::text[],
  $10::bytea[], $11::bytea[], $12::bytea[], $13::bytea[]
) AS u(rev, kind, thread, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, thread_id, metadata, body)
WHERE c.thread = u.thread::uuid AND c.checkpoint_ns = u.checkpoint_ns AND c.checkpoint_id = u.checkpoint_id

-- name: add_checkpoints
INSERT INTO {schema}.harness_checkpoint (
  rev, kind, thread, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, thread_id, metadata, body
)
SELECT u.rev, u.kind, u.thread::uuid, u.checkpoint_ns, u.checkpoint_id, u.parent_id, u.run_id, u.since,
  u.reach, u.parts, u.thread_id, u.metadata, u.body
FROM unnest(
  $1::bigint[], $2::smallint[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bytea[], $8::bytea[], $9::text[],
  $10::bytea[], $11::bytea[], $12::bytea[], $13::bytea[]
) AS u(rev, kind, thread, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, thread_id, metadata, body)
ON CONFLICT DO NOTHING
RETURNING 1

-- name: drop_parts
DELETE FROM {schema}.harness_part WHERE thread = ANY ($1::text[]::uuid[]) AND part_id = ANY ($2::bytea[])

-- name: drop_branches
DELETE FROM {schema}.harness_branch WHERE thread = ANY ($1::text[]::uuid[])

-- name: set_branch
INSERT INTO {schema}.harness_branch (
  created_at, thread, family, source, checkpoint_id, name, thread_id, family_id, source_id
) VALUES ($1, $2::text::uuid, $3::text::uuid, $4::text::uuid, $5, $6, $7, $8, $9)
ON CONFLICT (thread) DO UPDATE SET
  created_at = EXCLUDED.created_at, family = EXCLUDED.family, source = EXCLUDED.source,
  checkpoint_id = EXCLUDED.checkpoint_id, name = EXCLUDED.name, family_id = EXCLUDED.family_id,
  source_id = EXCLUDED.source_id

-- name: no_expiry
DELETE FROM {schema}.harness_thread WHERE thread = ANY ($1::text[]::uuid[])

-- name: tidy
SELECT * FROM {schema}.harness_tidy($1, $2)

-- name: renew_thread
INSERT INTO {schema}.harness_thread VALUES ($1::text::uuid, $2)
ON CONFLICT (thread) DO UPDATE SET expires_at = EXCLUDED.expires_at

-- name: add_events
SELECT {schema}.harness_add_events($1, $2, $3, $4, $5, $6, $7)

-- name: events
SELECT * FROM {schema}.harness_events($1, $2, $3, $4, $5, $6, $7, $8)

-- name: drop_events
DELETE FROM {schema}.harness_event WHERE thread = ANY ($1::text[]::uuid[])

-- name: threads
-- From one thread to the next by the primary key, whatever lies between.
-- The conditions are values and no joins, for which the threads would be put into a hash table, and lose their order.
WITH RECURSIVE t AS (
  (
    SELECT c.thread, c.thread_id FROM {schema}.harness_checkpoint c
    WHERE $2::text IS NULL OR c.thread > $2::text::uuid ORDER BY c.thread LIMIT 1
  )
  UNION ALL
  SELECT n.thread, n.thread_id FROM t CROSS JOIN LATERAL (
    SELECT c.thread, c.thread_id FROM {schema}.harness_checkpoint c WHERE c.thread > t.thread ORDER BY c.thread LIMIT 1
  ) n
)
SELECT coalesce(t.thread_id, convert_to(t.thread::text, 'UTF8')) FROM t
WHERE (SELECT true FROM {schema}.harness_thread h WHERE h.thread = t.thread AND h.expires_at <= $1) IS NULL
  AND (SELECT true FROM {schema}.harness_checkpoint c WHERE c.thread = t.thread AND c.kind = 0 LIMIT 1)
LIMIT $3
