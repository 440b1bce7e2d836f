-- name: change_version()$
SELECT version FROM change_counter;

-- name: change_lock()!
-- Accounts change one after the other from here to the end of the transaction.
UPDATE change_counter SET version = version;

-- name: changes_after(version, limit)
SELECT version, kind, id FROM changes WHERE version > :version ORDER BY version LIMIT :limit;

-- name: changes_prune(before_ms)!
-- The newest stays, so that a replica can see that it has missed nothing.
DELETE FROM changes
WHERE changed_ms < :before_ms AND version < (SELECT version FROM change_counter);
