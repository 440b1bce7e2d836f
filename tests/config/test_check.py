"""Mistakes pasted into config.yaml: a problem if it can never work, else a warning."""

import sqlite3

import pytest
from problems import problems

from gateway.config.check import address_problem, key_problem, name_problem, unmounted, warnings
from gateway.config.load import ConfigError, home, load, parse

API = {
    "dify": "https://api.dify.ai/v1", "fastgpt": "https://api.fastgpt.in/api",
    "coze": "https://api.coze.cn", "zhipu": "https://open.bigmodel.cn",
    "openai": "https://api.openai.com/v1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("platform", "url", "hint"),
    [
        ("dify", "https://cloud.dify.ai/app/6c1e/develop", "https://api.dify.ai/v1"),
        ("dify", "https://udify.app/chat/AbCdEfGh12345678", "https://api.dify.ai/v1"),
        ("dify", "http://10.0.0.5/app/6c1e77aa-1/workflow", "http://10.0.0.5/v1"),
        ("dify", "http://10.0.0.5:8080/apps", "http://10.0.0.5:8080/v1"),
        ("dify", "http://10.0.0.5/chat/AbCdEfGh12345678", "http://10.0.0.5/v1"),
        ("coze", "https://www.coze.cn/space/73/bot/75", "https://api.coze.cn"),
        ("coze", "https://www.coze.cn", "https://api.coze.cn"),
        ("coze", "https://www.coze.com/store/bot/7", "https://api.coze.com"),
        ("fastgpt", "https://cloud.fastgpt.cn/chat/share?shareId=a1", "https://cloud.fastgpt.cn/api"),
        ("fastgpt", "http://h:3000/chat?appId=6", "http://h:3000/api"),
        ("fastgpt", "http://h:3000/app/detail?appId=6", "http://h:3000/api"),
        ("zhipu", "https://bigmodel.cn/usercenter/proj-mgmt/apikeys", "https://open.bigmodel.cn"),
        ("zhipu", "https://chatglm.cn/main/gdetail/65", "https://chatglm.cn"),
        ("openai", "https://platform.openai.com/api-keys", "https://api.openai.com/v1"),
        ("openai", "https://chat.deepseek.com", "https://api.deepseek.com"),
    ],
)  # fmt: skip
def test_a_page_for_people_is_no_api(platform, url, hint):
    assert address_problem(platform, url) == (
        f"is the address of a page for people; the API is at {hint}"
    )


@pytest.mark.parametrize(
    ("platform", "url", "tail"),
    [
        ("dify", "https://api.dify.ai/v1/chat/completions", "/v1/chat/completions"),
        ("dify", "https://api.dify.ai/v1/files/upload", "/v1/files/upload"),
        ("openai", "https://api.dify.ai/v1/chat-messages", "/v1/chat-messages"),
        ("openai", "https://api.openai.com/v1/embeddings/", "/v1/embeddings"),
        ("coze", "https://api.coze.cn/v1/workflow/run", "/v1/workflow/run"),
        ("openai", "https://api.coze.cn/v3/chat", "/v3/chat"),
    ],
)
def test_an_endpoint_of_another_kind_is_no_base_url(platform, url, tail):
    assert address_problem(platform, url) == f"is an endpoint; leave out {tail} at its end"


@pytest.mark.parametrize(
    "url",
    ["https://h/v1?", "https://h/v1#top", "https://h/v1?key=1", "https://h/v1?api-version=1&key=2"],
)  # fmt: skip
def test_a_query_is_no_part_of_a_base_url(url):
    assert address_problem("openai", url).startswith("must not contain a query")


@pytest.mark.parametrize(
    "url", ["https://<host>/v1", "https://h/v1 # mine", "https://h/…", "http://h/v1;", "http://h，"]
)
def test_notes_and_placeholders_are_no_address(url):
    assert "must be the address alone" in address_problem("openai", url)


@pytest.mark.parametrize("url", ["http://h/v1\u200b", "\ufeffhttp://h/v1", "http://h\u200e/v1"])
def test_invisible_characters_in_an_address_are_a_problem(url):
    found = problems(f'agents: {{a: {{platform: openai, base_url: "{url}", model: m}}}}')
    assert found[0].startswith("agents.a.base_url: ")


