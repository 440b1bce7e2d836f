-- For both databases; what differs is in the folders beside this file.
-- Times are milliseconds since the epoch, UTC; flags are 0 or 1; lists and objects are JSON text.

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    username TEXT NOT NULL,
    name_key TEXT NOT NULL UNIQUE,
    email TEXT,
    email_key TEXT UNIQUE,
    full_name TEXT NOT NULL DEFAULT '',
    password_hash TEXT NOT NULL,
    token_version BIGINT NOT NULL DEFAULT 1,
    role TEXT NOT NULL CHECK (role IN ('admin', 'premium', 'user')),
    status TEXT NOT NULL CHECK (status IN ('active', 'inactive', 'suspended')),
    max_api_calls BIGINT,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    last_login_ms BIGINT
);

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    owner_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    description TEXT NOT NULL DEFAULT '',
    secret_sha256 TEXT NOT NULL,
    permissions TEXT NOT NULL,
    agents TEXT,
    rate_limits TEXT,
    max_calls BIGINT,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT,
    revoked_ms BIGINT
);
CREATE INDEX api_keys_of_owner ON api_keys (owner_id, created_ms);

-- Every change to an account or a key gets the next version, so that each replica learns of it by
-- asking for what came after the version that it knows. The triggers also see changes by hand. The
-- update of the one counter makes transactions that change accounts wait for each other, so that
-- versions become visible in their order.
CREATE TABLE change_counter (version BIGINT NOT NULL);
INSERT INTO change_counter VALUES (0);
CREATE TABLE changes (
    version BIGINT PRIMARY KEY,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    changed_ms BIGINT NOT NULL
);

-- One row per call. The id begins with the time, so its order is that of the calls' beginnings.
CREATE TABLE calls (
    id TEXT PRIMARY KEY,
    request_id TEXT NOT NULL,
    began_ms BIGINT NOT NULL,
    day TEXT NOT NULL,
    caller TEXT NOT NULL,
    key_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    agent TEXT NOT NULL,
    surface TEXT NOT NULL,
    status BIGINT NOT NULL,
    streamed BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    total_tokens BIGINT NOT NULL,
    usage TEXT NOT NULL,
    first_delta_ms BIGINT,
    total_ms BIGINT NOT NULL,
    client_gone BIGINT NOT NULL,
    error TEXT NOT NULL
);
CREATE INDEX calls_by_request ON calls (request_id);
CREATE INDEX calls_by_key ON calls (key_id, id);
CREATE INDEX calls_by_user ON calls (user_id, id);
CREATE INDEX calls_by_agent ON calls (agent, id);

CREATE TABLE call_bodies (
    call_id TEXT PRIMARY KEY,
    began_ms BIGINT NOT NULL,
    request TEXT NOT NULL,
    answer TEXT NOT NULL,
    request_size BIGINT NOT NULL,
    answer_size BIGINT NOT NULL
);
CREATE INDEX call_bodies_by_age ON call_bodies (began_ms);

-- Roll-ups, written in the transaction that writes the calls.
CREATE TABLE usage_days (
    day TEXT NOT NULL,
    caller TEXT NOT NULL,
    key_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    agent TEXT NOT NULL,
    calls BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    total_tokens BIGINT NOT NULL,
    PRIMARY KEY (day, caller, key_id, user_id, agent)
);
CREATE INDEX usage_days_of_key ON usage_days (key_id, day);
CREATE INDEX usage_days_of_user ON usage_days (user_id, day);

-- What one key (`key:<id>`) or user (`user:<id>`) used in a `period`: '' is ever, else YYYY-MM.
CREATE TABLE usage_totals (
    scope TEXT NOT NULL,
    period TEXT NOT NULL,
    calls BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    total_tokens BIGINT NOT NULL,
    last_ms BIGINT NOT NULL,
    written_ms BIGINT NOT NULL,
    PRIMARY KEY (scope, period)
);
CREATE INDEX usage_totals_by_writing ON usage_totals (written_ms);
