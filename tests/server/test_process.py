"""Rolling updates: stop without cutting off answers, reload without a restart.

Another process with real sockets, files and signals, in front of this process's upstreams.
"""

import asyncio
import contextlib
import io
import json
import os
import signal
import sqlite3
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import yaml
from conftest import AGENTS, Script, stopped, streamed
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from test_cli import free_port, run, serving
from test_streaming import HELLO, agent

from gateway.config.load import load
from gateway.server.check import check_live

QUESTION = {"query": "hi", "stream": True}


def write(path: Path, agents, **sections) -> Path:
    """A config.yaml as editors write it: a new file, renamed into place. With an ops port or TLS
    anonymous access must be explicit."""
    sections.setdefault("auth", {"anonymous": True})
    beside = path.with_name(path.name + ".new")
    beside.write_text(yaml.safe_dump({"agents": agents, **sections}), "utf-8")
    beside.rename(path)
    return path


@pytest.fixture
async def client():
    async with aiohttp.ClientSession() as session:
        yield session


@contextlib.asynccontextmanager
async def process(tmp_path, agents, **sections):
    """A gateway with an ops port; (process, its address, the ops port's, log, config file)."""
    ops = free_port()
    server = {"ops_port": ops, **sections.pop("server", {})}
    sections = {"storage": {"url": f"file:{tmp_path / 'uploads'}"}, **sections}
    path = write(tmp_path / "config.yaml", agents, server=server, **sections)
    async with serving("--config", str(path)) as (running, port, log):
        yield running, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ops}", log, path


def ask(client, url, name="bot", **body):
    return client.post(f"{url}/api/v1/chat", json={**QUESTION, **body}, headers={"Agent": name})


async def wait_for(log, word) -> str:
    async with asyncio.timeout(20):
        while not (found := [line for line in log if word in line]):
            await asyncio.sleep(0.01)
    return found[0]


# Stopping


async def test_a_stream_outlives_sigterm_and_the_process_exits_0(tmp_path, scripted, client):
    go_on = asyncio.Event()
    upstream = await scripted(Script([HELLO[0], go_on, *HELLO[1:]]))
    database = f"sqlite:///{tmp_path / 'gateway.db'}"
    record = {"spool": str(tmp_path / "spool")}
    agents = {"bot": agent(upstream.url)}
    async with process(tmp_path, agents, database=database, record=record) as (
        running, url, ops, log, _,
    ):  # fmt: skip
        answer = await ask(client, url)
        await answer.content.readuntil("你".encode())
        running.send_signal(signal.SIGTERM)
        await wait_for(log, "Stopping; 1 requests under way")
        async with client.get(f"{ops}/readyz") as ready:
            assert (ready.status, (await ready.json())["status"]) == (503, "stopping")
        async with client.get(f"{ops}/livez") as alive:
            assert alive.status == 200
        with pytest.raises(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as other:
                await other.get(f"{url}/health")
        go_on.set()
        rest = await answer.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(running.wait(), 20) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "gateway.db")) as conn:
        assert conn.execute("SELECT status, usage FROM calls").fetchall() == [(200, "exact")]


async def test_a_stop_ends_slow_answers_with_an_error_and_a_stop_call(tmp_path, scripted, client):
    upstream = await scripted(
        Script([HELLO[0], 60.0]), Script([HELLO[0], 60.0]), Script(before_headers_s=60), stopped()
    )
    agents = {"bot": agent(upstream.url)}
    async with process(tmp_path, agents, server={"drain_timeout": "300ms"}) as (
        running, url, _, log, _,
    ):  # fmt: skip
        stream = await ask(client, url)
        await stream.content.readuntil("你".encode())
        whole = asyncio.ensure_future(ask(client, url, stream=False))
        while len(upstream.requests) < 2:
            await asyncio.sleep(0.01)
        early = asyncio.ensure_future(ask(client, url))
        while len(upstream.requests) < 3:
            await asyncio.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        rest = (await stream.read()).decode()
        assert "retry: 1000\n" in rest
        assert streamed(rest[rest.index("retry:") :].encode())["error"]["code"] == 503
        assert '"error":"shutting_down"' in rest
        assert "[DONE]" not in rest
        async with await whole as answer:
            assert answer.status == 503
            assert (await answer.json())["detail"]["error"] == "shutting_down"
            assert answer.headers["x-should-retry"] == "false"  # the platform had accepted it
        async with await early as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert answer.headers["x-should-retry"] == "true"
            await answer.read()
        assert await asyncio.wait_for(running.wait(), 20) == 0
    assert await wait_for(log, "3 requests did not finish in time")
    assert len([line for line, _, _ in upstream.requests if "/stop" in line]) == 2


