-- name: calls_forget_known()!
-- A batch comes again if the database went away while it was committing.
DELETE FROM calls_incoming WHERE id IN (SELECT c.id FROM calls c JOIN calls_incoming i ON i.id = c.id);

-- name: calls_keep()!
INSERT INTO calls SELECT * FROM calls_incoming ORDER BY id;

-- name: calls_roll_up_days()!
-- Usage is of agents: what was refused before one was asked is in `calls` alone.
INSERT INTO usage_days
SELECT day, caller, key_id, user_id, agent, count(*), sum(CASE WHEN error <> '' THEN 1 ELSE 0 END),
       sum(prompt_tokens), sum(completion_tokens), sum(total_tokens)
FROM calls_incoming WHERE agent <> ''
GROUP BY day, caller, key_id, user_id, agent
ON CONFLICT (day, caller, key_id, user_id, agent) DO UPDATE SET
    calls = usage_days.calls + excluded.calls, errors = usage_days.errors + excluded.errors,
    prompt_tokens = usage_days.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = usage_days.completion_tokens + excluded.completion_tokens,
    total_tokens = usage_days.total_tokens + excluded.total_tokens;

-- name: calls_roll_up_totals(now_ms)
-- The totals as they are now of every scope in the batch.
INSERT INTO usage_totals
SELECT scope, period, count(*), sum(CASE WHEN error <> '' THEN 1 ELSE 0 END),
       sum(prompt_tokens), sum(completion_tokens), sum(total_tokens), max(began_ms), CAST(:now_ms AS BIGINT)
FROM (
    SELECT 'key:' || key_id AS scope, '' AS period, i.* FROM calls_incoming i WHERE key_id <> '' AND agent <> ''
    UNION ALL
    SELECT 'user:' || user_id, '', i.* FROM calls_incoming i WHERE user_id <> '' AND agent <> ''
    UNION ALL
    SELECT 'user:' || user_id, substr(day, 1, 7), i.* FROM calls_incoming i WHERE user_id <> '' AND agent <> ''
) AS counted WHERE true
GROUP BY scope, period
ON CONFLICT (scope, period) DO UPDATE SET
    calls = usage_totals.calls + excluded.calls, errors = usage_totals.errors + excluded.errors,
    prompt_tokens = usage_totals.prompt_tokens + excluded.prompt_tokens,
    completion_tokens = usage_totals.completion_tokens + excluded.completion_tokens,
    total_tokens = usage_totals.total_tokens + excluded.total_tokens,
    last_ms = CASE WHEN excluded.last_ms > usage_totals.last_ms THEN excluded.last_ms ELSE usage_totals.last_ms END, written_ms = excluded.written_ms
RETURNING scope, period, calls;

-- name: call_body_keep(call_id, began_ms, request, answer, request_size, answer_size)!
INSERT INTO call_bodies (call_id, began_ms, request, answer, request_size, answer_size)
VALUES (:call_id, :began_ms, :request, :answer, :request_size, :answer_size)
ON CONFLICT DO NOTHING;

-- name: usage_total(scope, period)^
SELECT calls, errors, prompt_tokens, completion_tokens, total_tokens, last_ms
FROM usage_totals WHERE scope = :scope AND period = :period;

-- name: usage_totals_limited(period, written_ms)
-- What was used of every quota, where it was written since.
SELECT scope, period, calls FROM usage_totals
WHERE written_ms >= :written_ms AND (
    (period = '' AND scope IN (SELECT 'key:' || id FROM api_keys WHERE max_calls IS NOT NULL))
    OR (period = :period AND scope IN (SELECT 'user:' || id FROM users WHERE max_api_calls IS NOT NULL))
);

-- name: usage_of_key(key_id, first_day)
SELECT day, agent, calls, errors, prompt_tokens, completion_tokens, total_tokens
FROM usage_days WHERE key_id = :key_id AND day >= :first_day ORDER BY day, agent;

-- name: usage_of_user(user_id, first_day)
SELECT day, agent, CAST(sum(calls) AS BIGINT) AS calls, CAST(sum(errors) AS BIGINT) AS errors, CAST(sum(prompt_tokens) AS BIGINT) AS prompt_tokens,
       CAST(sum(completion_tokens) AS BIGINT) AS completion_tokens, CAST(sum(total_tokens) AS BIGINT) AS total_tokens
FROM usage_days WHERE user_id = :user_id AND day >= :first_day GROUP BY day, agent ORDER BY day, agent;

