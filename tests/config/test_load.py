import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from gateway.config import kinds
from gateway.config.load import ConfigError, load, parse
from gateway.config.models import Config
from gateway.config.schema import config_schema

ROOT = Path(__file__).parent.parent.parent
AGENT = "agents: {a: {platform: dify}}\n"


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ)
    return caught.value.problems


def test_the_shipped_file_is_valid_without_any_environment():
    config = load(ROOT / "config.yaml", {})
    assert list(config.agents) == ["fastgpt", "dify", "coze", "zhipu", "openai"]
    assert all(agent.is_demo for agent in config.agents.values())
    assert config.anonymous
    assert not load(ROOT / "config.yaml", {"HOST": "0.0.0.0"}).anonymous


def test_two_variables_make_an_agent_the_real_one():
    environ = {"DIFY_BASE_URL": "https://api.dify.ai/v1/", "DIFY_API_KEY": "app-123456789"}
    dify = load(ROOT / "config.yaml", environ).agents["dify"]
    assert dify.base_url == "https://api.dify.ai/v1"
    assert dify.api_key.reveal() == "app-123456789"


def test_all_problems_are_reported_together_by_full_path():
    found = problems(
        """
server: {prot: 1, port: many, keepalive: soon, max_body: 10XB}
auth: {keys: [{name: a, key: short}, {name: a, key: "${NOPE}"}]}
database: mysql://x
agents:
  d: {platform: dfy}
  e: {platform: dify, apikey: x, timeouts: {idel: 3s}, retries: -1}
  e: {platform: dify}
  w: {platform: coze, mode: workflow}
  z: {platform: zhipu, base_url: "open.bigmodel.cn"}
  E: {platform: openai, base_url: "https://user:pw@host/"}
routes: {x: [dd, {agent: w, wieght: 3}], d: [w], y: w}
rate_limits: {chat: often}
extra: 1
"""
    )
    starts = {
        "server.prot: unknown key; did you mean port?",
        "server.port: ",
        "server.keepalive: must be a duration",
        "server.max_body: must be a size",
        "auth.keys[0].key: must have 8 characters",
        "auth.keys[1].key: the environment variable NOPE is not set (set it, for instance in .env,",
        "auth.keys[1].name: the name 'a' is already used",
        "database: must begin with",
        f"agents.d.platform: must be one of {', '.join(kinds.known())}; did you mean dify?",
        "agents.e: given twice",
        "agents.w: workflow_id is needed",
        "agents.z.base_url: must begin with http",
        "agents.z.api_key: is empty",
        "agents.E.base_url: must not contain a user name",
        "agents.E: the name is already used by agents.e",
        "routes.x[0]: there is no agent 'dd'",
        "routes.x[1].wieght: unknown key; did you mean weight?",
        "routes.d: the name is already used by agents.d",
        "routes.y: ",
        "rate_limits.chat: must be a rate",
        "extra: unknown key",
    }
    missing = [start for start in starts if not any(p.startswith(start) for p in found)]
    assert missing == []
    assert len(found) == len(starts)


@pytest.mark.parametrize("name", ["a", "模型", "org/model:7b", "x" * 128])
def test_a_name_may_be_what_clients_call_a_model(name):
    assert list(parse(f'agents: {{"{name}": {{platform: dify}}}}', {}).agents) == [name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 129, "should have at most 128 characters"),
        ("/a", "contains characters that are not allowed here"),
        (r"a\n", "contains characters that are not allowed here"),
        (" a", "contains characters that are not allowed here"),
    ],
)
def test_any_other_name_is_refused_and_why(name, words):
    agents, routes = f'"{name}": {{platform: dify}}', f'"{name}": [a]'
    assert any(words in problem for problem in problems(f"agents: {{{agents}}}"))
    assert any(words in problem for problem in problems(f"{AGENT}routes: {{{routes}}}"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("1.5m", 90), ("2h", 7200), ("7", 7), (9, 9)]
)
def test_durations(text, seconds):
    assert parse(f"{AGENT}server: {{keepalive: {text}}}", {}).server.keepalive == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("10MiB", 10 << 20), ("100MB", 10**8), ("512 KiB", 512 << 10), (7, 7)]
)
def test_sizes(text, size):
    assert parse(f"{AGENT}server: {{max_body: {text}}}", {}).server.max_body == size