async def test_a_connection_that_stays_open_gets_no_new_work(tmp_path, scripted):
    go_on = asyncio.Event()
    upstream = await scripted(Script([HELLO[0], go_on, *HELLO[1:]]))
    async with process(tmp_path, {"bot": agent(upstream.url)}) as (running, url, _, log, _):
        connector = aiohttp.TCPConnector(limit=1)
        async with (
            aiohttp.ClientSession() as other,
            aiohttp.ClientSession(connector=connector) as kept,
        ):
            stream = await ask(other, url)
            await stream.content.readuntil("你".encode())
            async with kept.get(f"{url}/health") as answer:
                await answer.read()
            running.send_signal(signal.SIGTERM)
            await wait_for(log, "Stopping")
            async with ask(kept, url) as answer:
                assert answer.status == 503
                assert answer.headers["Connection"] == "close"
                assert answer.headers["x-should-retry"] == "true"
                assert (await answer.json())["detail"]["error"] == "shutting_down"
            go_on.set()
            assert (await stream.read()).endswith(b"[DONE]\n\n")
            assert await asyncio.wait_for(running.wait(), 20) == 0


async def test_an_upload_under_way_arrives_whole(tmp_path, scripted, client):
    upstream = await scripted(Script(HELLO))
    half = asyncio.Event()

    async def slowly():
        yield b"a" * 300_000
        await half.wait()
        yield b"b" * 300_000

    async with process(tmp_path, {"bot": agent(upstream.url)}) as (running, url, _, log, _):
        form = aiohttp.FormData()
        form.add_field("file", slowly(), filename="x.txt", content_type="text/plain")
        uploading = asyncio.ensure_future(client.post(f"{url}/api/v1/upload", data=form))
        while not list((tmp_path / "uploads").rglob(".parts/*")) and not any(
            p.is_file() for p in (tmp_path / "uploads").rglob("*")
        ):
            await asyncio.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        await wait_for(log, "Stopping; 1 requests")
        half.set()
        async with await uploading as answer:
            assert answer.status == 200
            assert (await answer.json())["data"]["size"] == 600_000
        assert await asyncio.wait_for(running.wait(), 20) == 0


# Reloading


async def generation(client, ops) -> int:
    async with client.get(f"{ops}/readyz") as answer:
        return (await answer.json())["detail"]["config"]["generation"]


async def reloaded(client, ops, wanted: int) -> None:
    async with asyncio.timeout(20):
        while await generation(client, ops) < wanted:
            await asyncio.sleep(0.02)


async def test_a_reload_does_not_affect_streams_in_flight(tmp_path, scripted, client):
    go_on = asyncio.Event()
    old = await scripted(Script([HELLO[0], go_on, *HELLO[1:]]))
    new = await scripted(Script(HELLO))
    async with process(tmp_path, {"bot": agent(old.url)}) as (_, url, ops, _, path):
        stream = await ask(client, url)
        await stream.content.readuntil("你".encode())
        sections = yaml.safe_load(path.read_text())
        agents = {"bot": agent(new.url), "second": agent(new.url)}
        write(path, agents, **{k: v for k, v in sections.items() if k != "agents"})
        await reloaded(client, ops, 2)
        for name in ("bot", "second"):
            async with ask(client, url, name) as answer:
                assert (await answer.read()).endswith(b"[DONE]\n\n")
        assert (len(old.requests), len(new.requests)) == (1, 2)
        go_on.set()
        assert (await stream.read()).endswith(b"[DONE]\n\n")