@pytest.mark.parametrize("url", ["http://http://h/v1", "https://http://h", "http://https//h"])
def test_an_address_has_one_scheme(url):
    assert address_problem("openai", url) == "has http:// in it twice"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://www.coze.cn/space/1/bot/123", "give the id alone: 123"),
        ("https://www.coze.cn/work_flow?space_id=1&workflow_id=75", "give the id alone: 75"),
        ("https://h/app/detail?appId=66ab", "give the id alone: 66ab"), ("https://h/x", "give the id alone"),
        (" gpt-4", "a space at an end"), ("gpt-4 ", "a space at an end"), ("gpt-4\u200b", "cannot be seen"),
    ],
)  # fmt: skip
def test_an_id_is_no_address_and_has_no_space_around_it(name, words):
    assert name_problem(name).endswith(words) or words in name_problem(name)


@pytest.mark.parametrize("name", ["123", "Qwen/Qwen3-8B", "my model", "模型", "", None, 7])
def test_names_that_work_are_no_problem(name):
    assert name_problem(name) == ""


def test_ids_and_names_are_looked_at_in_every_agent():
    found = problems(
        """
agents:
  a: {platform: coze, base_url: "http://h", api_key: pat_1, bot_id: "https://www.coze.cn/space/1/bot/123"}
  b: {platform: openai, base_url: "http://h", model: " m", models: [x, "y "]}
"""
    )
    paths = ["agents.a.bot_id", "agents.b.model", "agents.b.models"]
    assert [line.partition(":")[0] for line in found] == paths


@pytest.mark.parametrize(
    ("platform", "url"),
    [
        *API.items(),
        ("dify", "http://10.0.0.5"), ("dify", "http://10.0.0.5/dify/v1"), ("dify", "https://apps.example.com"),
        ("dify", "https://api.dify.ai/v1/chat-messages"), ("dify", "http://h/agent"), ("dify", "http://h/app/v1"),
        ("fastgpt", "https://cloud.fastgpt.cn/api/v1/chat/completions"), ("fastgpt", "http://h/v1"),
        ("coze", "https://api.coze.cn/v3/chat"), ("zhipu", "https://chatglm.cn"),
        ("zhipu", "https://open.bigmodel.cn/api/paas/v4/chat/completions"),
        ("openai", "https://h/v1/chat/completions"), ("openai", "https://open.bigmodel.cn/api/paas/v4"),
        ("openai", "https://x.openai.azure.com/openai/deployments/gpt-4o?api-version=2024-06-01"),
        ("openai", "http://localhost:11434/v1/"), ("openai", "https://ark.cn-beijing.volces.com/api/v3"),
    ],
)  # fmt: skip
def test_addresses_that_work_are_no_problem(platform, url):
    assert address_problem(platform, url) == ""


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("Bearer app-abcdefgh", "begins with Bearer"), ("bearer app-abcdefgh", "begins with Bearer"),
        ("app-abcdefgh\n", "a line end"), (" app-abcdefgh", "a space"), ("app-abc defgh", "a space"),
        ('"app-abcdefgh"', "quotes"), ("“app-abcdefgh”", "quotes"), ("app-你的密钥", "Chinese"),
        ("app-…", "Chinese"), ("app-abc\x00", "Chinese"), ("DIFY_API_KEY=app-abcdefgh", "its name"),
        ("api_key: app-abcdefgh", "its name"), ("dataset-abcdefgh", "knowledge base"),
        ("app-xxx", "placeholder"), ("your-api-key", "placeholder"), ("<key>", "placeholder"),
        ("app-your-key", "placeholder"), ("sk-xxxxxxxx", "placeholder"), ("app-****abcd", "masked"),
        ("app-abcd...efgh", "masked"), ("app-abcdefgh;", "ends in"), ("app-abcdefgh,", "ends in"),
        ("app-abc,app-def", "several keys"), ("abc|def", "several keys"),
    ],
)  # fmt: skip
def test_a_key_with_something_else_in_it_is_a_problem(key, words):
    agent = {"platform": "dify", "base_url": API["dify"], "api_key": key}
    assert words in key_problem(agent)
    assert key_problem({**agent, "base_url": "demo:"}) == ""


