"""`.env` next to config.yaml, `${file:…}`, and paths relative to config.yaml."""

import os

import pytest

from gateway.config.environment import LARGEST_FILE, with_dotenv
from gateway.config.load import ConfigError, load, parse, sources

BOT = """
agents:
  bot: {platform: dify, base_url: "${BOT_URL:-demo:}", api_key: "${BOT_KEY:-}"}
"""


def told(folder, text=BOT, environ=None):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(folder / "config.yaml", environ or {})
    return caught.value.problems


def test_variables_come_from_env_next_to_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "config.yaml").write_text(BOT)
    (tmp_path / ".env").write_bytes(
        b"\xef\xbb\xbf# my bot\r\nexport BOT_URL='http://dify.example/v1'\r\nBOT_KEY=app-$1{x}\r\nEMPTY=\r\n"
    )
    bot = load(tmp_path / "config.yaml", {}).agents["bot"]
    assert (bot.base_url, bot.api_key.reveal()) == ("http://dify.example/v1", "app-$1{x}")


def test_the_real_environment_wins_over_env(tmp_path):
    (tmp_path / ".env").write_text("A=file\nB=file\n")
    assert with_dotenv(tmp_path, {"A": "real"}) == {"A": "real", "B": "file"}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"FINE=1\n!odd line\n", "line 2 is not NAME=value"), (b"\xff\xfe", "is not UTF-8 text"),
     (b"A=1\n" * LARGEST_FILE, f"is larger than {LARGEST_FILE} bytes")],
)  # fmt: skip
def test_an_env_that_cannot_be_read_is_a_problem(tmp_path, content, words):
    (tmp_path / ".env").write_bytes(content)
    assert told(tmp_path) == [f"{tmp_path}/.env: {words}"]


def test_a_secret_is_read_from_a_file_without_its_line_end(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "bot").write_bytes(b"app-secret\r\n")
    text = BOT.replace("${BOT_KEY:-}", "${file:secrets/bot}").replace("demo:", "http://h")
    (tmp_path / "config.yaml").write_text(text)
    assert load(tmp_path / "config.yaml", {}).agents["bot"].api_key.reveal() == "app-secret"
    absolute = text.replace("secrets/bot", str(tmp_path / "secrets" / "bot"))
    assert parse(absolute, {}).agents["bot"].api_key.reveal() == "app-secret"


def test_a_secret_that_is_not_there_is_a_problem_by_full_path(tmp_path):
    text = BOT.replace("${BOT_KEY:-}", "${file:gone}")
    assert told(tmp_path, text) == [f"agents.bot.api_key: there is no file {tmp_path}/gone"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "large", "binary"])
def test_what_is_no_file_with_a_secret_is_a_problem(tmp_path, kind):
    path = tmp_path / "secret"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"x" * (LARGEST_FILE + 1) if kind == "large" else b"\xff\xfe")
    (problem,) = told(tmp_path, BOT.replace("${BOT_KEY:-}", "${file:secret}"))
    assert problem.startswith(f"agents.bot.api_key: the file {path} is ")


def test_sources_are_all_files_that_are_read(tmp_path):
    (tmp_path / "config.yaml").write_text('a: "${file:one} ${file:/two}"\nb: "${file:one}"')
    names = [str(path) for path in sources(tmp_path / "config.yaml")]
    assert names == [f"{tmp_path}/config.yaml", f"{tmp_path}/.env", f"{tmp_path}/one", "/two"]


def test_paths_count_from_the_folder_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "config.yaml").write_text("agents: {a: {platform: dify}}")
    config = load(tmp_path / "config.yaml", {})
    assert config.sqlite_file == f"{tmp_path}/data/gateway.db"
    assert config.storage.folder == f"{tmp_path}/data/uploads"
    assert config.record.spool == f"{tmp_path}/data/spool"


def test_absolute_paths_stay_and_a_bucket_is_no_path(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "agents: {a: {platform: dify}}\ndatabase: sqlite:////var/gw.db\nrecord: {spool: /var/spool}\n"
        "storage: {url: 's3://bucket/x'}\nserver: {tls: {cert: a.pem, key: /k.pem}}\n"
    )
    config = load(tmp_path / "config.yaml", {})
    assert config.sqlite_file == "/var/gw.db"
    assert config.record.spool == "/var/spool"
    assert config.storage.url == "s3://bucket/x"
    assert (config.server.tls.cert, config.server.tls.key) == (f"{tmp_path}/a.pem", "/k.pem")


def test_gateway_home_is_where_an_image_keeps_its_data(tmp_path):
    (tmp_path / "config.yaml").write_text("agents: {a: {platform: dify}}")
    config = load(tmp_path / "config.yaml", {"GATEWAY_HOME": "/app"})
    assert config.sqlite_file == "/app/data/gateway.db"


def test_other_databases_have_no_path(tmp_path):
    (tmp_path / "config.yaml").write_text("agents: {a: {platform: dify}}")
    environ = {"DATABASE_URL": "none"}
    assert not load(tmp_path / "config.yaml", environ).database