async def test_a_new_bots_key_in_env_is_taken_without_a_restart(tmp_path, scripted, client):
    old, new = await scripted(Script(HELLO)), await scripted(Script(HELLO))
    bot = {"bot": agent(old.url) | {"api_key": "${BOT_KEY:-app-first-key}"}}
    (tmp_path / "secret").write_text("app-second-key")
    async with process(tmp_path, bot) as (_, url, ops, log, path):
        (tmp_path / ".env").write_text("BOT_KEY=app-from-env\n")
        await reloaded(client, ops, 2)
        async with ask(client, url) as answer:
            assert answer.status == 200
        sections = yaml.safe_load(path.read_text())
        agents = {**bot, "second": agent(new.url) | {"api_key": "${file:secret}"}}
        write(path, agents, **{k: v for k, v in sections.items() if k != "agents"})
        await reloaded(client, ops, 3)
        (tmp_path / "secret").write_text("app-third-key\n")
        await reloaded(client, ops, 4)
        async with ask(client, url, "second") as answer:
            assert answer.status == 200
    (_, headers, _), *_ = old.requests
    assert "Bearer app-from-env" in headers.values()
    (_, headers, _), *_ = new.requests
    assert "Bearer app-third-key" in headers.values()


async def test_a_reload_says_what_it_changed(tmp_path, scripted, client):
    upstream = await scripted(Script(HELLO))
    agents = {"bot": agent(upstream.url), "old": agent(upstream.url), "same": agent(upstream.url)}
    async with process(tmp_path, agents) as (_, _, _, log, path):
        sections = yaml.safe_load(path.read_text())
        rest = {k: v for k, v in sections.items() if k != "agents"}
        rest["auth"] = {"anonymous": False}
        bot = agent(upstream.url) | {"api_key": "app-another-key"}
        write(path, {"bot": bot, "same": agents["same"], "support": agents["old"]}, **rest)
        line = await wait_for(log, "read again; generation 2")
        assert "agents added: support; agents removed: old; agents changed: bot" in line
        assert "sections changed: auth" in line
        assert "app-another-key" not in line
        assert "warning" in (await wait_for(log, "calls need a key, since auth.anonymous")).lower()
        log.clear()
        rest["auth"] = {"anonymous": True}
        write(path, {"bot": bot, "same": agents["same"], "support": agents["old"]}, **rest)
        line = await wait_for(log, "read again; generation 3")
        assert "generation 3: sections changed: auth" in line
        told = "programs on this machine may call without a key"
        assert "warning" in (await wait_for(log, told)).lower()


async def test_a_bad_change_keeps_what_was_and_says_so(tmp_path, scripted, client):
    upstream = await scripted(Script(HELLO))
    async with process(tmp_path, {"bot": agent(upstream.url)}) as (running, url, ops, log, path):
        good = path.read_text()
        path.write_text(good.replace("platform: dify", "platform: dfy"))
        assert "did you mean dify?" in await wait_for(log, "agents.bot.platform")
        async with client.get(f"{ops}/readyz") as answer:
            told = await answer.json()
            assert answer.status == 200
            assert told["degraded"] == ["config"]
            assert told["detail"]["config"]["problem"] == "1 problem(s), see the log"
        async with client.get(f"{ops}/metrics") as answer:
            text = await answer.text()
            assert 'gateway_config_reloads_total{result="failed"} 1.0' in text
            assert "gateway_config_problem 1.0" in text
        async with ask(client, url) as answer:
            assert (await answer.read()).endswith(b"[DONE]\n\n")
        path.write_text(good + "# mended\n")
        await reloaded(client, ops, 2)
        async with client.get(f"{ops}/readyz") as answer:
            assert (await answer.json())["degraded"] == []


