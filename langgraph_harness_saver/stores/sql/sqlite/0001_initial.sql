CREATE TABLE harness_schema (
  major INTEGER NOT NULL,
  minor INTEGER NOT NULL
);

INSERT INTO harness_schema VALUES (1, 0);

-- family: the thread that parts are stored under, null where that is this one.
CREATE TABLE harness_thread (
  id INTEGER PRIMARY KEY,
  thread_id BLOB NOT NULL UNIQUE,
  expires_at REAL,
  family INTEGER
);

CREATE INDEX harness_thread_expiry ON harness_thread (expires_at) WHERE expires_at IS NOT NULL;

-- kind: 0 live, 1 hidden, 2 anchor, 3 only named by writes so far.
CREATE TABLE harness_checkpoint (
  id INTEGER PRIMARY KEY,
  thread INTEGER NOT NULL,
  checkpoint_ns BLOB NOT NULL,
  checkpoint_id BLOB NOT NULL,
  kind INTEGER NOT NULL,
  parent_id BLOB,
  run_id BLOB,
  rev INTEGER,
  reach BLOB,
  parts BLOB,
  metadata BLOB,
  body BLOB
);

CREATE UNIQUE INDEX harness_checkpoint_key ON harness_checkpoint (thread, checkpoint_ns, checkpoint_id);

CREATE INDEX harness_checkpoint_order ON harness_checkpoint (checkpoint_id);

CREATE INDEX harness_checkpoint_run ON harness_checkpoint (run_id) WHERE run_id IS NOT NULL;

-- id: the checkpoint's, shifted left by 20 bits, plus a running number.
CREATE TABLE harness_write (
  id INTEGER PRIMARY KEY,
  call INTEGER NOT NULL,
  task_id BLOB NOT NULL,
  task_path BLOB,
  parts BLOB,
  body BLOB NOT NULL
);

CREATE INDEX harness_write_special ON harness_write (id >> 20, task_id, call) WHERE call <> 0;

CREATE TABLE harness_part (
  thread INTEGER NOT NULL,
  part_id BLOB NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (thread, part_id)
) WITHOUT ROWID;

-- Threads that began as a checkpoint of another, source. A branch that was deleted has no name.
CREATE TABLE harness_branch (
  thread_id BLOB PRIMARY KEY,
  family BLOB NOT NULL,
  source BLOB NOT NULL,
  checkpoint_id BLOB NOT NULL,
  name BLOB NOT NULL,
  created_at REAL NOT NULL
) WITHOUT ROWID;

CREATE INDEX harness_branch_family ON harness_branch (family);

CREATE UNIQUE INDEX harness_branch_name ON harness_branch (source, name) WHERE name <> x'';

CREATE TABLE harness_tag (
  thread INTEGER NOT NULL,
  name BLOB NOT NULL,
  checkpoint_ns BLOB NOT NULL,
  checkpoint_id BLOB NOT NULL,
  PRIMARY KEY (thread, name)
) WITHOUT ROWID;