def test_variables_and_defaults():
    text = 'agents: {a: {platform: dify, headers: {X: "${A}-${B:-b}-$${C}"}}, b: {platform: dify, headers: {X: os.environ/A}}}'
    agents = parse(text, {"A": "1", "B": ""}).agents
    assert agents["a"].headers["X"].reveal() == "1-b-${C}"
    assert agents["b"].headers["X"].reveal() == "1"
    assert parse(AGENT + 'server: {port: "${P:-3001}"}', {}).server.port == 3001
    assert "no variable" in problems(AGENT + 'server: {host: "${not a name}"}')[0]


@pytest.mark.parametrize(
    "url", ["sqlite:////tmp/x.db", "sqlite:///data/x.db", "postgresql://u:p@h/d"]
)
def test_database_urls(url):
    secret = {"JWT_SECRET": "s" * 32}
    assert parse(f"{AGENT}database: '{url}'", secret).database.reveal() == url
    assert parse(AGENT, {**secret, "DATABASE_URL": url}).database.reveal() == url
    assert "p@h" not in repr(parse(f"{AGENT}database: '{url}'", secret))


@pytest.mark.parametrize(
    "text", ["", "- a", "a: [", "agents: &a {x: *a}", "? [a]\n: 1", "agents: 3", "agents: {d: 4}",
             "\t", "agents: {a: {platform: [dify]}}", "x" * 100_000, "a: !!python/object:os.system x",
             "agents: {a: {platform: dify, headers: {X: \"a\\nb\"}}}"],
)  # fmt: skip
def test_a_file_of_another_shape_is_a_problem_not_a_traceback(text):
    assert problems(text)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    for path, content in (
        (tmp_path / "none.yaml", None),
        (tmp_path / "bytes.yaml", b"\xff\xfe\x00"),
    ):
        if content:
            path.write_bytes(content)
        with pytest.raises(ConfigError):
            load(path, {})


def test_anonymous_access_from_elsewhere_must_be_explicit():
    open_to_all = AGENT + "server: {host: 0.0.0.0}\nauth: {anonymous: true}"
    assert problems(open_to_all)[0].startswith("auth.anonymous: anyone who reaches 0.0.0.0")
    spelled = open_to_all.replace("true}", "true, anonymous_anywhere: true}")
    assert parse(spelled, {}).anonymous
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "'::1'"):
        assert parse(f"{AGENT}server: {{host: {host}}}", {}).anonymous
    for host in ("0.0.0.0", "'::'", "10.0.0.1", "127.0.0.1.evil.test", "''"):
        assert not parse(f"{AGENT}server: {{host: {host}}}", {}).anonymous


def test_a_missing_key_is_a_problem_except_for_openai():
    assert problems("agents: {a: {platform: dify, base_url: 'http://x'}}") == [
        "agents.a.api_key: is empty; the platform at base_url will ask for one"
    ]
    assert parse("agents: {a: {platform: openai, base_url: 'http://localhost:11434'}}", {})


def test_ids_that_yaml_takes_for_numbers_are_texts():
    text = "agents: {1: {platform: coze, base_url: 'http://x', api_key: 123456789, bot_id: 7553123412341234123}, yes: {platform: dify}}"
    agents = parse(text, {}).agents
    assert list(agents) == ["1", "yes"]
    assert agents["1"].bot_id == "7553123412341234123"
    assert agents["1"].api_key.reveal() == "123456789"


@pytest.mark.parametrize(
    "written",
    ["0123", "12:34:56", "0777123456", "7_553", "1.10", "0x10", "1e3", "2026-11-22", "no"],
)
def test_words_that_look_like_numbers_stay_as_they_are_written(written):
    text = f"agents: {{a: {{platform: coze, bot_id: {written}, headers: {{X: {written}}}}}}}"
    agent = parse(text, {}).agents["a"]
    assert (agent.bot_id, agent.headers["X"].reveal()) == (written, written)
    assert str(agent.headers["X"]) == "***"


def test_a_route_may_name_agents_that_look_like_numbers():
    text = "agents: {1: {platform: dify}, yes: {platform: dify}}\nroutes: {x: [1, yes]}"
    assert [target.agent for target in parse(text, {}).routes["x"]] == ["1", "yes"]