async def test_a_missing_file_is_reported_and_its_return_noticed(
    tmp_path, scripted, client, monkeypatch
):
    upstream = await scripted(Script(HELLO))
    async with process(tmp_path, {"bot": agent(upstream.url)}) as (_, url, ops, log, path):
        path.rename(tmp_path / "elsewhere")
        (tmp_path / "another").touch()  # a change to notice
        await wait_for(log, "has problems")
        async with ask(client, url) as answer:
            assert (await answer.read()).endswith(b"[DONE]\n\n")
        (tmp_path / "elsewhere").rename(path)
        await reloaded(client, ops, 2)


async def test_the_swap_of_a_configmap_is_seen(tmp_path, scripted, client):
    """A link to a folder that is replaced by another: the file itself never changes."""
    upstream = await scripted(Script(HELLO))
    mount = tmp_path / "mount"
    ops = free_port()

    def put(stamp: str, **agents) -> None:
        (mount / stamp).mkdir(parents=True)
        write(mount / stamp / "config.yaml", agents, server={"ops_port": ops})
        (mount / "..data_tmp").symlink_to(stamp)
        (mount / "..data_tmp").rename(mount / "..data")

    put("..2026_1", bot=agent(upstream.url))
    (mount / "config.yaml").symlink_to("..data/config.yaml")
    async with serving("--config", str(mount / "config.yaml")) as (_, port, _):
        put("..2026_2", bot=agent(upstream.url), second=agent(upstream.url))
        await reloaded(client, f"http://127.0.0.1:{ops}", 2)
        async with ask(client, f"http://127.0.0.1:{port}", "second") as answer:
            assert (await answer.read()).endswith(b"[DONE]\n\n")


async def test_sighup_reloads_and_names_what_needs_a_restart(tmp_path, scripted, client):
    upstream = await scripted(Script(HELLO))
    async with process(tmp_path, {"bot": agent(upstream.url)}) as (running, url, ops, log, path):
        running.send_signal(signal.SIGHUP)
        await reloaded(client, ops, 2)
        sections = yaml.safe_load(path.read_text())
        sections["server"]["max_body"] = "1MB"
        write(path, **sections)
        line = await wait_for(log, "read again; generation 3")
        assert "nothing took effect" in line
        sections["redis"] = "redis://127.0.0.1:1"
        sections["rate_limits"] = {"chat": "2/min"}
        write(path, **sections)
        await wait_for(log, "take effect with a restart only: server.max_body, redis")
        statuses = []
        for _ in range(3):
            async with ask(client, url) as answer:
                await answer.read()
                statuses.append(answer.status)
        assert statuses == [200, 200, 429]


async def test_unchanged_agents_keep_their_slots_and_breakers(gateway, scripted):
    from gateway.config.load import parse
    from gateway.http.context import RELOAD, STATE

    broken = await scripted(Script(status="503 X"))
    settings = {"retries": 0, "breaker": {"failures": 1, "cooldown": "1m"}}
    agents = {"bot": agent(broken.url, **settings), "other": agent(broken.url)}
    gw = await gateway(agents=agents)
    assert (await gw.complete("bot")).status == 502
    agents["other"]["retries"] = 7
    config = parse(yaml.safe_dump({"agents": agents, "database": "none"}), {})
    before = gw.app[STATE].now.routing.targets
    await gw.app[RELOAD](config)
    after = gw.app[STATE].now.routing.targets
    assert after["bot"] is before["bot"]
    assert after["other"] is not before["other"]
    assert (await gw.complete("bot")).status == 503


