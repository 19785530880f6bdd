-- What happened inside the steps that ran from root checkpoints, which need not be there. event_id: 16 bytes.
CREATE TABLE {schema}.harness_event (
  thread uuid NOT NULL,
  checkpoint_id bytea NOT NULL,
  event_id bytea NOT NULL,
  head bytea NOT NULL,
  body bytea NOT NULL,
  PRIMARY KEY (thread, checkpoint_id, event_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

ALTER TABLE {schema}.harness_event ALTER COLUMN body SET STORAGE EXTERNAL;

-- Stores events; those that are there already stay as they are.
CREATE FUNCTION {schema}.harness_add_events(
  a_now double precision, a_ttl double precision,
  a_thread text[], a_id bytea[], a_event bytea[], a_head bytea[], a_body bytea[]
) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  which uuid;
BEGIN
  -- In one order everywhere, for some of them lock their threads.
  FOR which IN SELECT DISTINCT u::uuid FROM unnest(a_thread) AS u ORDER BY 1 LOOP
    PERFORM 1 FROM {schema}.harness_thread t WHERE t.thread = which;
    IF FOUND THEN
      PERFORM {schema}.harness_enter(which, a_now, a_ttl IS NOT NULL);
    END IF;
    IF a_ttl IS NOT NULL THEN
      INSERT INTO {schema}.harness_thread VALUES (which, a_now + a_ttl)
      ON CONFLICT (thread) DO UPDATE SET expires_at = EXCLUDED.expires_at;
    END IF;
  END LOOP;
  INSERT INTO {schema}.harness_event (thread, checkpoint_id, event_id, head, body)
  SELECT u.thread::uuid, u.id, u.event, u.head, u.body
  FROM unnest(a_thread, a_id, a_event, a_head, a_body) AS u(thread, id, event, head, body)
  ORDER BY 1, 2, 3
  ON CONFLICT DO NOTHING;
END $$;

-- Returns a thread's next events after one, of some checkpoints where a_ids isn't null.
CREATE FUNCTION {schema}.harness_events(
  a_now double precision, a_thread text, a_ids bytea[], a_after_id bytea, a_after_event bytea, a_size integer,
  a_bare boolean, a_expired boolean
) RETURNS TABLE (checkpoint_id bytea, event_id bytea, head bytea, body bytea)
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
  IF NOT a_expired AND {schema}.harness_is_expired(a_thread::uuid, a_now) THEN
    RETURN;
  END IF;
  RETURN QUERY
  SELECT e.checkpoint_id, e.event_id, e.head, CASE WHEN a_bare THEN '' ELSE e.body END
  FROM {schema}.harness_event e
  WHERE e.thread = a_thread::uuid AND (a_ids IS NULL OR e.checkpoint_id = ANY (a_ids))
    AND (e.checkpoint_id, e.event_id) > (a_after_id, a_after_event)
  ORDER BY e.checkpoint_id, e.event_id LIMIT a_size;
END $$;

-- With a root checkpoint that is live no longer go its events, and those of ids that were never stored, down to the live
-- one before.
CREATE FUNCTION {schema}.harness_events_go() RETURNS trigger
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  before bytea;
BEGIN
  PERFORM 1 FROM {schema}.harness_event e WHERE e.thread = OLD.thread LIMIT 1;
  IF FOUND THEN
    SELECT c.checkpoint_id INTO before FROM {schema}.harness_checkpoint c
    WHERE c.thread = OLD.thread AND c.checkpoint_ns = '' AND c.checkpoint_id < OLD.checkpoint_id AND c.kind = 0
    ORDER BY c.checkpoint_id DESC LIMIT 1;
    DELETE FROM {schema}.harness_event e
    WHERE e.thread = OLD.thread AND e.checkpoint_id <= OLD.checkpoint_id AND e.checkpoint_id > coalesce(before, '');
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER harness_event_delete AFTER DELETE ON {schema}.harness_checkpoint
FOR EACH ROW WHEN (OLD.kind = 0 AND OLD.checkpoint_ns = '')
EXECUTE FUNCTION {schema}.harness_events_go();

CREATE TRIGGER harness_event_hide AFTER UPDATE OF kind ON {schema}.harness_checkpoint
FOR EACH ROW WHEN (OLD.kind = 0 AND NEW.kind <> 0 AND OLD.checkpoint_ns = '')
EXECUTE FUNCTION {schema}.harness_events_go();

-- Deletes all of a thread; returns how many live checkpoints it had. Repeats until nothing is left: whoever held a
-- row has stored something that leans on it. If that was a branch, nothing is deleted: see harness_check_alone.
CREATE OR REPLACE FUNCTION {schema}.harness_drop(a_thread uuid) RETURNS bigint
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
    DELETE FROM {schema}.harness_event WHERE thread = a_thread;
    more := more OR FOUND;
  END LOOP;
  PERFORM {schema}.harness_check_alone(a_thread);
  RETURN live;
END $$;

-- Ends a revision: tags go with what they name, and threads of which nothing is left but events, without the parts that
-- a_parts names if that is so of all. Returns those of the threads that aren't empty.
CREATE OR REPLACE FUNCTION {schema}.harness_tidy(a_threads text[], a_parts bytea[]) RETURNS SETOF text
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
    ELSE
      DELETE FROM {schema}.harness_event e WHERE e.thread = which;
      IF expires THEN
        DELETE FROM {schema}.harness_thread t WHERE t.thread = which;
      END IF;
    END IF;
  END LOOP;
  IF empty THEN
    DELETE FROM {schema}.harness_part p WHERE p.thread = ANY (a_threads::uuid[]) AND p.part_id = ANY (a_parts);
  END IF;
END $$;
