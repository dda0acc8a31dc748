CREATE TABLE jobs (
    id       TEXT PRIMARY KEY,
    kind     TEXT NOT NULL CHECK (kind IN ('painting', 'learning')),
    state    TEXT NOT NULL CHECK (state IN ('queued', 'running', 'finished', 'failed', 'cancelled')),
    origin   TEXT NOT NULL,
    wish     TEXT NOT NULL,             -- JSON
    created  INTEGER NOT NULL,          -- milliseconds since 1970
    started  INTEGER,
    ended    INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    step     INTEGER NOT NULL DEFAULT 0,
    steps    INTEGER NOT NULL DEFAULT 0,
    error    TEXT
) STRICT;
CREATE INDEX jobs_waiting ON jobs (kind, id) WHERE state IN ('queued', 'running');

CREATE TABLE paintings (
    id       TEXT PRIMARY KEY,
    created  INTEGER NOT NULL,
    width    INTEGER NOT NULL,
    height   INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,          -- of all its files
    sha256   TEXT NOT NULL,             -- of the PNG
    prompt   TEXT NOT NULL,
    styles   TEXT NOT NULL,             -- JSON: names
    origin   TEXT NOT NULL,
    kept     INTEGER NOT NULL,
    content  INTEGER NOT NULL,          -- whether there is the photograph
    prints   INTEGER NOT NULL DEFAULT 0,
    recipe   TEXT NOT NULL              -- JSON
) STRICT;
CREATE INDEX paintings_kept ON paintings (kept, id);

CREATE TABLE styles (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE COLLATE NOCASE,
    source      TEXT NOT NULL CHECK (source IN ('shipped', 'learned', 'file', 'mix')),
    created     INTEGER NOT NULL,
    kept        INTEGER NOT NULL,
    shown       INTEGER NOT NULL,
    stages      INTEGER NOT NULL,
    contexts    TEXT NOT NULL,          -- JSON
    proposals   TEXT NOT NULL,          -- JSON
    license     TEXT NOT NULL,
    mix         TEXT,
    picture     INTEGER NOT NULL,
    loss_before REAL,
    loss_after  REAL
) STRICT;