async def test_a_request_sees_the_configuration_that_it_began_with(gateway, scripted):
    from gateway.config.load import parse
    from gateway.http.context import IN_FLIGHT, RELOAD

    answer = b'{"object":"list","data":[]}'
    upstream = await scripted(Script([answer], headers={"Content-Type": "application/json"}))
    bot = {"platform": "openai", "base_url": upstream.url, "api_key": "k", "model": "m"}
    gw = await gateway(agents={"bot": bot})
    agents = {"another": bot}

    async def body():
        yield b'{"model":"bot",'
        while not len(gw.app[IN_FLIGHT]):
            await asyncio.sleep(0)
        await gw.app[RELOAD](parse(yaml.safe_dump({"agents": agents, "database": "none"}), {}))
        yield b'"input":"hi"}'

    async with gw.client.post(gw.url + "/v1/embeddings", data=body()) as begun_before:
        assert (begun_before.status, await begun_before.read()) == (200, answer)
    async with gw.post("/v1/embeddings", {"model": "bot", "input": "hi"}) as begun_after:
        assert begun_after.status == 404


async def test_a_new_agent_may_be_a_demo(gateway):
    from gateway.config.load import parse
    from gateway.http.context import RELOAD

    gw = await gateway(agents={"dify": {"platform": "dify"}})
    agents = {"dify": {"platform": "dify"}, "coze": {"platform": "coze"}}
    await gw.app[RELOAD](parse(yaml.safe_dump({"agents": agents, "database": "none"}), {}))
    for name in agents:
        assert (await gw.chat(name)).status == 200


# Ports


async def test_processes_may_share_a_port(tmp_path, scripted):
    upstream = await scripted(Script(HELLO))
    path = write(tmp_path / "c.yaml", {"bot": agent(upstream.url)}, server={"reuse_port": True})
    async with serving("--config", str(path)) as (one, port, log):
        other = await asyncio.create_subprocess_exec(
            *(await asyncio.to_thread(_command, path, port)), cwd=Path(__file__).parent.parent.parent,
            env={**os.environ, "DATABASE_URL": "none"}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(20):
                while b"listens on" not in await other.stderr.readline():
                    pass
            one.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(one.wait(), 20) == 0
            async with (
                aiohttp.ClientSession() as client,
                ask(client, f"http://127.0.0.1:{port}") as answer,
            ):
                assert (await answer.read()).endswith(b"[DONE]\n\n")
        finally:
            other.kill()
            await other.communicate()


def _command(path: Path, port: int) -> list[str]:
    import sys

    return [sys.executable, "run.py", "--config", str(path), "--port", str(port)]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for localhost, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for file, data in (("cert.pem", built.public_bytes(pem)), ("key.pem", private)):
        (folder / f"{file}.new").write_bytes(data)
        (folder / f"{file}.new").rename(folder / file)
    return folder / "cert.pem", folder / "key.pem"


def shown(port: int) -> str:
    """The name on the server's certificate."""
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    return x509.load_pem_x509_certificate(pem.encode()).subject.rfc4514_string()


async def test_tls_is_served_and_a_renewed_certificate_is_taken(tmp_path, scripted):
    upstream = await scripted(Script(HELLO))
    cert, key = certificate(tmp_path, "first")
    server = {"tls": {"cert": str(cert), "key": str(key)}}
    path = write(tmp_path / "c.yaml", {"bot": agent(upstream.url)}, server=server)
    async with serving("--config", str(path)) as (_, port, log):
        trust = ssl.create_default_context(cafile=str(cert))
        connector = aiohttp.TCPConnector(ssl=trust)
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            ask(client, f"https://localhost:{port}") as answer,
        ):
            assert (await answer.read()).endswith(b"[DONE]\n\n")
            assert "max-age" in answer.headers["Strict-Transport-Security"]
        assert await asyncio.to_thread(shown, port) == "CN=first"
        assert not any("read again" in line for line in log)
        certificate(tmp_path, "second")
        async with asyncio.timeout(20):
            while await asyncio.to_thread(shown, port) != "CN=second":
                await asyncio.sleep(0.05)


