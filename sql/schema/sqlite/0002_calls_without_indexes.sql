-- SQLite plans a query before it knows the values, so one whose filters may be empty reads along the
-- primary key, whatever else there is. Keeping these in order took half of the time of a call's row.

DROP INDEX calls_by_request;
DROP INDEX calls_by_key;
DROP INDEX calls_by_user;
DROP INDEX calls_by_agent;
