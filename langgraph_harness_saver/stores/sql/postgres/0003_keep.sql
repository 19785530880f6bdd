-- Takes a root checkpoint out of sight, if it may go: it is as it was when this was foreseen, as are its heir, which is its
-- only child, and its writes; nothing holds it; and its family is one thread without other namespaces. Whatever somebody
-- else is at work on is left to a revision.
CREATE FUNCTION {schema}.harness_leave(
  which uuid, a_id bytea, a_rev bigint, a_hidden_rev bigint, a_parent bytea, a_heir bytea, a_heir_rev bigint,
  a_heir_new_rev bigint, a_stamp text
) RETURNS boolean
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  older bigint;
  children bigint;
  held bigint;
BEGIN
  IF NOT pg_try_advisory_xact_lock(hashtextextended(which::text, 1)) THEN
    RETURN false;
  END IF;
  WITH h AS (
    SELECT 1 FROM {schema}.harness_checkpoint c
    WHERE c.thread = which AND c.checkpoint_ns = '' AND c.checkpoint_id IN (a_id, a_heir) AND c.kind = 0
      AND c.rev = CASE c.checkpoint_id WHEN a_id THEN a_rev ELSE a_heir_rev END
    FOR UPDATE SKIP LOCKED
  )
  SELECT count(*) INTO held FROM h;
  IF held < 2 THEN
    RETURN false;
  END IF;
  -- Whoever adds what leans on a row, or a tag, holds it.
  SELECT count(*) FILTER (WHERE c.kind = 0 AND c.checkpoint_id < a_id), count(*) FILTER (WHERE c.parent_id = a_id)
  INTO older, children
  FROM {schema}.harness_checkpoint c WHERE c.thread = which AND c.checkpoint_ns = '' AND c.kind <> 1;
  IF children > 1 OR (a_parent IS NULL AND older > 0) THEN
    RETURN false;
  END IF;
  PERFORM 1 FROM {schema}.harness_checkpoint c WHERE c.thread = which AND c.checkpoint_ns > '' LIMIT 1;
  IF NOT FOUND THEN
    PERFORM 1 FROM {schema}.harness_branch b WHERE b.thread = which OR b.family = which;
  END IF;
  IF NOT FOUND THEN
    PERFORM 1 FROM {schema}.harness_tag t WHERE t.thread = which AND t.checkpoint_ns = '' AND t.checkpoint_id = a_id;
  END IF;
  IF FOUND OR a_stamp <> {schema}.harness_writes_stamp(which, a_id) THEN
    RETURN false;
  END IF;
  UPDATE {schema}.harness_checkpoint c
  SET kind = 1, rev = a_hidden_rev
  WHERE c.thread = which AND c.checkpoint_ns = '' AND c.checkpoint_id = a_id;
  UPDATE {schema}.harness_checkpoint c SET parent_id = a_parent, rev = a_heir_new_rev
  WHERE c.thread = which AND c.checkpoint_ns = '' AND c.checkpoint_id = a_heir;
  RETURN true;
END $$;

-- Returns what changes whenever the writes of a root checkpoint do.
CREATE FUNCTION {schema}.harness_writes_stamp(a_thread uuid, a_id bytea) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
  stamp text;
BEGIN
  SELECT concat_ws(' ', count(*), max(w.arrival), sum(w.call)) INTO stamp FROM {schema}.harness_write w
  WHERE w.thread = a_thread AND w.checkpoint_ns = '' AND w.checkpoint_id = a_id;
  RETURN stamp;
END $$;

-- Lets go what goes with puts, k_: of each, k_n, the checkpoints l_, as long as its thread has more than k_most live ones.
-- Returns those puts of which nothing is left to be done.
CREATE FUNCTION {schema}.harness_keep(
  k_n integer[], k_thread text[], k_most bigint[],
  l_n integer[], l_id bytea[], l_rev bigint[], l_hidden_rev bigint[], l_parent bytea[], l_heir bytea[],
  l_heir_rev bigint[], l_heir_new_rev bigint[], l_stamp text[]
) RETURNS SETOF integer
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
  k record;
  l record;
  live bigint;
  kept boolean;
BEGIN
  FOR k IN SELECT u.n, u.thread::uuid, u.most FROM unnest(k_n, k_thread, k_most) AS u(n, thread, most) LOOP
    SELECT count(*) INTO live FROM {schema}.harness_checkpoint c
    WHERE c.thread = k.thread AND c.checkpoint_ns = '' AND c.kind = 0;
    kept := true;
    FOR l IN
      SELECT * FROM unnest(
        l_n, l_id, l_rev, l_hidden_rev, l_parent, l_heir, l_heir_rev, l_heir_new_rev, l_stamp
      ) AS u(n, id, rev, hidden_rev, parent, heir, heir_rev, heir_new_rev, stamp) WHERE u.n = k.n
    LOOP
      EXIT WHEN live <= k.most;
      kept := {schema}.harness_leave(
        k.thread, l.id, l.rev, l.hidden_rev, l.parent, l.heir, l.heir_rev, l.heir_new_rev, l.stamp
      );
      EXIT WHEN NOT kept;
      live := live - 1;
    END LOOP;
    IF kept AND (k.most IS NULL OR live <= k.most) THEN
      RETURN NEXT k.n;
    END IF;
  END LOOP;
END $$;
