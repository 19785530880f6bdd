-- What happened inside the steps that ran from root checkpoints, which need not be there.
CREATE TABLE harness_event (
  thread INTEGER NOT NULL,
  checkpoint_id BLOB NOT NULL,
  event_id BLOB NOT NULL,
  head BLOB NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (thread, checkpoint_id, event_id)
) WITHOUT ROWID;

-- Events go with what they hang on, whoever deletes it. With a root checkpoint go those of ids that were never stored,
-- down to the live one before. (A semicolon at the end of a line ends a statement, so none does within a trigger.)
CREATE TRIGGER harness_event_thread AFTER DELETE ON harness_thread
BEGIN DELETE FROM harness_event WHERE thread = OLD.id; END;

CREATE TRIGGER harness_event_delete AFTER DELETE ON harness_checkpoint
WHEN OLD.kind = 0 AND OLD.checkpoint_ns = x'' AND EXISTS (SELECT 1 FROM harness_event WHERE thread = OLD.thread)
BEGIN DELETE FROM harness_event
WHERE thread = OLD.thread AND checkpoint_id <= OLD.checkpoint_id AND checkpoint_id > coalesce((
  SELECT c.checkpoint_id FROM harness_checkpoint AS c
  WHERE c.thread = OLD.thread AND c.checkpoint_ns = x'' AND c.checkpoint_id < OLD.checkpoint_id AND c.kind = 0
  ORDER BY c.checkpoint_id DESC LIMIT 1
), x''); END;

CREATE TRIGGER harness_event_hide AFTER UPDATE OF kind ON harness_checkpoint
WHEN OLD.kind = 0 AND NEW.kind <> 0 AND OLD.checkpoint_ns = x''
  AND EXISTS (SELECT 1 FROM harness_event WHERE thread = OLD.thread)
BEGIN DELETE FROM harness_event
WHERE thread = OLD.thread AND checkpoint_id <= OLD.checkpoint_id AND checkpoint_id > coalesce((
  SELECT c.checkpoint_id FROM harness_checkpoint AS c
  WHERE c.thread = OLD.thread AND c.checkpoint_ns = x'' AND c.checkpoint_id < OLD.checkpoint_id AND c.kind = 0
  ORDER BY c.checkpoint_id DESC LIMIT 1
), x''); END;

UPDATE harness_schema SET minor = 1;
