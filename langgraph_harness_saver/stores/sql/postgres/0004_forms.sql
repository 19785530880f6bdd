-- Metadata is searched as it is stored. `search` stays empty from now on; a release that looks there takes each row whose
-- `search` is null for one that may match.

-- True of metadata that may be what a filter looks for: of a_forms, up to four threes, one of each three stands in its bytes.
-- Else false or null. What doesn't begin with 0 was written by a serializer that nothing is known of. (A query takes this in
-- as an expression; in PL/pgSQL it took twice as long.)
CREATE FUNCTION {schema}.harness_may_match(a_metadata bytea, a_forms bytea[]) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
  SELECT substring(a_metadata FOR 1) <> decode('00', 'hex') OR (
    position(a_forms[1] IN a_metadata) > 0 OR position(a_forms[2] IN a_metadata) > 0
    OR position(a_forms[3] IN a_metadata) > 0
  ) AND (
    a_forms[4] IS NULL OR position(a_forms[4] IN a_metadata) > 0 OR position(a_forms[5] IN a_metadata) > 0
    OR position(a_forms[6] IN a_metadata) > 0
  ) AND (
    a_forms[7] IS NULL OR position(a_forms[7] IN a_metadata) > 0 OR position(a_forms[8] IN a_metadata) > 0
    OR position(a_forms[9] IN a_metadata) > 0
  ) AND (
    a_forms[10] IS NULL OR position(a_forms[10] IN a_metadata) > 0 OR position(a_forms[11] IN a_metadata) > 0
    OR position(a_forms[12] IN a_metadata) > 0
  )
$$;

-- Returns the next a_size live checkpoints that may match, newest id first, with their writes and all that is needed to read
-- them. (harness_scan, which looks for them in `search`, is for releases that write that.)
CREATE FUNCTION {schema}.harness_find(
  a_now double precision, a_size integer, a_thread text, a_ns bytea, a_id bytea, a_before bytea,
  a_after bytea, a_after_thread bytea, a_after_ns bytea, a_forms bytea[]
) RETURNS SETOF {schema}.harness_item
LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
DECLARE
  c record;
  s record;
  which uuid := a_thread::uuid;
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
        AND (a_forms IS NULL OR {schema}.harness_may_match(h.metadata, a_forms))
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
          AND (a_forms IS NULL OR {schema}.harness_may_match(h.metadata, a_forms))
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
        AND (a_forms IS NULL OR {schema}.harness_may_match(h.metadata, a_forms))
        AND NOT EXISTS (SELECT FROM {schema}.harness_thread t WHERE t.thread = h.thread AND t.expires_at <= a_now)
      ORDER BY coalesce(h.thread_id, convert_to(h.thread::text, 'UTF8')), h.checkpoint_ns LIMIT a_size;
  ELSE
    OPEN chosen FOR
      SELECT h.* FROM {schema}.harness_checkpoint h
      WHERE h.kind = 0 AND h.checkpoint_id < before AND h.checkpoint_id <= after
        AND (a_ns IS NULL OR h.checkpoint_ns = a_ns)
        AND (a_after IS NULL OR h.checkpoint_id < a_after
          OR (coalesce(h.thread_id, convert_to(h.thread::text, 'UTF8')), h.checkpoint_ns) > (a_after_thread, a_after_ns))
        AND (a_forms IS NULL OR {schema}.harness_may_match(h.metadata, a_forms))
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
