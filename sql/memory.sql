-- name: memory_find(first, second, most)
-- The newest threads under two keys; `body` is null for a thread that is over.
SELECT k.name, k.thread_id, t.body, t.until_ms
FROM (
    SELECT * FROM (SELECT * FROM memory_keys WHERE name = :first ORDER BY at_ms DESC LIMIT :most) a
    UNION
    SELECT * FROM (SELECT * FROM memory_keys WHERE name = :second ORDER BY at_ms DESC LIMIT :most) b
) k
LEFT JOIN memory_threads t ON t.id = k.thread_id
ORDER BY k.at_ms DESC, k.thread_id;

-- name: memory_keep_threads*!
INSERT INTO memory_threads (id, body, until_ms) VALUES (:id, :body, :until_ms)
ON CONFLICT (id) DO UPDATE SET body = excluded.body, until_ms = excluded.until_ms;

-- name: memory_keep_keys*!
INSERT INTO memory_keys (name, thread_id, at_ms) VALUES (:name, :thread_id, :at_ms)
ON CONFLICT (name, thread_id) DO UPDATE SET at_ms = excluded.at_ms;

-- name: memory_forget_threads(now_ms, most)!
DELETE FROM memory_threads WHERE id IN
    (SELECT id FROM memory_threads WHERE until_ms < :now_ms LIMIT :most);

-- name: memory_forget_keys(before_ms, most)!
DELETE FROM memory_keys WHERE at_ms IN
    (SELECT at_ms FROM memory_keys WHERE at_ms < :before_ms LIMIT :most);