def test_a_key_of_zhipu_has_a_dot():
    agent = {"platform": "zhipu", "base_url": API["zhipu"], "api_key": "0123456789abcdef"}
    assert "has no dot" in key_problem(agent)
    assert key_problem({**agent, "api_key": "0123.secret"}) == ""
    assert key_problem({**agent, "base_url": "http://my-proxy:8080"}) == ""
    assert "has no dot" in key_problem({**agent, "base_url": "http://h", "api": "glms"})


def test_a_model_server_of_ones_own_takes_any_key():
    agent = {"platform": "openai", "base_url": "http://10.0.0.7:8000/v1", "api_key": "sk-xxx"}
    for key in ("sk-xxx", "***", "pass,word", "sk-1"):
        assert key_problem({**agent, "api_key": key}) == ""
    for key, words in {
        "sk-a,sk-b": "several keys",
        "sk-1***2": "masked",
        "sk-1;": "ends in",
    }.items():
        assert words in key_problem({**agent, "api_key": key})
    assert "placeholder" in key_problem({**agent, "base_url": API["openai"]})


def test_no_problem_repeats_the_key():
    text = 'agents: {a: {platform: dify, base_url: "http://h", api_key: "Bearer Pa55w0rd-1"}}'
    assert "Pa55" not in str(problems(text))


def test_one_bad_section_does_not_hide_the_others():
    found = problems(
        """
server: {host: 0.0.0.0, port: many}
auth: {keys: [{name: a, key: same-key-1}, {name: b, key: same-key-1}]}
storage: {s3: {access_key: x}}
agents:
  a: {platform: dify, base_url: "https://cloud.dify.ai/app/1", retries: many}
  b: {platform: openai, upload: platform}
"""
    )
    for path in ("server.port", "auth.keys[1].key", "storage.s3", "agents.a.base_url",
                 "agents.a.retries", "agents.b.upload"):  # fmt: skip
        assert any(line.startswith(f"{path}:") for line in found), (path, found)


def warned(text, **environ):
    return list(warnings(parse(text, environ)))


def test_a_demo_that_others_can_reach_is_a_warning():
    text = "agents: {a: {platform: dify}}\n"
    assert warned(text) == []
    for more in ("server: {host: 0.0.0.0}", "server: {trusted_proxies: [10.0.0.1]}"):
        (warning,) = warned(text + more)
        assert warning.startswith("demo: a simulator answers for a,")


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("{platform: fastgpt, base_url: 'http://h', api_key: app-1234567890}", "looks like a key of Dify"),
        ("{platform: dify, base_url: 'http://h', api_key: sk-1234567890}", "looks like a key of OpenAI"),
        ("{platform: dify, base_url: 'http://h', api_key: pat_1234567890}", "looks like a key of Coze"),
        ("{platform: openai, base_url: 'http://h/v1/chat/completions', model: m}", "/v1/chat/completions at its end is left out"),
        ("{platform: openai, base_url: 'http://h', model: m, api_key: sk-xxx}", "is a placeholder"),
        ("{platform: openai, base_url: 'http://h'}", "every call must name one: <agent>/<model>"),
        ("{platform: dify, api_key: app-1234567890}", "since base_url is demo:"),
    ],
)  # fmt: skip
def test_what_is_odd_is_a_warning(agent, words):
    (warning,) = warned(f"agents: {{a: {agent}}}")
    assert words in warning


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("database: 'postgresql://gateway:<password>@db/gateway'", "database: has the placeholder <password>"),
        ("redis: {url: 'redis://:pw@<host>:6379/0'}", "redis.url: has the placeholder <host>"),
        ("storage: {url: 's3://<your bucket>/x'}", "storage.url: has the placeholder <your bucket>"),
        ("storage: {s3: {bucket: '<bucket>'}}", "storage.s3.bucket: has the placeholder <bucket>"),
    ],
)  # fmt: skip
def test_a_placeholder_in_the_address_of_a_store_is_a_problem(section, problem):
    with pytest.raises(ConfigError) as caught:
        parse(f"agents: {{a: {{platform: dify}}}}\nauth: {{jwt_secret: {'j' * 40}}}\n{section}", {})
    (line,) = caught.value.problems
    assert line == f"{problem} in it; put the real value there"


