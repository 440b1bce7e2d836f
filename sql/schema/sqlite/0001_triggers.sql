-- Every change to an account or a key gets the next version.

CREATE TRIGGER users_added AFTER INSERT ON users BEGIN
    UPDATE change_counter SET version = version + 1;
    INSERT INTO changes SELECT version, 'user', NEW.id, unixepoch() * 1000 FROM change_counter;
END;
CREATE TRIGGER users_changed
AFTER UPDATE OF id, username, token_version, role, status, max_api_calls ON users BEGIN
    UPDATE change_counter SET version = version + 1;
    INSERT INTO changes SELECT version, 'user', NEW.id, unixepoch() * 1000 FROM change_counter;
END;
CREATE TRIGGER users_deleted AFTER DELETE ON users BEGIN
    UPDATE change_counter SET version = version + 1;
    INSERT INTO changes SELECT version, 'user', OLD.id, unixepoch() * 1000 FROM change_counter;
END;
CREATE TRIGGER api_keys_added AFTER INSERT ON api_keys BEGIN
    UPDATE change_counter SET version = version + 1;
    INSERT INTO changes SELECT version, 'key', NEW.id, unixepoch() * 1000 FROM change_counter;
END;
CREATE TRIGGER api_keys_changed AFTER UPDATE ON api_keys BEGIN
    UPDATE change_counter SET version = version + 1;
    INSERT INTO changes SELECT version, 'key', NEW.id, unixepoch() * 1000 FROM change_counter;
END;
CREATE TRIGGER api_keys_deleted AFTER DELETE ON api_keys BEGIN
    UPDATE change_counter SET version = version + 1;
    INSERT INTO changes SELECT version, 'key', OLD.id, unixepoch() * 1000 FROM change_counter;
END;
