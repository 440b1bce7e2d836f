-- Whose conversation is whose, under the platform's id; `is_kept` if the gateway has its turns.
-- `platform_user` is the end user as the platform knows it, `model` the agent or route asked for.
-- `pause` is JSON of what a bot waits for; '' or NULL if it does not wait.
CREATE TABLE conversations (
    agent TEXT NOT NULL,
    id TEXT NOT NULL,
    caller TEXT NOT NULL,
    end_user TEXT NOT NULL,
    platform_user TEXT NOT NULL,
    model TEXT NOT NULL,
    title TEXT NOT NULL,
    title_by TEXT NOT NULL,
    is_kept INTEGER NOT NULL,
    pause TEXT,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    PRIMARY KEY (id, agent)
);
CREATE INDEX conversations_owned ON conversations (caller, end_user, updated_ms);
CREATE INDEX conversations_updated ON conversations (updated_ms);
-- Turns of conversations that the gateway keeps itself, in the order of `place`. `id` is the
-- answer's as the caller sees it; `body` is JSON: see gateway/protocol/history.py.
CREATE TABLE turns (
    agent TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    place TEXT NOT NULL,
    id TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (agent, conversation_id, place)
);
-- What people think of answers, whoever keeps the turns. `rating` is like or dislike.
CREATE TABLE feedback (
    agent TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    message_id TEXT NOT NULL,
    rating TEXT NOT NULL,
    body TEXT NOT NULL,
    updated_ms BIGINT NOT NULL,
    PRIMARY KEY (agent, conversation_id, message_id)
);