def test_folders_elsewhere_that_are_not_there_are_a_warning(tmp_path):
    (tmp_path / "config.yaml").write_text(
        f"agents: {{a: {{platform: dify}}}}\nstorage: {{url: 'file:{tmp_path}/nas/uploads'}}\n"
        "record: {spool: /gone/spool}\n"
    )
    config = load(tmp_path / "config.yaml", {})
    assert list(warnings(config, tmp_path)) == [
        "record.spool: the folder /gone/spool is not there (the start needs it); is a disk not"
        " mounted?"
    ]


@pytest.mark.parametrize(
    ("setting", "missing"),
    [("database: 'sqlite:///{disk}/gw.db'", "database: the folder {disk} is"),
     ("database: 'sqlite:///{disk}/a/gw.db'", "database: the folder {disk}/a is"),
     ("storage: {{url: 'file:{disk}/up'}}", "storage.url: the folder {disk} is"),
     ("record: {{spool: '{disk}/spool/'}}", "record.spool: the folder {disk} is"),
     ("storage: {{url: 'file:{disk}'}}", ""), ("database: 'sqlite:///{here}/a/gw.db'", ""),
     ("storage: {{url: 'file:{here}/a/b'}}", ""), ("database: none", "")],
)  # fmt: skip
def test_the_start_makes_no_folder_of_a_missing_disk(tmp_path, setting, missing):
    here, disk = tmp_path / "here", tmp_path / "disk"
    config = load_in(here, setting.format(here=here, disk=disk))
    found = unmounted(config, here)
    assert found.startswith(missing.format(disk=disk))
    assert bool(found) == bool(missing)
    disk.joinpath("a").mkdir(parents=True)
    assert unmounted(config, here) == ""


@pytest.mark.parametrize(
    "mistake", ["server: {port: x}", "server: {ops_port: 3000, port: 3000}", "agents.b: 1"]
)
def test_a_problem_hides_no_warning(mistake):
    agents = (
        "agents:\n  a: {platform: dify, base_url: 'https://dify.example.com/v1',"
        " api_key: sk-proj-1234567890}\n"
    )
    with pytest.raises(ConfigError) as caught:
        parse(f"{agents}database: none\n{mistake}\n", {})
    (warning,) = caught.value.warnings
    assert warning.startswith("agents.a.api_key: looks like a key of OpenAI")
    assert len(caught.value.problems) == 1


def test_of_what_has_a_problem_there_is_no_warning():
    agent = "platform: dify, base_url: 'https://dify.example.com/v1'"
    text = f"agents:\n  a: {{{agent}, api_key: sk-proj-1234567890, more: 1}}\n"
    with pytest.raises(ConfigError) as caught:
        parse(f"{text}  b: {{{agent}, api_key: '${{KEY}}'}}\ndatabase: none\n", {})
    assert caught.value.warnings == []


def test_folders_of_gateway_home_are_made(tmp_path):
    load_in(tmp_path / "etc", "storage: {url: 'file:data/a/uploads'}")
    assert home(tmp_path / "etc/config.yaml", {}) == tmp_path / "etc"
    app = tmp_path / "app"
    environ = {"GATEWAY_HOME": str(app)}
    config = load(tmp_path / "etc/config.yaml", environ)
    assert unmounted(config, home(tmp_path / "etc/config.yaml", environ)) == ""
    assert list(warnings(config, app)) == []


def load_in(folder, setting):
    folder.mkdir()
    (folder / "config.yaml").write_text(f"agents: {{a: {{platform: dify}}}}\n{setting}\n")
    return load(folder / "config.yaml", {})


def test_an_admin_password_that_is_not_used_is_a_warning(tmp_path):
    text = "agents: {a: {platform: dify}}\nauth: {admin_password: long-enough-1}\n"
    assert "there is no database" in warned(text + "database: none")[0]
    file = tmp_path / "gateway.db"
    assert warned(text + f"database: sqlite:///{file}") == []
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE users (id)")
    connection.execute("INSERT INTO users VALUES (1)")
    connection.commit()
    connection.close()
    (warning,) = warned(text + f"database: sqlite:///{file}")
    assert "has accounts already" in warning
