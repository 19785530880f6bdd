-- Tells whether a thread's family has a part, and holds that until the transaction ends: nobody may find it unused
-- meanwhile. If the thread has expired it is emptied first.
CREATE FUNCTION {schema}.harness_holds(a_now double precision, a_ttl double precision, a_thread uuid, a_part_id bytea)
RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  which uuid;
BEGIN
  PERFORM 1 FROM {schema}.harness_thread t WHERE t.thread = a_thread;
  IF FOUND THEN
    PERFORM {schema}.harness_enter(a_thread, a_now, a_ttl IS NOT NULL);
  END IF;
  SELECT b.family INTO which FROM {schema}.harness_branch b WHERE b.thread = a_thread FOR KEY SHARE;
  PERFORM 1 FROM {schema}.harness_part p
  WHERE p.thread IN (a_thread, coalesce(which, a_thread)) AND p.part_id = a_part_id
  FOR SHARE;
  RETURN FOUND;
END $$;

-- Stores rows of writes, and parts, as harness_put_writes does, of calls some of which need parts that have to be there: c_
-- says of each how many of the rows and parts are its own, n_ which parts it needs. Returns the numbers, as negative ones,
-- of those that are refused, for a part is gone.
CREATE FUNCTION {schema}.harness_put_leaning(
  a_now double precision, a_ttl double precision,
  a_thread text[], a_ns bytea[], a_id bytea[], a_task bytea[], a_call bigint[], a_path bytea[], a_parts bytea[],
  a_body bytea[],
  p_thread text[], p_id bytea[], p_data bytea[],
  c_thread text[], c_rows integer[], c_parts integer[], n_call integer[], n_id bytea[]
) RETURNS SETOF integer
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  needed record;
  c record;
  refused integer[] := '{}';
  rows_before integer := 0;
  parts_before integer := 0;
BEGIN
  -- In the order in which a revision locks them.
  FOR needed IN
    SELECT c_thread[u.call]::uuid AS thread, u.id, array_agg(u.call) AS calls FROM unnest(n_call, n_id) AS u(call, id)
    GROUP BY 1, 2 ORDER BY {schema}.harness_family(c_thread[min(u.call)]::uuid), 2
  LOOP
    IF NOT {schema}.harness_holds(a_now, a_ttl, needed.thread, needed.id) THEN
      refused := refused || needed.calls;
    END IF;
  END LOOP;
  FOR c IN SELECT * FROM unnest(c_thread, c_rows, c_parts) WITH ORDINALITY AS u(thread, rows, parts, n) LOOP
    IF c.n = ANY (refused) THEN
      RETURN NEXT -c.n;
    ELSE
      PERFORM {schema}.harness_put_write(
        a_now, a_ttl, c.thread, a_ns[i], a_id[i], a_task[i], a_call[i], a_path[i], a_parts[i], a_body[i]
      ) FROM generate_series(rows_before + 1, rows_before + c.rows) AS i;
      PERFORM {schema}.harness_keep_part(c.thread::uuid, p_id[i], p_data[i])
      FROM generate_series(parts_before + 1, parts_before + c.parts) AS i;
    END IF;
    rows_before := rows_before + c.rows;
    parts_before := parts_before + c.parts;
  END LOOP;
END $$;