-- name: usage_by(first_day, last_day, by_day, by_agent, by_caller, by_key, by_user, limit)
SELECT sums.*, coalesce(k.name, '') AS key_name, coalesce(u.username, '') AS user_name
FROM (
SELECT CASE WHEN :by_day = 1 THEN day ELSE '' END AS day,
       CASE WHEN :by_agent = 1 THEN agent ELSE '' END AS agent,
       CASE WHEN :by_caller = 1 THEN caller ELSE '' END AS caller,
       CASE WHEN :by_key = 1 THEN key_id ELSE '' END AS key,
       CASE WHEN :by_user = 1 THEN user_id ELSE '' END AS "user",
       CAST(sum(calls) AS BIGINT) AS calls, CAST(sum(errors) AS BIGINT) AS errors, CAST(sum(prompt_tokens) AS BIGINT) AS prompt_tokens,
       CAST(sum(completion_tokens) AS BIGINT) AS completion_tokens, CAST(sum(total_tokens) AS BIGINT) AS total_tokens
FROM usage_days WHERE day >= :first_day AND day <= :last_day
GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
LIMIT :limit
) AS sums LEFT JOIN api_keys k ON k.id = sums.key LEFT JOIN users u ON u.id = sums."user"
ORDER BY 1, 2, 3, 4, 5;

-- name: calls_page(before_id, from_ms, to_ms, request_id, caller, key_id, user_id, agent, end_user, task, surface, status, only_errors, limit)
-- The newest first, below `before_id`; '' and 0 filter nothing.
SELECT c.*, coalesce(k.name, '') AS key_name, coalesce(u.username, '') AS user_name
FROM (
SELECT * FROM calls
WHERE id < :before_id AND began_ms >= :from_ms AND began_ms < :to_ms
  AND (CAST(:request_id AS TEXT) = '' OR request_id = :request_id)
  AND (CAST(:caller AS TEXT) = '' OR caller = :caller)
  AND (CAST(:key_id AS TEXT) = '' OR key_id = :key_id)
  AND (CAST(:user_id AS TEXT) = '' OR user_id = :user_id)
  AND (CAST(:agent AS TEXT) = '' OR agent = :agent)
  AND (CAST(:end_user AS TEXT) = '' OR end_user = :end_user)
  AND (CAST(:task AS TEXT) = '' OR task = :task)
  AND (CAST(:surface AS TEXT) = '' OR surface = :surface)
  AND (:status = 0 OR status = :status)
  AND (:only_errors = 0 OR error <> '')
ORDER BY id DESC
LIMIT :limit
) AS c LEFT JOIN api_keys k ON k.id = c.key_id LEFT JOIN users u ON u.id = c.user_id
ORDER BY c.id DESC;

-- name: call_by_id(id)^
SELECT c.*, coalesce(k.name, '') AS key_name, coalesce(u.username, '') AS user_name
FROM calls c LEFT JOIN api_keys k ON k.id = c.key_id LEFT JOIN users u ON u.id = c.user_id
WHERE c.id = :id;

-- name: call_body(call_id)^
SELECT request, answer, request_size, answer_size FROM call_bodies WHERE call_id = :call_id;

-- name: calls_expire(before_id, limit)
-- Some at a time, so that nothing else waits for long.
DELETE FROM calls WHERE id IN (SELECT id FROM calls WHERE id < :before_id ORDER BY id LIMIT :limit)
RETURNING id;

-- name: call_bodies_expire(before_ms, limit)
DELETE FROM call_bodies
WHERE call_id IN (SELECT call_id FROM call_bodies WHERE began_ms < :before_ms LIMIT :limit)
RETURNING call_id;

-- name: calls_of_user(caller, end_user, most)
SELECT id, began_ms, agent, surface, status, prompt_tokens, completion_tokens, total_tokens
FROM calls WHERE caller = :caller AND end_user = :end_user
ORDER BY id DESC
LIMIT :most;

-- name: call_bodies_forget(caller, end_user, most)!
DELETE FROM call_bodies WHERE call_id IN
    (SELECT id FROM calls WHERE caller = :caller AND end_user = :end_user ORDER BY id LIMIT :most);

-- name: calls_forget(caller, end_user, most)
UPDATE calls SET end_user = '' WHERE id IN
    (SELECT id FROM calls WHERE caller = :caller AND end_user = :end_user ORDER BY id LIMIT :most)
RETURNING id;
