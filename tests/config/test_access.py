"""Who may call without a key."""

from problems import AGENT, problems

from gateway.config.load import parse


def test_anonymous_access_from_elsewhere_must_be_explicit():
    open_to_all = AGENT + "server: {host: 0.0.0.0}\nauth: {anonymous: true}"
    assert problems(open_to_all)[0].startswith("auth.anonymous: anyone who reaches 0.0.0.0")
    spelled = open_to_all.replace("true}", "true, anonymous_anywhere: true}")
    assert parse(spelled, {}).anonymous
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "'::1'"):
        assert parse(f"{AGENT}server: {{host: {host}}}", {}).anonymous
    for host in ("0.0.0.0", "'::'", "10.0.0.1", "127.0.0.1.evil.test", "''"):
        assert not parse(f"{AGENT}server: {{host: {host}}}", {}).anonymous


def test_postgresql_demands_a_secret_that_all_replicas_share():
    text = AGENT + "database: postgresql://u:p@h/d"
    assert [p.partition(":")[0] for p in problems(text)] == ["auth.jwt_secret"]
    assert "32 characters" in problems(text, JWT_SECRET="short")[0]
    assert parse(text, {"JWT_SECRET": "s" * 32})
    assert parse(AGENT + "database: none", {}).database.reveal() == ""


def test_the_secret_of_client_headers_signs_nothing_else():
    secret = "s" * 32
    text = AGENT + (
        "auth: {jwt_secret: '%s', keys: [{name: w, key: 12345678, trust_client_headers: %s,"
        " client_headers_secret: '%s'}]}"
    )
    path = "auth.keys[0].client_headers_secret"
    assert problems(text % (secret, "false", "o" * 32)) == [
        f"{path}: needs trust_client_headers: true"
    ]
    assert problems(text % (secret, "true", secret))[0].startswith(f"{path}: must not be auth.jwt")
    assert problems(text % (secret, "true", ""))[0].startswith(f"{path}: must have 32 characters")
    (key,) = parse(text % (secret, "true", "o" * 32), {}).auth.keys
    assert "o" * 32 not in repr(key)
