CREATE TABLE {schema}.harness_schema (
  migration integer PRIMARY KEY,
  major integer NOT NULL,
  minor integer NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);

-- Only threads that expire have a row. There is no index on expires_at, so that renewing is a heap-only update.
CREATE TABLE {schema}.harness_thread (
  thread uuid PRIMARY KEY,
  expires_at double precision NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- thread: the thread_id where that is a UUID, else a hash of it, and then thread_id holds its UTF-8.
-- checkpoint_id, parent_id, run_id: 17 bytes for a UUID; they sort as the UTF-8 of the text does.
-- kind: 0 live, 1 hidden, 2 anchor.
-- since, reach: which other rows are needed to read this one: those of the same line from `since` on, and the text of
-- a bytea[] with spans in fives: thread, thread_id, checkpoint_ns, first, last.
-- parts: ids of 16 bytes each.
-- search: what can be filtered by, null where JSON doesn't hold it.
CREATE TABLE {schema}.harness_checkpoint (
  rev bigint NOT NULL,
  kind smallint NOT NULL,
  thread uuid NOT NULL,
  checkpoint_ns bytea NOT NULL,
  checkpoint_id bytea NOT NULL,
  parent_id bytea,
  run_id bytea,
  since bytea,
  reach text,
  parts bytea,
  thread_id bytea,
  search jsonb,
  metadata bytea NOT NULL,
  body bytea NOT NULL,
  PRIMARY KEY (thread, checkpoint_ns, checkpoint_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX harness_checkpoint_order ON {schema}.harness_checkpoint (checkpoint_id);

CREATE INDEX harness_checkpoint_run ON {schema}.harness_checkpoint (run_id) WHERE run_id IS NOT NULL;

-- call: a special write's index, which is negative, or a hash of what a call's regular writes are.
CREATE TABLE {schema}.harness_write (
  arrival bigint GENERATED ALWAYS AS IDENTITY,
  call bigint NOT NULL,
  thread uuid NOT NULL,
  checkpoint_ns bytea NOT NULL,
  checkpoint_id bytea NOT NULL,
  task_id bytea NOT NULL,
  task_path bytea,
  parts bytea,
  body bytea NOT NULL,
  PRIMARY KEY (thread, checkpoint_ns, checkpoint_id, task_id, call)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- thread: the family's, see harness_branch.
CREATE TABLE {schema}.harness_part (
  thread uuid NOT NULL,
  part_id bytea NOT NULL,
  data bytea NOT NULL,
  PRIMARY KEY (thread, part_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- Threads that began as a checkpoint of another, source. A branch that was deleted has no name.
-- family: the thread that all branches of a family come from, under which their parts are stored.
-- thread_id, family_id, source_id: as in harness_checkpoint.
CREATE TABLE {schema}.harness_branch (
  created_at double precision NOT NULL,
  thread uuid PRIMARY KEY,
  family uuid NOT NULL,
  source uuid NOT NULL,
  checkpoint_id bytea NOT NULL,
  name bytea NOT NULL,
  thread_id bytea,
  family_id bytea,
  source_id bytea
);

CREATE INDEX harness_branch_family ON {schema}.harness_branch (family);

CREATE UNIQUE INDEX harness_branch_name ON {schema}.harness_branch (source, name) WHERE name <> '';

CREATE TABLE {schema}.harness_tag (
  thread uuid NOT NULL,
  name bytea NOT NULL,
  checkpoint_ns bytea NOT NULL,
  checkpoint_id bytea NOT NULL,
  PRIMARY KEY (thread, name)
);

-- What is stored is compressed already.
ALTER TABLE {schema}.harness_checkpoint ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE {schema}.harness_write ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE {schema}.harness_part ALTER COLUMN data SET STORAGE EXTERNAL;

-- The functions below do one row after the other, each by its key. Those that are called from outside switch sequential
-- scans off, because a plan that was made when a table was small is kept while it grows. Statements within them see what
-- was committed before each (READ COMMITTED), so a check that waited for a lock is a check of what is there.

-- Returns the thread that a thread's family is named by: its own, unless it is a branch.
CREATE FUNCTION {schema}.harness_family(a_thread uuid) RETURNS uuid
LANGUAGE plpgsql STABLE AS $$
DECLARE
  found_family uuid;
BEGIN
  SELECT b.family INTO found_family FROM {schema}.harness_branch b WHERE b.thread = a_thread;
  RETURN coalesce(found_family, a_thread);
END $$;

-- Raises HS001 if a thread is a branch or has some: it may hold what others need.
CREATE FUNCTION {schema}.harness_check_alone(a_thread uuid) RETURNS void
LANGUAGE plpgsql STABLE AS $$
BEGIN
  PERFORM 1 FROM {schema}.harness_branch b WHERE b.thread = a_thread;
  IF NOT FOUND THEN
    PERFORM 1 FROM {schema}.harness_branch b WHERE b.family = a_thread;
  END IF;
  IF FOUND THEN
    RAISE EXCEPTION 'thread % shares bytes with others of its family', a_thread USING ERRCODE = 'HS001';
  END IF;
END $$;

-- Locks a thread's family until the transaction ends: shared by those that add at a head or add branches, or alone for
-- a revision. Returns the family, which stays that of the thread.
CREATE FUNCTION {schema}.harness_lock(a_thread uuid, a_shared boolean) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
  family uuid := {schema}.harness_family(a_thread);
  before uuid;
BEGIN
  LOOP
    IF a_shared THEN
      PERFORM pg_advisory_xact_lock_shared(hashtextextended(family::text, 1));
    ELSE
      PERFORM pg_advisory_xact_lock(hashtextextended(family::text, 1));
    END IF;
    before := family;
    family := {schema}.harness_family(a_thread);
    EXIT WHEN family = before;
  END LOOP;
  RETURN family;
END $$;

-- Deletes all of a thread; returns how many live checkpoints it had. Repeats until nothing is left: whoever held a
-- row has stored something that leans on it. If that was a branch, nothing is deleted: see harness_check_alone.
CREATE FUNCTION {schema}.harness_drop(a_thread uuid) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  live bigint := 0;
  found_live bigint;
  gone bigint;
  more boolean := true;
BEGIN
  PERFORM {schema}.harness_check_alone(a_thread);
  WHILE more LOOP
    DELETE FROM {schema}.harness_thread WHERE thread = a_thread;
    more := FOUND;
    DELETE FROM {schema}.harness_part WHERE thread = a_thread;
    more := more OR FOUND;
    DELETE FROM {schema}.harness_write WHERE thread = a_thread;
    more := more OR FOUND;
    WITH d AS (DELETE FROM {schema}.harness_checkpoint WHERE thread = a_thread RETURNING kind)
    SELECT count(*), count(*) FILTER (WHERE kind = 0) INTO gone, found_live FROM d;
    more := more OR gone > 0;
    live := live + found_live;
    -- After the checkpoints: who adds one holds what it names.
    DELETE FROM {schema}.harness_tag WHERE thread = a_thread;
    more := more OR FOUND;
  END LOOP;
  PERFORM {schema}.harness_check_alone(a_thread);
  RETURN live;
END $$;

-- Empties a thread that has expired, or raises HS001. One that expires is locked, so that no sweep comes in between.
CREATE FUNCTION {schema}.harness_enter(a_thread uuid, a_now double precision, a_locks boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  expiry double precision;
BEGIN
  SELECT expires_at INTO expiry FROM {schema}.harness_thread WHERE thread = a_thread;
  IF FOUND AND (a_locks OR expiry <= a_now) THEN
    SELECT expires_at INTO expiry FROM {schema}.harness_thread WHERE thread = a_thread FOR UPDATE;
    IF expiry <= a_now THEN
      PERFORM {schema}.harness_drop(a_thread);
    END IF;
  END IF;
END $$;

-- Stores a part, or holds the one that is there until the transaction ends: nobody may find it unused meanwhile. And
-- what says whose family's it is, so that who wants to delete that sees first what has been stored under it.
CREATE FUNCTION {schema}.harness_keep_part(a_thread uuid, a_part_id bytea, a_data bytea) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  which uuid;
BEGIN
  SELECT b.family INTO which FROM {schema}.harness_branch b WHERE b.thread = a_thread FOR KEY SHARE;
  which := coalesce(which, a_thread);
  LOOP
    PERFORM 1 FROM {schema}.harness_part WHERE thread = which AND part_id = a_part_id FOR SHARE;
    EXIT WHEN FOUND;
    INSERT INTO {schema}.harness_part (thread, part_id, data) VALUES (which, a_part_id, a_data)
    ON CONFLICT DO NOTHING;
    EXIT WHEN FOUND;
  END LOOP;
END $$;

CREATE FUNCTION {schema}.harness_head(a_thread uuid, a_ns bytea) RETURNS bytea
LANGUAGE plpgsql STABLE AS $$
DECLARE
  head bytea;
BEGIN
  SELECT h.checkpoint_id INTO head FROM {schema}.harness_checkpoint h
  WHERE h.thread = a_thread AND h.checkpoint_ns = a_ns AND h.kind = 0
  ORDER BY h.checkpoint_id DESC LIMIT 1;
  RETURN head;
END $$;

CREATE FUNCTION {schema}.harness_is_expired(a_thread uuid, a_now double precision) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
  PERFORM 1 FROM {schema}.harness_thread t WHERE t.thread = a_thread AND t.expires_at <= a_now;
  RETURN FOUND;
END $$;

-- Stores one checkpoint; returns 0, or why it is refused: 1 the base is gone, 2 another stands there, 3 the head is
-- another one, `head`. a_head: null for any, empty for none. The base is on the same line, unless a_base_thread is given.
CREATE FUNCTION {schema}.harness_put_one(
  a_now double precision, a_ttl double precision,
  a_thread text, a_ns bytea, a_id bytea, a_parent bytea, a_run bytea, a_rev bigint, a_since bytea, a_reach text,
  a_parts bytea, a_thread_id bytea, a_search text, a_metadata bytea, a_body bytea,
  a_base_thread text, a_base_ns bytea, a_base_id bytea, a_base_rev bigint, a_head bytea,
  OUT status integer, OUT head bytea
)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  which uuid := a_thread::uuid;
  base_thread uuid := coalesce(a_base_thread, a_thread)::uuid;
  base_ns bytea := coalesce(a_base_ns, a_ns);
  found_kind smallint;
  found_rev bigint;
BEGIN
  status := 0;
  IF a_head IS NOT NULL THEN
    -- Neither a revision nor another such put may come in between.
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(a_thread, 1));
    PERFORM 1 FROM {schema}.harness_branch b WHERE b.thread = which;
    IF FOUND THEN
      PERFORM {schema}.harness_lock(which, true);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(a_thread || encode(a_ns, 'hex'), 0));
  END IF;
  PERFORM 1 FROM {schema}.harness_thread t WHERE t.thread = which;
  IF FOUND THEN
    PERFORM {schema}.harness_enter(which, a_now, a_ttl IS NOT NULL);
  END IF;
  IF a_head IS NOT NULL THEN
    head := {schema}.harness_head(which, a_ns);
    IF coalesce(head, '') <> a_head THEN
      status := 3;
    END IF;
  END IF;
  IF status = 0 AND a_base_id IS NOT NULL THEN
    PERFORM 1 FROM {schema}.harness_checkpoint b
    WHERE b.thread = base_thread AND b.checkpoint_ns = base_ns AND b.checkpoint_id = a_base_id
      AND b.rev = a_base_rev
    FOR SHARE;
    IF NOT FOUND THEN
      status := 1;
    ELSIF base_thread <> which THEN
      -- Held, so that it stays in the base's family.
      PERFORM 1 FROM {schema}.harness_branch b WHERE b.thread = which FOR KEY SHARE;
      IF {schema}.harness_family(which) <> {schema}.harness_family(base_thread)
        OR {schema}.harness_is_expired(base_thread, a_now)
      THEN
        status := 1;
      END IF;
    END IF;
  END IF;
  LOOP
    IF status = 0 THEN
      INSERT INTO {schema}.harness_checkpoint (
        rev, kind, thread, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, thread_id, search,
        metadata, body
      ) VALUES (
        a_rev, 0, which, a_ns, a_id, a_parent, a_run, a_since, a_reach, a_parts, a_thread_id,
        a_search::jsonb, a_metadata, a_body
      ) ON CONFLICT DO NOTHING;
      EXIT WHEN FOUND;
    END IF;
    SELECT h.kind, h.rev INTO found_kind, found_rev FROM {schema}.harness_checkpoint h
    WHERE h.thread = which AND h.checkpoint_ns = a_ns AND h.checkpoint_id = a_id;
    IF FOUND THEN
      IF found_kind = 0 AND found_rev = a_rev THEN
        status := 0;
      ELSIF status = 0 THEN
        status := 2;
      END IF;
      EXIT;
    END IF;
    -- What stood there has gone in the meantime, unless it was refused before.
    EXIT WHEN status <> 0;
  END LOOP;
  IF status = 0 AND a_ttl IS NOT NULL THEN
    INSERT INTO {schema}.harness_thread VALUES (which, a_now + a_ttl)
    ON CONFLICT (thread) DO UPDATE SET expires_at = EXCLUDED.expires_at;
  END IF;
END $$;

-- Stores checkpoints and their parts, p_, each of the checkpoint p_call; returns those that are refused.
CREATE FUNCTION {schema}.harness_put(
  a_now double precision, a_ttl double precision,
  a_thread text[], a_ns bytea[], a_id bytea[], a_parent bytea[], a_run bytea[], a_rev bigint[], a_since bytea[],
  a_reach text[], a_parts bytea[], a_thread_id bytea[], a_search text[], a_metadata bytea[], a_body bytea[],
  a_base_thread text[], a_base_ns bytea[], a_base_id bytea[], a_base_rev bigint[], a_head bytea[],
  p_call integer[], p_id bytea[], p_data bytea[]
) RETURNS TABLE (n integer, status integer, head bytea)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  c record;
  p record;
  refused integer[] := '{}';
BEGIN
  FOR c IN
    SELECT * FROM unnest(
      a_thread, a_ns, a_id, a_parent, a_run, a_rev, a_since, a_reach, a_parts, a_thread_id, a_search, a_metadata, a_body,
      a_base_thread, a_base_ns, a_base_id, a_base_rev, a_head
    ) WITH ORDINALITY AS u(
      thread, ns, id, parent, run, rev, since, reach, parts, thread_id, search, metadata, body,
      base_thread, base_ns, base_id, base_rev, head, n
    )
  LOOP
    SELECT o.status, o.head INTO status, head FROM {schema}.harness_put_one(
      a_now, a_ttl, c.thread, c.ns, c.id, c.parent, c.run, c.rev, c.since, c.reach, c.parts, c.thread_id, c.search,
      c.metadata, c.body, c.base_thread, c.base_ns, c.base_id, c.base_rev, c.head
    ) o;
    IF status <> 0 THEN
      n := c.n;
      refused := refused || n;
      RETURN NEXT;
    END IF;
  END LOOP;
  IF cardinality(p_call) > 0 THEN
    FOR p IN SELECT * FROM unnest(p_call, p_id, p_data) AS u(call, id, data) LOOP
      IF p.call <> ALL (refused) THEN
        PERFORM {schema}.harness_keep_part(a_thread[p.call]::uuid, p.id, p.data);
      END IF;
    END LOOP;
  END IF;
END $$;

-- Stores one row of writes. A special one replaces its predecessor; of equal regular ones the first stays.
CREATE FUNCTION {schema}.harness_put_write(
  a_now double precision, a_ttl double precision,
  a_thread text, a_ns bytea, a_id bytea, a_task bytea, a_call bigint, a_path bytea, a_parts bytea, a_body bytea
) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  which uuid := a_thread::uuid;
BEGIN
  PERFORM 1 FROM {schema}.harness_thread t WHERE t.thread = which;
  IF FOUND THEN
    PERFORM {schema}.harness_enter(which, a_now, a_ttl IS NOT NULL);
  END IF;
  IF a_ttl IS NOT NULL THEN
    INSERT INTO {schema}.harness_thread VALUES (which, a_now + a_ttl)
    ON CONFLICT (thread) DO UPDATE SET expires_at = EXCLUDED.expires_at;
  END IF;
  IF a_call < 0 THEN
    INSERT INTO {schema}.harness_write (call, thread, checkpoint_ns, checkpoint_id, task_id, task_path, parts, body)
    VALUES (a_call, which, a_ns, a_id, a_task, a_path, a_parts, a_body)
    ON CONFLICT (thread, checkpoint_ns, checkpoint_id, task_id, call)
    DO UPDATE SET arrival = DEFAULT, task_path = EXCLUDED.task_path, parts = EXCLUDED.parts, body = EXCLUDED.body;
  ELSE
    INSERT INTO {schema}.harness_write (call, thread, checkpoint_ns, checkpoint_id, task_id, task_path, parts, body)
    VALUES (a_call, which, a_ns, a_id, a_task, a_path, a_parts, a_body)
    ON CONFLICT DO NOTHING;
  END IF;
END $$;

-- Stores rows of writes, and parts.
CREATE FUNCTION {schema}.harness_put_writes(
  a_now double precision, a_ttl double precision,
  a_thread text[], a_ns bytea[], a_id bytea[], a_task bytea[], a_call bigint[], a_path bytea[], a_parts bytea[],
  a_body bytea[],
  p_thread text[], p_id bytea[], p_data bytea[]
) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
BEGIN
  PERFORM {schema}.harness_put_write(a_now, a_ttl, u.thread, u.ns, u.id, u.task, u.call, u.path, u.parts, u.body)
  FROM unnest(a_thread, a_ns, a_id, a_task, a_call, a_path, a_parts, a_body)
    AS u(thread, ns, id, task, call, path, parts, body);
  IF cardinality(p_thread) > 0 THEN
    PERFORM {schema}.harness_keep_part(u.thread::uuid, u.id, u.data)
    FROM unnest(p_thread, p_id, p_data) AS u(thread, id, data);
  END IF;
END $$;

-- What the reading functions return. what: 0 a checkpoint, 1 a row that is needed to read one, 2 a write, 3 a part.
-- number: rev or call. task: the task_id, or a part's id. note: metadata or task_path.
CREATE TYPE {schema}.harness_item AS (
  what integer, thread_id bytea, checkpoint_ns bytea, checkpoint_id bytea, kind integer, parent_id bytea, run_id bytea,
  number bigint, since bytea, reach text, parts bytea, task bytea, note bytea, body bytea
);

-- Returns the rows of one line from a_first to a_last, but those in a_but.
CREATE FUNCTION {schema}.harness_span(
  a_thread uuid, a_thread_id bytea, a_ns bytea, a_first bytea, a_last bytea, a_but bytea[]
) RETURNS SETOF {schema}.harness_item
LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN QUERY
  SELECT 1, a_thread_id, a_ns, c.checkpoint_id, NULL::integer, NULL::bytea, NULL::bytea, NULL::bigint, NULL::bytea,
    NULL::text, NULL::bytea, NULL::bytea, NULL::bytea, c.body
  FROM {schema}.harness_checkpoint c
  WHERE c.thread = a_thread AND c.checkpoint_ns = a_ns AND c.checkpoint_id BETWEEN a_first AND a_last
    AND c.checkpoint_id <> ALL (a_but);
END $$;

-- Returns the writes of one checkpoint in order of arrival, and their parts.
CREATE FUNCTION {schema}.harness_writes(a_thread uuid, a_thread_id bytea, a_ns bytea, a_id bytea)
RETURNS SETOF {schema}.harness_item
LANGUAGE plpgsql STABLE AS $$
DECLARE
  w record;
  named bytea := '';
BEGIN
  FOR w IN
    SELECT * FROM {schema}.harness_write h
    WHERE h.thread = a_thread AND h.checkpoint_ns = a_ns AND h.checkpoint_id = a_id
    ORDER BY h.arrival
  LOOP
    RETURN NEXT ROW(
      2, a_thread_id, a_ns, a_id, NULL, NULL, NULL, w.call, NULL, NULL, w.parts, w.task_id, w.task_path, w.body
    )::{schema}.harness_item;
    named := named || coalesce(w.parts, '');
  END LOOP;
  IF length(named) > 0 THEN
    RETURN QUERY SELECT * FROM {schema}.harness_parts(a_thread, named);
  END IF;
END $$;

-- Returns parts of a thread's family, or of its own, from before it was a branch.
CREATE FUNCTION {schema}.harness_parts(a_thread uuid, a_parts bytea) RETURNS SETOF {schema}.harness_item
LANGUAGE plpgsql STABLE AS $$
DECLARE
  family uuid := {schema}.harness_family(a_thread);
BEGIN
  RETURN QUERY
  SELECT 3, NULL::bytea, NULL::bytea, NULL::bytea, NULL::integer, NULL::bytea, NULL::bytea, NULL::bigint, NULL::bytea,
    NULL::text, NULL::bytea, p.part_id, NULL::bytea, p.data
  FROM {schema}.harness_part p
  WHERE p.thread IN (family, a_thread) AND p.part_id = ANY (
    ARRAY(SELECT substring(a_parts FROM i FOR 16) FROM generate_series(1, length(a_parts), 16) AS i)
  );
END $$;

-- Returns the spans of other rows that one needs, in fives, those of other lines included.
CREATE FUNCTION {schema}.harness_reach(a_reach text) RETURNS SETOF {schema}.harness_item
LANGUAGE plpgsql STABLE AS $$
DECLARE
  spans bytea[] := a_reach::bytea[];
BEGIN
  FOR i IN 1 .. coalesce(cardinality(spans), 0) BY 5 LOOP
    RETURN QUERY SELECT * FROM {schema}.harness_span(
      encode(spans[i], 'hex')::uuid, spans[i + 1], spans[i + 2], spans[i + 3], spans[i + 4], '{}'
    );
  END LOOP;
END $$;

-- Returns a checkpoint, by id or the latest live one, with its writes and all that is needed to read it; only key, rev
-- and writes where it is the one that the caller knows. With a_expired, also one of a thread that has expired.
CREATE FUNCTION {schema}.harness_get(
  a_now double precision, a_thread text, a_ns bytea, a_id bytea, a_known_id bytea, a_known_rev bigint,
  a_expired boolean
) RETURNS SETOF {schema}.harness_item
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
DECLARE
  c record;
  which uuid := a_thread::uuid;
  thread_id bytea;
  known boolean;
BEGIN
  IF a_id IS NULL THEN
    SELECT * INTO c FROM {schema}.harness_checkpoint h
    WHERE h.thread = which AND h.checkpoint_ns = a_ns AND h.kind = 0
    ORDER BY h.checkpoint_id DESC LIMIT 1;
  ELSE
    SELECT * INTO c FROM {schema}.harness_checkpoint h
    WHERE h.thread = which AND h.checkpoint_ns = a_ns AND h.checkpoint_id = a_id AND h.kind IN (0, 2);
  END IF;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF NOT a_expired THEN
    PERFORM 1 FROM {schema}.harness_thread t WHERE t.thread = which AND t.expires_at <= a_now;
    IF FOUND THEN
      RETURN;
    END IF;
  END IF;
  thread_id := coalesce(c.thread_id, convert_to(which::text, 'UTF8'));
  known := coalesce(c.checkpoint_id = a_known_id AND c.rev = a_known_rev, false);
  IF known THEN
    c.since := NULL;
    c.reach := NULL;
    c.parts := NULL;
    c.metadata := NULL;
    c.body := NULL;
  END IF;
  RETURN NEXT ROW(
    0, thread_id, a_ns, c.checkpoint_id, c.kind::integer, c.parent_id, c.run_id, c.rev, c.since, c.reach, c.parts, NULL,
    c.metadata, c.body
  )::{schema}.harness_item;
  RETURN QUERY SELECT * FROM {schema}.harness_writes(which, thread_id, a_ns, c.checkpoint_id);
  IF c.since IS NOT NULL THEN
    RETURN QUERY SELECT * FROM {schema}.harness_span(
      which, thread_id, a_ns, c.since, c.checkpoint_id, ARRAY[c.checkpoint_id]
    );
  END IF;
  IF c.reach IS NOT NULL THEN
    RETURN QUERY SELECT * FROM {schema}.harness_reach(c.reach);
  END IF;
  IF c.parts IS NOT NULL THEN
    RETURN QUERY SELECT * FROM {schema}.harness_parts(which, c.parts);
  END IF;
END $$;

-- Returns the next a_size live checkpoints, newest id first, with their writes and all that is needed to read them.
CREATE FUNCTION {schema}.harness_scan(
  a_now double precision, a_size integer, a_thread text, a_ns bytea, a_id bytea, a_before bytea,
  a_after bytea, a_after_thread bytea, a_after_ns bytea, a_search text
) RETURNS SETOF {schema}.harness_item
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
DECLARE
  c record;
  s record;
  which uuid := a_thread::uuid;
  wanted jsonb := a_search::jsonb;
  -- No id sorts as high as this.
  before bytea := coalesce(a_before, decode('ff', 'hex'));
  after bytea := coalesce(a_after, decode('ff', 'hex'));
  chosen refcursor;
  thread_id bytea;
  threads uuid[] := '{}';
  thread_ids bytea[] := '{}';
  nss bytea[] := '{}';
  ids bytea[] := '{}';
  sinces bytea[] := '{}';
  line record;
  low bytea;
BEGIN
  IF which IS NOT NULL AND a_ns IS NOT NULL THEN
    PERFORM 1 FROM {schema}.harness_thread t WHERE t.thread = which AND t.expires_at <= a_now;
    IF FOUND THEN
      RETURN;
    END IF;
    OPEN chosen FOR
      SELECT h.* FROM {schema}.harness_checkpoint h
      WHERE h.thread = which AND h.checkpoint_ns = a_ns AND h.kind = 0
        AND h.checkpoint_id < before AND h.checkpoint_id < after
        AND (a_id IS NULL OR h.checkpoint_id = a_id)
        AND (wanted IS NULL OR h.search IS NULL OR h.search @> wanted)
      ORDER BY h.checkpoint_id DESC LIMIT a_size;
  ELSIF which IS NOT NULL THEN
    PERFORM 1 FROM {schema}.harness_thread t WHERE t.thread = which AND t.expires_at <= a_now;
    IF FOUND THEN
      RETURN;
    END IF;
    OPEN chosen FOR
      WITH k AS MATERIALIZED (
        SELECT h.checkpoint_ns, h.checkpoint_id FROM {schema}.harness_checkpoint h
        WHERE h.thread = which AND h.kind = 0
          AND h.checkpoint_id < before
          AND (h.checkpoint_id < after OR (h.checkpoint_id = after AND h.checkpoint_ns > a_after_ns))
          AND (a_id IS NULL OR h.checkpoint_id = a_id)
          AND (wanted IS NULL OR h.search IS NULL OR h.search @> wanted)
        ORDER BY h.checkpoint_id DESC, h.checkpoint_ns LIMIT a_size
      )
      SELECT h.* FROM k CROSS JOIN LATERAL (
        SELECT * FROM {schema}.harness_checkpoint i
        WHERE i.thread = which AND i.checkpoint_ns = k.checkpoint_ns AND i.checkpoint_id = k.checkpoint_id
      ) h
      ORDER BY h.checkpoint_id DESC, h.checkpoint_ns;
  ELSIF a_id IS NOT NULL THEN
    OPEN chosen FOR
      SELECT h.* FROM {schema}.harness_checkpoint h
      WHERE h.checkpoint_id = a_id AND h.kind = 0 AND h.checkpoint_id < before
        AND (a_ns IS NULL OR h.checkpoint_ns = a_ns)
        AND (a_after IS NULL OR h.checkpoint_id < a_after OR h.checkpoint_id = a_after
          AND (coalesce(h.thread_id, convert_to(h.thread::text, 'UTF8')), h.checkpoint_ns) > (a_after_thread, a_after_ns))
        AND (wanted IS NULL OR h.search IS NULL OR h.search @> wanted)
        AND NOT EXISTS (SELECT FROM {schema}.harness_thread t WHERE t.thread = h.thread AND t.expires_at <= a_now)
      ORDER BY coalesce(h.thread_id, convert_to(h.thread::text, 'UTF8')), h.checkpoint_ns LIMIT a_size;
  ELSE
    OPEN chosen FOR
      SELECT h.* FROM {schema}.harness_checkpoint h
      WHERE h.kind = 0 AND h.checkpoint_id < before AND h.checkpoint_id <= after
        AND (a_ns IS NULL OR h.checkpoint_ns = a_ns)
        AND (a_after IS NULL OR h.checkpoint_id < a_after
          OR (coalesce(h.thread_id, convert_to(h.thread::text, 'UTF8')), h.checkpoint_ns) > (a_after_thread, a_after_ns))
        AND (wanted IS NULL OR h.search IS NULL OR h.search @> wanted)
        AND NOT EXISTS (SELECT FROM {schema}.harness_thread t WHERE t.thread = h.thread AND t.expires_at <= a_now)
      ORDER BY h.checkpoint_id DESC, coalesce(h.thread_id, convert_to(h.thread::text, 'UTF8')), h.checkpoint_ns
      LIMIT a_size;
  END IF;
  LOOP
    FETCH chosen INTO c;
    EXIT WHEN NOT FOUND;
    thread_id := coalesce(c.thread_id, convert_to(c.thread::text, 'UTF8'));
    RETURN NEXT ROW(
      0, thread_id, c.checkpoint_ns, c.checkpoint_id, c.kind::integer, c.parent_id, c.run_id, c.rev, c.since, c.reach,
      c.parts, NULL, c.metadata, c.body
    )::{schema}.harness_item;
    RETURN QUERY SELECT * FROM {schema}.harness_writes(c.thread, thread_id, c.checkpoint_ns, c.checkpoint_id);
    IF c.reach IS NOT NULL THEN
      RETURN QUERY SELECT * FROM {schema}.harness_reach(c.reach);
    END IF;
    IF c.parts IS NOT NULL THEN
      RETURN QUERY SELECT * FROM {schema}.harness_parts(c.thread, c.parts);
    END IF;
    threads := threads || c.thread;
    thread_ids := thread_ids || thread_id;
    nss := nss || c.checkpoint_ns;
    ids := ids || c.checkpoint_id;
    sinces := sinces || coalesce(c.since, c.checkpoint_id);
  END LOOP;
  CLOSE chosen;
  -- Each line's spans, merged: they come with the highest end first.
  FOR line IN
    SELECT u.thread, u.thread_id, u.ns, array_agg(u.id) AS ids
    FROM unnest(threads, thread_ids, nss, ids) AS u(thread, thread_id, ns, id) GROUP BY 1, 2, 3
  LOOP
    low := NULL;
    FOR s IN
      SELECT u.since AS first, u.id AS last FROM unnest(threads, nss, sinces, ids) AS u(thread, ns, since, id)
      WHERE u.thread = line.thread AND u.ns = line.ns AND u.since < u.id ORDER BY u.id DESC
    LOOP
      CONTINUE WHEN low <= s.first;
      RETURN QUERY SELECT * FROM {schema}.harness_span(
        line.thread, line.thread_id, line.ns, s.first, least(s.last, coalesce(low, s.last)), line.ids
      );
      low := s.first;
    END LOOP;
  END LOOP;
END $$;

-- Returns the records of a thread's family, oldest first.
CREATE FUNCTION {schema}.harness_branches(a_thread text) RETURNS SETOF {schema}.harness_branch
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
BEGIN
  RETURN QUERY
  SELECT b.* FROM {schema}.harness_branch b WHERE b.family = {schema}.harness_family(a_thread::uuid)
  ORDER BY b.created_at, coalesce(b.thread_id, convert_to(b.thread::text, 'UTF8'));
END $$;

-- Tells whether a live checkpoint of the same line has this one as its parent.
CREATE FUNCTION {schema}.harness_has_child(a_now double precision, a_thread text, a_ns bytea, a_id bytea) RETURNS boolean
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
BEGIN
  PERFORM 1 FROM {schema}.harness_checkpoint c
  WHERE c.thread = a_thread::uuid AND c.checkpoint_ns = a_ns AND c.checkpoint_id > a_id AND c.kind = 0
    AND c.parent_id = a_id
  LIMIT 1;
  RETURN FOUND AND NOT {schema}.harness_is_expired(a_thread::uuid, a_now);
END $$;

-- Returns a thread's namespaces that have a live checkpoint: those with a colon only if it is newer than a_since.
CREATE FUNCTION {schema}.harness_namespaces(a_now double precision, a_thread text, a_since bytea) RETURNS SETOF bytea
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
DECLARE
  which uuid := a_thread::uuid;
  ns bytea;
  head bytea;
BEGIN
  IF {schema}.harness_is_expired(which, a_now) THEN
    RETURN;
  END IF;
  SELECT c.checkpoint_ns INTO ns FROM {schema}.harness_checkpoint c
  WHERE c.thread = which ORDER BY c.checkpoint_ns LIMIT 1;
  WHILE ns IS NOT NULL LOOP
    head := {schema}.harness_head(which, ns);
    IF head > a_since OR (head IS NOT NULL AND position(':'::bytea IN ns) = 0) THEN
      RETURN NEXT ns;
    END IF;
    SELECT c.checkpoint_ns INTO ns FROM {schema}.harness_checkpoint c
    WHERE c.thread = which AND c.checkpoint_ns > ns ORDER BY c.checkpoint_ns LIMIT 1;
  END LOOP;
END $$;

-- Gives a name to a live checkpoint, which stays until that is done; false if it isn't there.
CREATE FUNCTION {schema}.harness_set_tag(a_now double precision, a_thread text, a_name bytea, a_ns bytea, a_id bytea)
RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  which uuid := a_thread::uuid;
BEGIN
  PERFORM 1 FROM {schema}.harness_checkpoint c
  WHERE c.thread = which AND c.checkpoint_ns = a_ns AND c.checkpoint_id = a_id AND c.kind = 0
  FOR SHARE;
  IF NOT FOUND OR {schema}.harness_is_expired(which, a_now) THEN
    RETURN false;
  END IF;
  INSERT INTO {schema}.harness_tag VALUES (which, a_name, a_ns, a_id)
  ON CONFLICT (thread, name)
  DO UPDATE SET checkpoint_ns = EXCLUDED.checkpoint_ns, checkpoint_id = EXCLUDED.checkpoint_id;
  RETURN true;
END $$;

-- Deletes a thread; returns how many live checkpoints it had.
CREATE FUNCTION {schema}.harness_delete(a_now double precision, a_thread text) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  which uuid := a_thread::uuid;
BEGIN
  PERFORM {schema}.harness_check_alone(which);
  PERFORM {schema}.harness_lock(which, false);
  PERFORM {schema}.harness_enter(which, a_now, true);
  RETURN {schema}.harness_drop(which);
END $$;

-- Deletes some of the threads that have expired, in order of their keys after a_after, and skips those that somebody
-- is writing to, or that share bytes with others of their family. Returns them.
CREATE FUNCTION {schema}.harness_sweep(a_now double precision, a_after text, a_size integer) RETURNS SETOF text
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  which uuid;
BEGIN
  FOR which IN
    SELECT t.thread FROM {schema}.harness_thread t
    WHERE t.expires_at <= a_now AND t.thread > a_after::uuid
      AND NOT EXISTS (SELECT FROM {schema}.harness_branch b WHERE b.thread = t.thread)
      AND NOT EXISTS (SELECT FROM {schema}.harness_branch b WHERE b.family = t.thread)
    ORDER BY t.thread LIMIT a_size FOR UPDATE SKIP LOCKED
  LOOP
    BEGIN
      PERFORM {schema}.harness_drop(which);
    EXCEPTION WHEN SQLSTATE 'HS001' THEN
      -- It has got a branch meanwhile.
      CONTINUE;
    END;
    RETURN NEXT which::text;
  END LOOP;
END $$;

-- Begins a revision, which is alone with the thread's family until the transaction ends, but for plain puts and writes.
-- Returns false where nothing is to be done: with a_expired, if the thread hasn't expired.
CREATE FUNCTION {schema}.harness_begin(a_now double precision, a_thread text, a_expired boolean) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  which uuid := a_thread::uuid;
  root uuid := {schema}.harness_lock(which, false);
BEGIN
  -- Nobody may renew it, or empty it, while it is changed.
  PERFORM 1 FROM {schema}.harness_thread t WHERE t.thread = which FOR UPDATE;
  IF a_expired AND NOT {schema}.harness_is_expired(which, a_now) THEN
    RETURN false;
  END IF;
  PERFORM 1 FROM {schema}.harness_branch b WHERE b.family = root;
  IF NOT FOUND THEN
    PERFORM {schema}.harness_enter(which, a_now, true);
  END IF;
  RETURN true;
END $$;

-- Ends a revision: tags go with what they name, and threads of which nothing is left, without the parts that a_parts
-- names if that is so of all. Returns those of the threads that aren't empty.
CREATE FUNCTION {schema}.harness_tidy(a_threads text[], a_parts bytea[]) RETURNS SETOF text
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  which uuid;
  expires boolean;
  empty boolean := true;
BEGIN
  FOREACH which IN ARRAY a_threads::uuid[] LOOP
    -- If somebody holds it, it won't be empty.
    PERFORM 1 FROM {schema}.harness_thread t WHERE t.thread = which FOR UPDATE SKIP LOCKED;
    expires := FOUND;
    DELETE FROM {schema}.harness_tag t
    WHERE t.thread = which AND NOT EXISTS (
      SELECT FROM {schema}.harness_checkpoint c
      WHERE c.thread = which AND c.checkpoint_ns = t.checkpoint_ns AND c.checkpoint_id = t.checkpoint_id AND c.kind = 0
    );
    PERFORM 1 FROM {schema}.harness_checkpoint c WHERE c.thread = which LIMIT 1;
    IF NOT FOUND THEN
      PERFORM 1 FROM {schema}.harness_write w WHERE w.thread = which LIMIT 1;
    END IF;
    IF FOUND THEN
      empty := false;
      RETURN NEXT which::text;
    ELSIF expires THEN
      DELETE FROM {schema}.harness_thread t WHERE t.thread = which;
    END IF;
  END LOOP;
  IF empty THEN
    DELETE FROM {schema}.harness_part p WHERE p.thread = ANY (a_threads::uuid[]) AND p.part_id = ANY (a_parts);
  END IF;
END $$;

-- Stores checkpoints, a_, all or none, if others, b_, are there, and the heads of lines, h_, are what they should be;
-- with writes, w_, and the record of a branch, r_. Returns 0, or why it is refused: 1 a base is gone, 3 the head number
-- `n` is another one, 4 the branch's thread is there already, 5 its name is taken by another thread. `note` is that
-- head or that thread. Raises HS002 where something else stands under one of the keys.
CREATE FUNCTION {schema}.harness_graft(
  a_now double precision, a_ttl double precision,
  a_thread text[], a_ns bytea[], a_id bytea[], a_parent bytea[], a_run bytea[], a_rev bigint[], a_since bytea[],
  a_reach text[], a_parts bytea[], a_thread_id bytea[], a_search text[], a_metadata bytea[], a_body bytea[],
  b_thread text[], b_ns bytea[], b_id bytea[], b_rev bigint[],
  h_thread text[], h_ns bytea[], h_id bytea[],
  w_thread text[], w_ns bytea[], w_id bytea[], w_task bytea[], w_call bigint[], w_path bytea[], w_parts bytea[],
  w_body bytea[],
  r_created_at double precision, r_thread text, r_family text, r_source text, r_checkpoint_id bytea, r_name bytea,
  r_thread_id bytea, r_family_id bytea, r_source_id bytea,
  OUT status integer, OUT note bytea, OUT n integer
)
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  branch uuid := r_thread::uuid;
  root uuid;
  which uuid;
  item record;
  added integer;
BEGIN
  status := 0;
  -- No revision may come in between, nor another one that is to add at the same head, or the same branch.
  FOR which IN SELECT DISTINCT u::uuid FROM unnest(a_thread || h_thread || r_source) AS u WHERE u <> '' ORDER BY 1 LOOP
    IF which IS DISTINCT FROM branch THEN
      PERFORM {schema}.harness_lock(which, true);
    ELSE
      PERFORM pg_advisory_xact_lock(hashtextextended(branch::text, 1));
    END IF;
  END LOOP;
  FOR item IN SELECT * FROM unnest(h_thread, h_ns) AS u(thread, ns) ORDER BY u.thread, u.ns LOOP
    PERFORM pg_advisory_xact_lock(hashtextextended(item.thread || encode(item.ns, 'hex'), 0));
  END LOOP;
  FOR which IN SELECT DISTINCT u::uuid FROM unnest(a_thread || h_thread) AS u ORDER BY 1 LOOP
    IF which IS DISTINCT FROM branch THEN
      PERFORM {schema}.harness_enter(which, a_now, a_ttl IS NOT NULL);
    END IF;
  END LOOP;
  LOOP
    PERFORM 1 FROM unnest(a_thread, a_ns, a_id, a_rev) AS u(thread, ns, id, rev)
    WHERE {schema}.harness_is_expired(u.thread::uuid, a_now) OR NOT EXISTS (
      SELECT FROM {schema}.harness_checkpoint c
      WHERE c.thread = u.thread::uuid AND c.checkpoint_ns = u.ns AND c.checkpoint_id = u.id AND c.rev = u.rev
    );
    IF NOT FOUND THEN
      -- It has been sent before.
      RETURN;
    END IF;
    FOR item IN SELECT * FROM unnest(h_thread, h_ns, h_id) WITH ORDINALITY AS u(thread, ns, id, n) LOOP
      note := {schema}.harness_head(item.thread::uuid, item.ns);
      IF coalesce(note, '') <> item.id THEN
        status := 3;
        n := item.n;
        RETURN;
      END IF;
    END LOOP;
    IF branch IS NOT NULL THEN
      PERFORM 1 FROM {schema}.harness_checkpoint c WHERE c.thread = branch
      UNION ALL SELECT 1 FROM {schema}.harness_write w WHERE w.thread = branch
      UNION ALL SELECT 1 FROM {schema}.harness_branch b WHERE b.thread = branch OR b.family = branch
      LIMIT 1;
      IF FOUND THEN
        status := 4;
        RETURN;
      END IF;
      SELECT coalesce(b.thread_id, convert_to(b.thread::text, 'UTF8')) INTO note
      FROM {schema}.harness_branch b WHERE b.source = r_source::uuid AND b.name = r_name AND b.name <> '';
      IF FOUND THEN
        status := 5;
        RETURN;
      END IF;
    END IF;
    root := {schema}.harness_family(coalesce(r_source, a_thread[1])::uuid);
    FOR item IN
      SELECT * FROM unnest(b_thread, b_ns, b_id, b_rev) AS u(thread, ns, id, rev) ORDER BY u.thread, u.ns, u.id
    LOOP
      PERFORM 1 FROM {schema}.harness_checkpoint c
      WHERE c.thread = item.thread::uuid AND c.checkpoint_ns = item.ns AND c.checkpoint_id = item.id
        AND c.rev = item.rev
      FOR SHARE;
      IF NOT FOUND OR {schema}.harness_is_expired(item.thread::uuid, a_now)
        OR {schema}.harness_family(item.thread::uuid) <> root
      THEN
        status := 1;
        RETURN;
      END IF;
    END LOOP;
    -- Parts that writes name: who replaces a write doesn't change the base.
    FOR item IN
      SELECT DISTINCT substring(u FROM i FOR 16) AS part
      FROM unnest(w_parts) AS u, generate_series(1, length(u), 16) AS i ORDER BY 1
    LOOP
      PERFORM 1 FROM {schema}.harness_part p
      WHERE p.thread = ANY (b_thread::uuid[] || root) AND p.part_id = item.part FOR SHARE;
      IF NOT FOUND THEN
        status := 1;
        RETURN;
      END IF;
    END LOOP;
    EXIT WHEN branch IS NULL;
    IF root <> r_family::uuid THEN
      -- The source is another one's branch than it was, or nobody's.
      status := 1;
      RETURN;
    END IF;
    INSERT INTO {schema}.harness_branch (
      created_at, thread, family, source, checkpoint_id, name, thread_id, family_id, source_id
    ) VALUES (
      r_created_at, branch, r_family::uuid, r_source::uuid, r_checkpoint_id, r_name, r_thread_id, r_family_id, r_source_id
    ) ON CONFLICT DO NOTHING;
    -- Else another one was quicker.
    EXIT WHEN FOUND;
  END LOOP;
  INSERT INTO {schema}.harness_checkpoint (
    rev, kind, thread, checkpoint_ns, checkpoint_id, parent_id, run_id, since, reach, parts, thread_id, search,
    metadata, body
  )
  SELECT u.rev, 0, u.thread::uuid, u.ns, u.id, u.parent, u.run, u.since, u.reach, u.parts, u.thread_id, u.search::jsonb,
    u.metadata, u.body
  FROM unnest(
    a_thread, a_ns, a_id, a_parent, a_run, a_rev, a_since, a_reach, a_parts, a_thread_id, a_search, a_metadata, a_body
  ) AS u(thread, ns, id, parent, run, rev, since, reach, parts, thread_id, search, metadata, body)
  ON CONFLICT DO NOTHING;
  GET DIAGNOSTICS added = ROW_COUNT;
  IF added < cardinality(a_id) THEN
    RAISE EXCEPTION 'another checkpoint stands under this key' USING ERRCODE = 'HS002';
  END IF;
  PERFORM {schema}.harness_put_write(a_now, NULL, u.thread, u.ns, u.id, u.task, u.call, u.path, u.parts, u.body)
  FROM unnest(w_thread, w_ns, w_id, w_task, w_call, w_path, w_parts, w_body)
    AS u(thread, ns, id, task, call, path, parts, body);
  IF a_ttl IS NOT NULL THEN
    INSERT INTO {schema}.harness_thread SELECT DISTINCT u::uuid, a_now + a_ttl FROM unnest(a_thread) AS u ORDER BY 1
    ON CONFLICT (thread) DO UPDATE SET expires_at = EXCLUDED.expires_at;
  END IF;
END $$;

