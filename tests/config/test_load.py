import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from problems import AGENT, problems

from gateway.config import kinds
from gateway.config.load import ConfigError, load, parse
from gateway.config.models import Config
from gateway.config.schema import config_schema

ROOT = Path(__file__).parent.parent.parent


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
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("1.5m", 90), ("2h", 7200), ("7", 7), (9, 9)]
)
def test_durations(text, seconds):
    assert parse(f"{AGENT}server: {{keepalive: {text}}}", {}).server.keepalive == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("10MiB", 10 << 20), ("100MB", 10**8), ("512 KiB", 512 << 10), (7, 7)]
)
def test_sizes(text, size):
    assert parse(f"{AGENT}server: {{max_body: {text}}}", {}).server.max_body == size


@pytest.mark.parametrize(
    "url", ["sqlite:////tmp/x.db", "sqlite:///data/x.db", "postgresql://u:p@h/d"]
)
def test_database_urls(url):
    secret = {"JWT_SECRET": "s" * 32}
    assert parse(f"{AGENT}database: '{url}'", secret).database.reveal() == url
    assert parse(AGENT, {**secret, "DATABASE_URL": url}).database.reveal() == url
    assert "p@h" not in repr(parse(f"{AGENT}database: '{url}'", secret))


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    for path, content in (
        (tmp_path / "none.yaml", None),
        (tmp_path / "bytes.yaml", b"\xff\xfe\x00"),
    ):
        if content:
            path.write_bytes(content)
        with pytest.raises(ConfigError):
            load(path, {})


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


def test_what_an_agent_accepts_are_kinds_of_files():
    assert "agents.x.accepts[0]" in problems("agents: {x: {platform: dify, accepts: [smell]}}")[0]
