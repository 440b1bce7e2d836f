-- name: conversation_owner(agent, id)^
SELECT caller, end_user FROM conversations WHERE agent = :agent AND id = :id;

-- name: conversation_adopt(agent, id, caller, end_user, at_ms)!
INSERT INTO conversations (
    agent, id, caller, end_user, platform_user, model, title, title_by, is_kept, pause,
    created_ms, updated_ms
) VALUES (:agent, :id, :caller, :end_user, '', '', '', 'question', 0, NULL, :at_ms, :at_ms)
ON CONFLICT (id, agent) DO NOTHING;

-- name: conversations_merge()!
-- The first one who names a conversation owns it; another one's row stays as it is.
INSERT INTO conversations (
    agent, id, caller, end_user, platform_user, model, title, title_by, is_kept, pause,
    created_ms, updated_ms
)
SELECT agent, id, caller, end_user, platform_user, model, title, title_by, is_kept, pause,
    created_ms, updated_ms
FROM conversations_incoming WHERE true
ON CONFLICT (id, agent) DO UPDATE SET
    platform_user = CASE WHEN excluded.platform_user = ''
        THEN conversations.platform_user ELSE excluded.platform_user END,
    model = CASE WHEN conversations.model = '' THEN excluded.model ELSE conversations.model END,
    is_kept = CASE WHEN conversations.is_kept > excluded.is_kept
        THEN conversations.is_kept ELSE excluded.is_kept END,
    pause = COALESCE(excluded.pause, conversations.pause),
    title = CASE WHEN conversations.title = '' THEN excluded.title ELSE conversations.title END,
    updated_ms = CASE WHEN conversations.updated_ms > excluded.updated_ms
        THEN conversations.updated_ms ELSE excluded.updated_ms END
WHERE conversations.caller = excluded.caller AND conversations.end_user = excluded.end_user;

-- name: conversations_page(caller, end_user, agent, before_ms, before_agent, before_id, most)
-- The newest first; '' is any agent.
SELECT * FROM conversations
WHERE caller = :caller AND end_user = :end_user
    AND (:agent = '' OR agent = :agent OR model = :agent)
    AND (updated_ms < :before_ms OR (updated_ms = :before_ms
        AND (agent > :before_agent OR (agent = :before_agent AND id > :before_id))))
ORDER BY updated_ms DESC, agent, id
LIMIT :most;

-- name: conversations_named(caller, end_user, id)
SELECT * FROM conversations
WHERE id = :id AND caller = :caller AND end_user = :end_user
ORDER BY updated_ms DESC
LIMIT 20;

-- name: conversation_rename(agent, id, title, title_by)!
UPDATE conversations SET title = :title, title_by = :title_by WHERE agent = :agent AND id = :id;

-- name: conversation_bury(agent, id, at_ms)!
-- A deleted one belongs to no one, so that no other caller can take its id: a process may still know
-- its owner.
UPDATE conversations SET caller = '', end_user = '', platform_user = '', model = '', title = '',
    pause = NULL, updated_ms = :at_ms
WHERE agent = :agent AND id = :id;

-- name: conversation_delete(agent, id)!
DELETE FROM conversations WHERE agent = :agent AND id = :id;

-- name: conversation_agents(id, most)
SELECT agent FROM conversations WHERE id = :id LIMIT :most;

-- name: turns_delete(agent, conversation_id)!
DELETE FROM turns WHERE agent = :agent AND conversation_id = :conversation_id;

-- name: feedback_delete(agent, conversation_id)!
DELETE FROM feedback WHERE agent = :agent AND conversation_id = :conversation_id;

-- name: turns_save*!
INSERT INTO turns (agent, conversation_id, place, id, created_ms, body)
VALUES (:agent, :conversation_id, :place, :id, :created_ms, :body)
ON CONFLICT (agent, conversation_id, place) DO UPDATE SET body = excluded.body;

-- name: turns_page(agent, conversation_id, before, most)
SELECT place, id, created_ms, body FROM turns
WHERE agent = :agent AND conversation_id = :conversation_id AND place < :before
ORDER BY place DESC
LIMIT :most;

-- name: turn_by_id(agent, conversation_id, id)^
SELECT place FROM turns
WHERE agent = :agent AND conversation_id = :conversation_id AND id = :id
LIMIT 1;

-- name: feedback_save(agent, conversation_id, message_id, rating, body, updated_ms)!
INSERT INTO feedback (agent, conversation_id, message_id, rating, body, updated_ms)
VALUES (:agent, :conversation_id, :message_id, :rating, :body, :updated_ms)
ON CONFLICT (agent, conversation_id, message_id) DO UPDATE SET
    rating = excluded.rating, body = excluded.body, updated_ms = excluded.updated_ms;

-- name: feedback_undo(agent, conversation_id, message_id)!
DELETE FROM feedback WHERE agent = :agent AND conversation_id = :conversation_id
    AND message_id = :message_id;

-- name: feedback_of(agent, conversation_id, most)
SELECT message_id, body FROM feedback
WHERE agent = :agent AND conversation_id = :conversation_id
ORDER BY updated_ms DESC
LIMIT :most;

-- name: conversations_old(before_ms, most)
SELECT agent, id FROM conversations WHERE updated_ms < :before_ms ORDER BY updated_ms LIMIT :most;
