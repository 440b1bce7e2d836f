-- Conversations that the gateway recognises by their history. `body` is JSON without any words: see
-- gateway/memory/thread.py. A thread's keys outlive it, so that no other one is taken for the only.
CREATE TABLE memory_threads (
    id TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    until_ms BIGINT NOT NULL
);
CREATE INDEX memory_threads_until ON memory_threads (until_ms);
CREATE TABLE memory_keys (
    name TEXT NOT NULL,
    thread_id TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (name, thread_id)
);
CREATE INDEX memory_keys_at ON memory_keys (at_ms);
-- Without it PostgreSQL walks through `memory_keys_at` as long as it has no statistics.
CREATE INDEX memory_keys_newest ON memory_keys (name, at_ms);
