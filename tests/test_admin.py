"""`run.py users`, `keys` and `migrate` as an operator runs them, next to a running gateway."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_cli import CLEAN, ROOT, serving

from gateway.admin import _COLUMNS

JWT = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def run(tmp_path, database_url):
    """`run("users", "list", given="a line")`: (exit status, output, errors)."""
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"agents": {"dify": {"platform": "dify"}}}))

    def run(*args: str, given: str = "") -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "run.py", "--config", str(config), *args], cwd=ROOT, timeout=30,
            env={**CLEAN, "DATABASE_URL": database_url, "JWT_SECRET": JWT}, input=given,
            capture_output=True, text=True,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def ready(run):
    """`run`, on an existing database."""
    assert run("migrate")[0] == 0
    return run


def test_users_are_added_listed_and_disabled(ready):
    assert (
        ready("users", "add", "小李", "--role", "premium", given="good enough password\n")[0] == 0
    )
    assert ready("users", "add", "admin", "--role", "admin", given="good enough password")[0] == 0
    status, out, _ = ready("users", "list")
    assert status == 0
    assert [line.split("\t")[:3] for line in out.splitlines()] == [
        ["小李", "premium", "active"], ["admin", "admin", "active"],
    ]  # fmt: skip
    assert ready("users", "disable", "小李")[0] == 0
    assert "inactive" in ready("users", "list")[1]
    status, _, told = ready("users", "disable", "admin")
    assert status == 1
    assert "last active admin" in told


@pytest.mark.parametrize(
    ("args", "given", "words"),
    [(("users", "add", "li"), "short", "8 to 256"), (("users", "add", "a b"), "good enough password", "username"),
     (("users", "add", "li"), "", "8 to 256"), (("users", "set-password", "nobody"), "x" * 9, "no user"),
     (("keys", "create", "k", "--user", "nobody"), "", "no user"), (("keys", "revoke", "nothing"), "", "no such API key: 'nothing'"),
     (("keys", "create", "k", "--permissions", "root"), "", "--permissions"),
     (("users", "add", "li"), "", "standard input"), (("keys", "revoke", "web"), "", "`keys list`"),
     (("keys", "create", "k", "--chat", "often"), "", "--chat")],
)  # fmt: skip
def test_an_impossible_command_is_reported_in_a_line(ready, args, given, words):
    status, _, told = ready(*args, given=given)
    assert status == 1
    assert words in told
    assert len(told.splitlines()) == 2
    assert told.startswith("database: ")


@pytest.mark.parametrize(
    "command", [("keys", "create", "web"), ("keys", "list"), ("users", "list")]
)
def test_commands_name_the_database_and_never_make_one(tmp_path, command):
    config = tmp_path / "config.yaml"
    config.write_text("agents: {dify: {platform: dify}}")
    for state in ("missing", "empty"):
        if state == "empty":
            (tmp_path / "data").mkdir()
            (tmp_path / "data" / "gateway.db").touch()
        done = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), "--config", str(config), *command], cwd="/",
            env=CLEAN, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 1
        first, second = done.stderr.splitlines()
        assert first == f"database: SQLite, {tmp_path}/data/gateway.db"
        assert f"there is no database at {tmp_path}/data/gateway.db yet" in second
        assert f"{sys.executable} " in second
        assert "migrate" in second
    assert not (tmp_path / "data" / "gateway.db-wal").exists()


def test_a_key_can_be_made_before_the_first_start(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("agents: {dify: {platform: dify}}")

    def run(*args, given=""):
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), "--config", str(config), *args], cwd="/",
            env=CLEAN, input=given, capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip

    run("migrate")
    run("users", "add", "admin", "--role", "admin", given="good enough password")
    assert run("keys", "create", "web").startswith("sk-gw-")


def test_the_database_is_named_without_its_password(ready, database_url):
    _, _, told = ready("users", "list")
    assert told.startswith(
        "database: SQLite, " if "sqlite" in database_url else "database: PostgreSQL, "
    )
    assert "@" not in told


def test_keys_end_and_the_list_shows_limits_and_last_use(ready):
    ready("users", "add", "li", "--role", "premium", given="good enough password")
    _, _, told = ready("keys", "create", "web", "--user", "li", "--expires", "30d", "--chat", "9/min",
                       "--agents", "dify", "--max-calls", "7")  # fmt: skip
    assert ", until 20" in told
    ready("keys", "create", "ever", "--user", "li", "--expires", "2099-01-31T08:00:00+08:00")
    head, *rows = (line.split("\t") for line in ready("keys", "list")[1].splitlines())
    assert head == [
        "id",
        "owner",
        "name",
        "permissions",
        "state",
        "calls",
        "limits",
        "last used",
        "expires",
        "client headers",
    ]
    by_name = {row[2]: dict(zip(head, row, strict=True)) for row in rows}
    assert by_name["web"]["limits"] == "chat 9/min; max 7 calls; agents dify"
    assert by_name["web"]["last used"] == "never"
    assert by_name["ever"]["expires"] == "2099-01-31T00:00:00+00:00"
    for when in ("soon", "2001-01-01", "0d", "30", "1.5", "20991231"):
        status, _, told = ready("keys", "create", "k", "--user", "li", "--expires", when)
        assert status == 1
        assert "--expires: must " in told
    for most in ("0", "-1"):
        status, _, told = ready("keys", "create", "k", "--user", "li", "--max-calls", most)
        assert status == 1
        assert "--max-calls must be" in told
    assert len(ready("keys", "list")[1].splitlines()) == 3


def test_a_key_trusts_client_headers_plain_or_signed(ready):
    ready("users", "add", "li", "--role", "premium", given="good enough password")
    ready("keys", "create", "plain", "--user", "li", "--trust-client-headers")
    signed = ("keys", "create", "signed", "--user", "li", "--client-headers-secret")
    secret = "x" * 32
    assert secret not in str(ready(*signed, given=secret))
    ready("keys", "create", "neither", "--user", "li")
    rows = [line.split("\t") for line in ready("keys", "list")[1].splitlines()[1:]]
    assert {row[2]: row[-1] for row in rows} == {
        "plain": "plain", "signed": "signed", "neither": "no",
    }  # fmt: skip
    assert secret not in str(rows)
    for given, words in (("short", "--client-headers-secret must have 32"), ("", "no secret on")):
        status, _, told = ready(*signed, given=given)
        assert status == 1
        assert words in told


def test_the_list_distinguishes_revoked_and_expired_keys(ready, database_url):
    ready("users", "add", "li", "--role", "premium", given="good enough password")
    soon = ready(
        "keys", "create", "soon", "--user", "li", "--expires", "1s"
    )  # expired by the time of the list
    assert soon[0] == 0
    _, key, told = ready("keys", "create", "web", "--user", "li")
    assert "note:" not in told
    assert "web" in ready("keys", "revoke", key.strip())[1]
    _, _, told = ready("keys", "create", "web", "--user", "li")
    assert "note:" not in told
    _, _, told = ready("keys", "create", "web", "--user", "li")
    assert "note: li has an active key 'web' already" in told
    rows = [line.split("\t") for line in ready("keys", "list")[1].splitlines()[1:]]
    assert sorted((row[2], row[4]) for row in rows) == [
        ("soon", "expired"), ("web", "active"), ("web", "active"), ("web", "revoked"),
    ]  # fmt: skip


def test_at_a_terminal_the_list_is_in_columns(ready, tmp_path, database_url):
    ready("users", "add", "li", "--role", "premium", given="good enough password")
    for name in ("客服", "a much longer name"):
        ready("keys", "create", name, "--user", "li")
    terminal, side = os.openpty()
    subprocess.run(
        [sys.executable, "run.py", "--config", str(tmp_path / "c.yaml"), "keys", "list"],
        cwd=ROOT, timeout=30, env={**CLEAN, "DATABASE_URL": database_url, "JWT_SECRET": JWT},
        stdout=side, stderr=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    lines = os.read(terminal, 1 << 16).decode().splitlines()
    assert len(lines) == 3
    ends = {len(line.partition("chat")[0].encode("gbk")) for line in lines[1:]}
    assert ends == {lines[0].index("permissions")}


def test_the_help_explains_columns_and_defaults(run):
    text = " ".join(run("keys", "list", "--help")[1].split())
    assert [name for name in _COLUMNS if name not in text] == []
    assert "chat, unless given" in " ".join(run("keys", "create", "--help")[1].split())


def test_a_password_on_the_command_line_is_refused(run):
    for command in (("users", "add", "bob"), ("users", "set-password", "bob")):
        status, _, told = run(*command, "--password", "x")
        assert status == 2
        assert "read from standard input" in told


def test_migrate_is_a_step_of_its_own(run):
    assert "step(s) applied" in run("migrate")[1]
    assert "up to date" in run("migrate")[1]


async def test_a_gateway_that_serves_sees_what_the_commands_do(run, with_accounts, database_url):
    gw = await with_accounts(database_url)

    def command(*args, given=""):
        return asyncio.to_thread(run, *args, given=given)

    await command("users", "add", "li", "--role", "premium", given="good enough password")
    status, key, _ = await command("keys", "create", "web", "--user", "li", "--agents", "dify",
                                   "--max-calls", "5", "--chat", "100/min")  # fmt: skip
    assert status == 0
    key = key.strip()
    assert (await gw.ask(key))[0] == 200
    assert (await gw.ask(key, "openai"))[0] == 403
    token = await gw.login("li", "good enough password")
    await command("users", "set-password", "li", given="quite another password")
    assert (await gw.api("GET", "/auth/me", token))[0] == 401
    assert await gw.login("li", "quite another password")
    _, listed, _ = await command("keys", "list", "--user", "li")
    assert key.split("-")[2] in listed
    assert key.split("-")[3] not in listed
    await command("keys", "revoke", key)
    async with asyncio.timeout(20):
        while (await gw.ask(key))[0] != 401:
            await asyncio.sleep(0.05)


def test_a_read_only_folder_is_reported_without_a_traceback(tmp_path):
    for url in ("sqlite:////proc/gateway.db", f"sqlite:///{tmp_path}/text/gateway.db"):
        (tmp_path / "text").write_text("a file, not a folder")
        for secret in ({}, {"JWT_SECRET": JWT}):
            done = subprocess.run(
                [sys.executable, "run.py", "--port", "0"], cwd=ROOT, capture_output=True, text=True,
                env={**CLEAN, "DATABASE_URL": url, **secret}, timeout=20,
            )  # fmt: skip
            assert done.returncode == 1
            assert "Traceback" not in done.stderr
            assert "none to do without" in done.stderr
            assert re.search("Not a directory|No such file|File exists|Permission", done.stderr)


@pytest.mark.parametrize(
    ("setting", "missing"),
    [("database: 'sqlite:///{0}/nas/x/gw.db'", "nas/x"),
     ("storage: {{url: 'file:{0}/nas/up'}}", "nas"), ("record: {{spool: '{0}/nas/spool'}}", "nas")],
)  # fmt: skip
def test_a_disk_not_mounted_stops_the_start_and_makes_nothing(tmp_path, setting, missing):
    home = tmp_path / "home"
    home.mkdir()
    config = home / "config.yaml"
    config.write_text(f"agents: {{a: {{platform: dify}}}}\n{setting.format(tmp_path)}\n")
    for command in ((), ("migrate",)):
        done = subprocess.run(
            [sys.executable, "run.py", "--config", str(config), "--port", "0", *command], cwd=ROOT,
            env=CLEAN, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        assert done.returncode == 1
        assert f"the folder {tmp_path}/{missing} is not there. Is a disk" in done.stderr
        assert f"mkdir -p {tmp_path}/{missing}" in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "config.yaml"]


async def test_a_folder_made_at_the_start_is_logged_first(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.yaml").write_text(
        f"agents: {{a: {{platform: dify}}}}\nstorage: {{url: 'file:{tmp_path}/up'}}\n"
    )
    async with serving("--config", str(tmp_path / "home" / "config.yaml")) as (_, _, log):
        assert "WARNING" in log[0].upper()
        assert f"storage.url: the folder {tmp_path}/up is not there" in log[0]
        assert (tmp_path / "up").is_dir()


def test_the_generated_secret_is_kept_and_private(tmp_path):
    from gateway.accounts.tokens import signing_secret
    from gateway.config.load import parse
    from gateway.errors import StartError

    config = parse(
        f"agents: {{a: {{platform: dify}}}}\ndatabase: 'sqlite:///{tmp_path}/d/g.db'", {}
    )
    first = signing_secret(config)
    assert len(first) == 64
    assert signing_secret(config) == first
    file: Path = tmp_path / "d" / "jwt_secret"
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["jwt_secret"]
    file.write_text("")
    with pytest.raises(StartError, match="holds no secret"):
        signing_secret(config)