def test_a_typo_in_platform_is_reported_as_a_typo():
    assert problems("agents: {a: {platfrom: dify}}") == [
        "agents.a.platfrom: unknown key; did you mean platform?"
    ]


def test_host_and_port_of_the_environment_are_defaults():
    environ = {"HOST": "127.0.0.5", "PORT": "3009"}
    assert parse(AGENT, environ).server.port == 3009
    assert parse(AGENT, environ).server.host == "127.0.0.5"
    assert parse(AGENT + "server: {port: 4000}", environ).server.port == 4000
    assert parse(AGENT, environ, port=5000).server.port == 5000


def test_secrets_are_not_in_problems_or_in_the_repr():
    canary = "sk-canary-0123456789"
    text = f"""
agents: {{a: {{platform: dify, base_url: 'http://x', api_key: {canary}, retries: {canary}}}}}
auth: {{jwt_secret: {canary}, keys: [{{name: n, key: {canary}, permissions: [{canary}]}}]}}
"""
    assert canary not in "".join(problems(text))
    good = f"agents: {{a: {{platform: dify, api_key: {canary}}}}}\nredis: 'redis://:{canary}@h'"
    config = parse(good, {})
    assert canary not in repr(config) + str(config) + config.model_dump_json()
    assert repr(config.agents["a"].api_key) == "Secret('***')"


def test_the_schema_matches_the_models_and_the_shipped_file():
    stored = json.loads((ROOT / "config" / "config.schema.json").read_text("utf-8"))
    assert stored == config_schema()
    jsonschema.validate(yaml.safe_load((ROOT / "config.yaml").read_text("utf-8")), stored)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"agents": {"a": {"platform": "dfy"}}}, stored)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"agents": {"a": {"platform": "dify"}}, "sever": {}}, stored)


def test_a_configuration_cannot_be_changed():
    config = parse(AGENT, {})
    with pytest.raises(ValueError, match="frozen"):
        config.database = "x"
    assert isinstance(config, Config)


def test_postgresql_demands_a_secret_that_all_replicas_share():
    text = AGENT + "database: postgresql://u:p@h/d"
    assert [p.partition(":")[0] for p in problems(text)] == ["auth.jwt_secret"]
    assert "32 characters" in problems(text, JWT_SECRET="short")[0]
    assert parse(text, {"JWT_SECRET": "s" * 32})
    assert parse(AGENT + "database: none", {}).database.reveal() == ""


@pytest.mark.parametrize(
    "wrong",
    ["rate_limits: {chat: 0/min}", "rate_limits: {chat: 5/year}", "rate_limits: {concurrency: 0}",
     "redis: http://x", "redis: {url: 'redis://x', mode: many}", "redis: {url: 'redis://x', prefix: 'a{b'}",
     "record: {keep: 0d}", "database: 'sqlite:///'", "server: {trusted_proxies: [10.0.0.1/8]}",
     "auth: {keys: [{name: a, key: static-key, agents: [b]}]}",
     "auth: {keys: [{name: a, key: static-key, rate_limits: {chatt: 1/s}}]}"],
)  # fmt: skip
def test_settings_of_limits_and_stores_that_cannot_be(wrong):
    assert len(problems(AGENT + wrong)) == 1


def test_a_rate_is_a_capacity_and_a_refill():
    limits = parse(
        AGENT + "rate_limits: {chat: 90/min, tokens: 3600/h, upload: null}", {}
    ).rate_limits
    assert limits.chat == (90, 1.5)
    assert limits.tokens == (3600, 1.0)
    assert limits.upload is None
    assert limits.agents == (30, 0.5)


def test_redis_may_be_a_url_or_a_mapping():
    assert parse(AGENT, {"REDIS_URL": "redis://:pw@h/0"}).redis.url.reveal() == "redis://:pw@h/0"
    redis = parse(AGENT + "redis: {url: 'rediss://h', mode: cluster}", {}).redis
    assert (redis.mode, redis.prefix) == ("cluster", "gw")
    assert "pw" not in repr(parse(AGENT, {"REDIS_URL": "redis://:pw@h/0"}))


# Storage.