def test_a_missing_certificate_is_reported_without_a_traceback(tmp_path):
    tls = {"cert": "none.pem", "key": "none.pem"}
    path = write(tmp_path / "c.yaml", {"bot": {"platform": "dify"}}, server={"tls": tls})
    told = run("--config", str(path))
    assert told.returncode == 1
    assert "none.pem" in told.stderr
    assert "Traceback" not in told.stderr


# check --live


async def test_check_live_asks_every_platform_for_its_bot(tmp_path, demo, scripted):
    good = await demo("dify", key="app-test-key")
    refusal = b'{"code":4015,"msg":"The bot has not been published to the API channel"}'
    coze = await scripted(Script([refusal], headers={"Content-Type": "application/json"}))
    as_json = {"Content-Type": "application/json"}
    offering = await scripted(*[Script([b'{"data":[{"id":"qwen"}]}'], headers=as_json)] * 2)
    missing = Script([b'{"error":{"message":"nothing here"}}'], 404, headers=as_json)
    listless = await scripted(missing, missing)
    agents = {
        "good": {**AGENTS["dify"], "base_url": good.url},
        "bad-key": {**AGENTS["dify"], "base_url": good.url, "api_key": "app-wrong"},
        "wrong-mode": {**AGENTS["dify"], "base_url": good.url, "mode": "workflow"},
        "unpublished": {**AGENTS["coze"], "base_url": coze.url},
        "dead": {**AGENTS["openai"], "base_url": f"http://127.0.0.1:{free_port()}"},
        "演示": {"platform": "fastgpt"},
        "other-model": {**AGENTS["openai"], "base_url": offering.url, "model": "gpt-5"},
        "no-list": {**AGENTS["openai"], "base_url": f"{listless.url}/foo"},
    }
    path = write(tmp_path / "c.yaml", agents, redis=f"redis://127.0.0.1:{free_port()}")
    told = await asyncio.to_thread(run, "check", "--live", "--config", str(path))
    assert told.returncode == 1
    assert told.stderr == ""
    rows = {
        line.split()[0]: line
        for line in told.stdout.partition("asked just now")[2].splitlines()[1:]
    }
    assert " ok " in rows["good"]
    assert "app '" in rows["good"]
    for name, word in (
        ("bad-key", "api_key"), ("wrong-mode", "set mode: chat, or auto"), ("unpublished", "publish"),
        ("dead", "refuses connections"), ("redis", "; check redis (REDIS_URL)"),
    ):  # fmt: skip
        assert " FAILED " in rows[name], name
        assert word in rows[name], rows[name]
    assert " demo " in rows["演示"]
    for name, words in (
        ("other-model", "1 models offered, but not 'gpt-5'; check model"),
        ("no-list", "there is nothing at http://127.0.0.1"),
    ):
        assert " warning " in rows[name], rows[name]
        assert words in rows[name]
    assert "app-wrong" not in told.stdout
    write(path, {name: agents[name] for name in ("good", "other-model", "no-list")})
    assert (await asyncio.to_thread(run, "check", "--live", "--config", str(path))).returncode == 0


async def test_check_live_names_the_setting_of_an_unavailable_store(tmp_path):
    away = f"127.0.0.1:{free_port()}"
    s3 = {"endpoint": f"http://{away}", "access_key": "a", "secret_key": "b"}
    path = write(
        tmp_path / "c.yaml", {"演示": {"platform": "fastgpt"}}, redis=f"redis://{away}",
        database=f"postgresql://gateway:secret@{away}/gateway", auth={"jwt_secret": "j" * 40},
        storage={"url": "s3://bucket", "s3": s3},
    )  # fmt: skip
    rows = {row[0]: row for row in await check_live(load(path))}
    for name, words in (
        ("database", "it refuses connections; check database (DATABASE_URL)"),
        ("redis", "check redis (REDIS_URL)"),
        ("storage", "check storage.url and storage.s3 (S3_ENDPOINT, S3_BUCKET …)"),
    ):
        assert rows[name][3] == "FAILED"
        assert words in rows[name][4]
        assert "Errno" not in rows[name][4]
        assert "secret" not in rows[name][4]


