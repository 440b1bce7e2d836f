-- Every change to an account or a key gets the next version.

CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE change_counter SET version = version + 1;
    INSERT INTO changes
    SELECT version, TG_ARGV[0], coalesce(NEW.id, OLD.id), extract(epoch FROM now()) * 1000
    FROM change_counter;
    RETURN NULL;
END $$;
CREATE TRIGGER users_changed
AFTER INSERT OR DELETE OR UPDATE OF id, username, token_version, role, status, max_api_calls
ON users FOR EACH ROW EXECUTE FUNCTION note_change('user');
CREATE TRIGGER api_keys_changed
AFTER INSERT OR DELETE OR UPDATE
ON api_keys FOR EACH ROW EXECUTE FUNCTION note_change('key');

-- TRUNCATE names no rows: a version that is left out makes every replica read everything again.
CREATE FUNCTION note_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE change_counter SET version = version + 2;
    RETURN NULL;
END $$;
CREATE TRIGGER users_truncated AFTER TRUNCATE ON users EXECUTE FUNCTION note_truncate();
CREATE TRIGGER api_keys_truncated AFTER TRUNCATE ON api_keys EXECUTE FUNCTION note_truncate();
