-- Writes are added, seldom changed, so the index may fill its pages. (That of checkpoints keeps room for new versions of rows:
-- with none, a retention that changes each row twice split all of its pages.)
ALTER INDEX {schema}.harness_write_pkey SET (fillfactor = 100);

-- A row a migration, of which all are read.
ALTER TABLE {schema}.harness_schema DROP CONSTRAINT harness_schema_pkey;

-- A part that fits into a page beside its key needs no second table.
ALTER TABLE {schema}.harness_part SET (toast_tuple_target = 8160);

-- So are the bodies of checkpoints, most of which do.
ALTER TABLE {schema}.harness_checkpoint SET (toast_tuple_target = 8160);

-- Nor do tags, which are short. Rewriting the table is what takes the other one away; there are few.
DO $$
BEGIN
  PERFORM 1 FROM {schema}.harness_tag
  WHERE octet_length(name) + octet_length(checkpoint_ns) + octet_length(checkpoint_id) > 2000;
  IF NOT FOUND THEN
    ALTER TABLE {schema}.harness_tag
      ALTER COLUMN name SET STORAGE PLAIN,
      ALTER COLUMN checkpoint_ns SET STORAGE PLAIN,
      ALTER COLUMN checkpoint_id SET STORAGE PLAIN;
    CLUSTER {schema}.harness_tag USING harness_tag_pkey;
  END IF;
END $$;