S3_ENVIRON = {
    "S3_ENDPOINT": "http://minio:9000", "S3_ACCESS_KEY": "access", "S3_SECRET_KEY": "hush-hush",
    "S3_BUCKET": "files", "S3_REGION": "cn-north-1", "S3_KEY_PREFIX": "gw/", "S3_ACL": "private",
    "S3_PUBLIC_BASE_URL": "https://cdn.example.com/files/",
}  # fmt: skip


def test_files_lie_in_a_folder_unless_a_bucket_is_named():
    assert parse(AGENT, {}).storage.folder == "data/uploads"
    assert parse(AGENT, {"STORAGE_URL": "file:/srv/up"}).storage.folder == "/srv/up"
    assert parse(AGENT, {"STORAGE_URL": "file:///srv/up"}).storage.folder == "/srv/up"
    storage = parse(AGENT, {"STORAGE_URL": "s3://b/some/prefix"}).storage
    assert (storage.folder, storage.bucket) == ("", ("b", "some/prefix"))
    assert parse(AGENT, {**S3_ENVIRON, "STORAGE_URL": "file:up"}).storage.folder == "up"


@pytest.mark.parametrize("text", [AGENT, AGENT + 'storage: {url: ""}\n'])
def test_the_s3_variables_are_honoured(text):
    storage = parse(text, S3_ENVIRON).storage
    assert (storage.folder, storage.bucket) == ("", ("files", "gw/"))
    assert storage.public_base_url == "https://cdn.example.com/files"
    s3 = storage.s3
    assert (s3.endpoint, s3.region, s3.acl) == ("http://minio:9000", "cn-north-1", "private")
    assert (s3.access_key.reveal(), s3.secret_key.reveal()) == ("access", "hush-hush")
    assert "hush" not in repr(storage)


def test_what_the_file_says_of_s3_wins_over_the_variables():
    text = AGENT + "storage: {url: 's3://mine', public_base_url: 'https://a.b', s3: {region: eu}}"
    storage = parse(text, S3_ENVIRON).storage
    assert (storage.bucket[0], storage.s3.region) == ("mine", "eu")
    assert storage.public_base_url == "https://a.b"


def test_the_public_address_of_a_bucket_is_not_that_of_a_folder():
    storage = parse(AGENT, {"S3_PUBLIC_BASE_URL": "https://cdn.example.com"}).storage
    assert storage.public_base_url is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("storage: {url: 'ftp://x'}", "storage.url: must begin with file: or s3://"),
        ("storage: {url: 's3://'}", "storage.url"),
        ("storage: {max_size: 0}", "storage.max_size"),
        ("storage: {keep: forever}", "storage.keep"),
        ("storage: {link_ttl: 8d}", "storage.link_ttl"),
        ("storage: {extensions: ['a b']}", "storage.extensions[0]"),
        ("storage: {public_base_url: 'nowhere'}", "storage.public_base_url"),
        (
            "storage: {s3: {access_key: only}}",
            "storage.s3: give access_key and secret_key together",
        ),
        ("storage: {s3: {acces_key: x}}", "did you mean access_key"),
        ("fetch: {allow: [everywhere]}", "fetch.allow[0]"),
        ("storage: {keep: 5m}", "must be a day or more"),
        ("storage: {keep: 30 days}", "30d"),
        ("storage: {public_base_url: 'https://a.cn/x?y=1'}", "without a query"),
        ("storage: {s3: {endpoint: 'http://minio:9000'}}", "storage.s3.bucket: is missing"),
    ],
)
def test_mistakes_in_storage_are_named(text, problem):
    assert problem in "\n".join(problems(AGENT + text))


@pytest.mark.parametrize(
    "agent",
    ["{platform: fastgpt, upload: platform}", "{platform: openai, upload: platform}",
     "{platform: zhipu, upload: platform}", "{platform: zhipu, api: application, upload: platform}"],
)  # fmt: skip
def test_a_platform_that_keeps_no_files_cannot_be_given_uploads(agent):
    assert "agents.x.upload: this platform keeps no files" in problems(f"agents: {{x: {agent}}}")[0]


def test_what_an_agent_accepts_are_kinds_of_files():
    assert "agents.x.accepts[0]" in problems("agents: {x: {platform: dify, accepts: [smell]}}")[0]