def test_the_shipped_file_can_be_checked_live_too():
    told = run("check", "--live")
    assert told.returncode == 0
    assert json.loads(json.dumps(told.stdout)).count("simulator inside the gateway") == 5


# Findings of an attack on all this


async def test_a_certificate_without_its_key_keeps_the_old_pair(tmp_path, scripted):
    """A renewal writes one file after the other."""
    upstream = await scripted(Script(HELLO))
    cert, key = certificate(tmp_path, "first")
    server = {"tls": {"cert": str(cert), "key": str(key)}}
    path = write(tmp_path / "c.yaml", {"bot": agent(upstream.url)}, server=server)
    async with serving("--config", str(path)) as (_, port, log):
        old_key = key.read_bytes()
        certificate(tmp_path, "second")
        new_key = key.read_bytes()
        key.write_bytes(old_key)
        await wait_for(log, "cannot be used")
        assert await asyncio.to_thread(shown, port) == "CN=first"
        key.write_bytes(new_key)
        async with asyncio.timeout(20):
            while await asyncio.to_thread(shown, port) != "CN=second":
                await asyncio.sleep(0.05)


async def test_a_file_that_is_being_downloaded_arrives_whole(tmp_path, scripted, client):
    """Handlers return whole answers and files; until they are sent, they count as in flight."""
    upstream = await scripted(Script(HELLO))
    async with process(tmp_path, {"bot": agent(upstream.url)}) as (running, url, _, log, _):
        form = aiohttp.FormData()
        form.add_field(
            "file", io.BytesIO(b"a" * 20_000_000), filename="x.txt", content_type="text/plain"
        )
        async with client.post(f"{url}/api/v1/upload", data=form) as answer:
            link = (await answer.json())["data"]["id"]
        answer = await client.get(link)
        await answer.content.readexactly(100_000)
        running.send_signal(signal.SIGTERM)
        await wait_for(log, "Stopping; 1 requests under way")
        await asyncio.sleep(2.5)  # longer than idle connections have
        assert len(await answer.read()) == 20_000_000 - 100_000
        assert await asyncio.wait_for(running.wait(), 20) == 0


async def test_a_reload_cannot_make_a_public_address_anonymous(gateway, scripted):
    from gateway.config.load import ConfigError, parse
    from gateway.http.context import RELOAD, STATE

    upstream = await scripted(Script(HELLO))
    agents = {"bot": agent(upstream.url)}
    keys = [{"name": "web", "key": "sk-static-12345678"}]
    gw = await gateway(agents=agents, server={"host": "0.0.0.0"}, auth={"keys": keys})
    change = {"agents": agents, "database": "none", "server": {"host": "127.0.0.1"}}
    config = parse(yaml.safe_dump({**change, "auth": {"anonymous": True}}), {})
    with pytest.raises(ConfigError, match=r"anyone who reaches 0\.0\.0\.0"):
        await gw.app[RELOAD](config)
    assert gw.app[STATE].now.generation == 1


@pytest.mark.parametrize(
    "line",
    [
        "api_key: *Pa55w0rd-1", "api_key: !Hunter2-Pa55w0rd", "api_key: '${Pa55w0rd'",
        "base_url: 'http://host:Pa55w0rd'", "api_key: [Pa55w0rd", "api_key: {a: Pa55w0rd: b}",
        "api_key: 'abc${Pa55w0rd-x'", "api_key: \"\\QPa55w0rd\"", "api_key: `Pa55w0rd",
    ],
)  # fmt: skip
def test_problems_of_a_file_do_not_repeat_its_secrets(tmp_path, line):
    path = tmp_path / "c.yaml"
    path.write_text(f"agents:\n  bot:\n    platform: dify\n    {line}\n")
    told = run("check", "--config", str(path))
    assert told.returncode == 1
    assert "Pa55w0rd" not in told.stdout + told.stderr
    assert "Traceback" not in told.stderr


