-- name: user_insert(id, username, name_key, email, email_key, full_name, password_hash, role, status, max_api_calls, now_ms)$
-- The id, or nothing if the name or the address is taken.
INSERT INTO users (id, username, name_key, email, email_key, full_name, password_hash, role, status, max_api_calls, created_ms, updated_ms)
VALUES (:id, :username, :name_key, :email, :email_key, :full_name, :password_hash, :role, :status, :max_api_calls, :now_ms, :now_ms)
ON CONFLICT DO NOTHING
RETURNING id;

-- name: user_by_id(id)^
SELECT u.*, coalesce(t.calls, 0) AS calls
FROM users u LEFT JOIN usage_totals t ON t.scope = 'user:' || u.id AND t.period = ''
WHERE u.id = :id;

-- name: user_by_login(name_key)^
-- By name, or by address if it is one: a name holds no @, so one cannot pass for the other.
SELECT u.*, coalesce(t.calls, 0) AS calls
FROM users u LEFT JOIN usage_totals t ON t.scope = 'user:' || u.id AND t.period = ''
WHERE (u.name_key = :name_key AND u.name_key NOT LIKE '%@%') OR u.email_key = :name_key;

-- name: users_page(role, status, limit, offset)
SELECT u.*, coalesce(t.calls, 0) AS calls
FROM users u LEFT JOIN usage_totals t ON t.scope = 'user:' || u.id AND t.period = ''
WHERE (CAST(:role AS TEXT) = '' OR u.role = :role) AND (CAST(:status AS TEXT) = '' OR u.status = :status)
ORDER BY u.created_ms, u.id
LIMIT :limit OFFSET :offset;

-- name: users_count(role, status)$
SELECT count(*) FROM users
WHERE (CAST(:role AS TEXT) = '' OR role = :role) AND (CAST(:status AS TEXT) = '' OR status = :status);

-- name: users_other_admins(id)$
-- How many others could still administer.
SELECT count(*) FROM users WHERE role = 'admin' AND status = 'active' AND id <> :id;

-- name: user_update(id, email, email_key, full_name, role, status, max_api_calls, now_ms)$
UPDATE users
SET email = :email, email_key = :email_key, full_name = :full_name, role = :role, status = :status,
    max_api_calls = :max_api_calls, updated_ms = :now_ms
WHERE id = :id
RETURNING id;

-- name: user_set_password(id, password_hash, now_ms)$
-- Tokens that were given out for the old password end with it.
UPDATE users
SET password_hash = :password_hash, token_version = token_version + 1, updated_ms = :now_ms
WHERE id = :id
RETURNING token_version;

-- name: user_rehash(id, old_hash, password_hash)$
UPDATE users SET password_hash = :password_hash WHERE id = :id AND password_hash = :old_hash
RETURNING id;

-- name: user_logged_in(id, now_ms)$
UPDATE users SET last_login_ms = :now_ms WHERE id = :id RETURNING id;

-- name: user_delete(id)$
DELETE FROM users WHERE id = :id RETURNING id;

-- name: users_known()
-- What every replica keeps in memory.
SELECT id, username, role, status, token_version, max_api_calls FROM users;

-- name: user_known(id)^
SELECT id, username, role, status, token_version, max_api_calls FROM users WHERE id = :id;
