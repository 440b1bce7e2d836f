-- name: api_key_insert(id, owner_id, name, description, secret_sha256, permissions, agents, rate_limits, max_calls, now_ms, expires_ms, trust_client_headers, client_headers_secret)$
INSERT INTO api_keys (id, owner_id, name, description, secret_sha256, permissions, agents, rate_limits, max_calls, created_ms, expires_ms, trust_client_headers, client_headers_secret)
VALUES (:id, :owner_id, :name, :description, :secret_sha256, :permissions, :agents, :rate_limits, :max_calls, :now_ms, :expires_ms, :trust_client_headers, :client_headers_secret)
RETURNING id;

-- name: api_key_by_id(id)^
SELECT k.*, u.username, t.last_ms AS last_used_ms, coalesce(t.calls, 0) AS calls
FROM api_keys k JOIN users u ON u.id = k.owner_id
LEFT JOIN usage_totals t ON t.scope = 'key:' || k.id AND t.period = ''
WHERE k.id = :id;

-- name: api_keys_page(owner_id, limit, offset)
-- Those of one owner, or of all if it is ''.
SELECT k.*, u.username, t.last_ms AS last_used_ms, coalesce(t.calls, 0) AS calls
FROM api_keys k JOIN users u ON u.id = k.owner_id
LEFT JOIN usage_totals t ON t.scope = 'key:' || k.id AND t.period = ''
WHERE CAST(:owner_id AS TEXT) = '' OR k.owner_id = :owner_id
ORDER BY k.created_ms DESC, k.id
LIMIT :limit OFFSET :offset;

-- name: api_keys_count(owner_id)$
SELECT count(*) FROM api_keys WHERE CAST(:owner_id AS TEXT) = '' OR owner_id = :owner_id;

-- name: api_keys_live(owner_id)$
-- How many keys somebody has that are not over.
SELECT count(*) FROM api_keys WHERE owner_id = :owner_id AND revoked_ms IS NULL;

-- name: api_key_update(id, name, description, permissions, agents, rate_limits, max_calls, expires_ms, trust_client_headers, client_headers_secret)$
UPDATE api_keys
SET name = :name, description = :description, permissions = :permissions, agents = :agents,
    rate_limits = :rate_limits, max_calls = :max_calls, expires_ms = :expires_ms,
    trust_client_headers = :trust_client_headers, client_headers_secret = :client_headers_secret
WHERE id = :id
RETURNING id;

-- name: api_key_revoke(id, now_ms)$
UPDATE api_keys SET revoked_ms = :now_ms WHERE id = :id AND revoked_ms IS NULL RETURNING id;

-- name: api_key_delete(id)$
DELETE FROM api_keys WHERE id = :id RETURNING id;

-- name: api_keys_cleanup(before_ms)
-- Delete what was revoked or ran out before then.
DELETE FROM api_keys WHERE revoked_ms < :before_ms OR expires_ms < :before_ms RETURNING id;

-- name: api_keys_known()
-- What every replica keeps in memory.
SELECT id, owner_id, secret_sha256, permissions, agents, rate_limits, max_calls, expires_ms, revoked_ms,
    trust_client_headers, client_headers_secret
FROM api_keys;

-- name: api_key_known(id)^
SELECT id, owner_id, secret_sha256, permissions, agents, rate_limits, max_calls, expires_ms, revoked_ms,
    trust_client_headers, client_headers_secret
FROM api_keys WHERE id = :id;