async def test_a_shorter_drain_timeout_counts_when_the_stop_comes(tmp_path, scripted, client):
    upstream = await scripted(Script([HELLO[0], 60.0]), stopped())
    async with process(tmp_path, {"bot": agent(upstream.url)}) as (running, url, ops, _, path):
        stream = await ask(client, url)
        await stream.content.readuntil("你".encode())
        sections = yaml.safe_load(path.read_text())
        sections["server"]["drain_timeout"] = "200ms"
        write(path, **sections)
        await reloaded(client, ops, 2)
        running.send_signal(signal.SIGTERM)
        assert b"shutting_down" in await stream.read()
        assert await asyncio.wait_for(running.wait(), 20) == 0


async def test_sigterm_ends_a_process_that_is_only_starting(tmp_path):
    """As process 1 of a container it would not even receive the signal without a handler."""
    started = await asyncio.create_subprocess_exec(
        *_command(write(tmp_path / "c.yaml", {"bot": {"platform": "dify"}}), free_port()),
        cwd=Path(__file__).parent.parent.parent, env={**os.environ, "DATABASE_URL": "none"},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            while not await asyncio.to_thread(_handles_term, started.pid):
                assert started.returncode is None
        started.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(started.wait(), 20) in (0, 143)
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.communicate()


def _handles_term(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(
        next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16
    )
    return bool(caught & 1 << signal.SIGTERM - 1)


async def test_a_log_next_to_the_file_causes_no_reload(tmp_path, scripted, client):
    upstream = await scripted(Script(HELLO))
    async with process(tmp_path, {"bot": agent(upstream.url)}) as (_, url, ops, log, _):
        for i in range(5):
            (tmp_path / "gateway.log").write_text("x" * i)
            await asyncio.sleep(0.1)
        assert await generation(client, ops) == 1
        assert not any("change" in line for line in log)


async def test_demo_platforms_of_earlier_files_do_not_add_up(gateway):
    from gateway.config.load import parse
    from gateway.http.context import RELOAD

    def listeners() -> int:
        return sum(" 0A " in line for line in Path("/proc/self/net/tcp").read_text().splitlines())

    gw = await gateway(agents={"dify": {"platform": "dify"}})
    before = listeners()
    for i in range(10):
        agents = {f"dify{i}": {"platform": "dify"}}
        await gw.app[RELOAD](parse(yaml.safe_dump({"agents": agents, "database": "none"}), {}))
    assert listeners() <= before + 2
    assert (await gw.chat("dify9")).status == 200


async def test_a_route_that_shrinks_keeps_its_conversations(gateway, scripted):
    from gateway.config.load import parse
    from gateway.http.context import RELOAD

    upstream = await scripted(Script(HELLO))
    agents = {"a": agent(upstream.url), "b": agent(upstream.url)}
    gw = await gateway(agents=agents, routes={"r": ["b", "a"]})
    begun = await (await gw.chat("r")).json()
    assert begun["id"] == "b:c-1"
    config = {"agents": agents, "database": "none", "routes": {"r": ["b"]}}
    await gw.app[RELOAD](parse(yaml.safe_dump(config), {}))
    await (await gw.chat("r", conversation_id=begun["id"])).read()
    assert upstream.bodies("chat-messages ")[-1]["conversation_id"] == "c-1"


async def test_readiness_and_metrics_answer_during_the_start(tmp_path):
    """The ops port listens first; what does not exist yet is no error."""
    from gateway.app import build
    from gateway.config import load as configfile
    from gateway.routes.health import metrics, readyz

    app = build(configfile.parse(yaml.safe_dump({"agents": {"a": {"platform": "dify"}}}), {}))
    from aiohttp.test_utils import make_mocked_request

    request = make_mocked_request("GET", "/readyz", app=app)
    answer = await readyz(request)
    assert answer.status == 503
    assert b"starting" in answer.body
    assert (await metrics(make_mocked_request("GET", "/metrics", app=app))).status in (200, 404)
