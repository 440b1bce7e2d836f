"""Mixed traffic with faults and random disconnects for minutes; at the end nothing may be left.

    make soak                 two minutes
    make soak SECONDS=10800   three hours

One gateway process in front of demo platforms, with real PostgreSQL, Redis and S3 servers that
are paused and restarted during the run. At the end: no request, stream, slot, task or socket is
left, memory is flat, every call is recorded exactly once, and SIGTERM ends it with 0.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import yaml

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import servers  # noqa: E402

from gateway.demo import serve_demo, simulator  # noqa: E402

KEYS = {
    "fastgpt": "fastgpt-soak-key", "dify": "app-soak-key", "coze": "pat_soak-key",
    "zhipu": "soakid.soaksecret", "openai": "sk-soak-key",
}  # fmt: skip
WORDS = [*["你好，请介绍一下"] * 12, "#think 为什么", "#cut", "#break", "#fail", "#limit", "#slow"]
CALLER = "sk-soak-caller-1234"
CALMING_S = 6.0  # for the platforms' last stop calls and the writer's last batch


class Made:
    """The clients' calls, to be compared with the gateway's records."""

    def __init__(self) -> None:
        self.begun: set[str] = set()  # request ids of calls that were sent completely
        self.answered: set[str] = set()  # those whose answer has begun
        self.statuses: Counter[str] = Counter()
        self.broken: list[str] = []  # answers that violate a rule

    def new_id(self) -> str:
        id_ = f"soak-{len(self.begun)}-{random.randrange(1 << 40):x}"
        self.begun.add(id_)
        return id_


class Soak:
    def __init__(self, url: str, seconds: float, words: list[str] = WORDS) -> None:
        self.url = url
        self.words = words
        self.until = time.monotonic() + seconds
        self.made = Made()

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    async def client(self) -> None:
        """One client after the other, of random kinds, until time is up."""
        sorts = [self.stream] * 6 + [self.whole] * 3 + [self.leaver] * 4 + [self.file, self.odd]
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            while self.goes_on:
                try:
                    await random.choice(sorts)(session)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    self.made.broken.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(random.random() / 20)

    def _question(self, stream: bool) -> dict[str, Any]:
        agent = random.choice([*KEYS, "route", "shared", "drained"])
        words = random.choice(self.words)
        if random.random() < 0.5:
            body: dict[str, Any] = {"query": words, "stream": stream}
            path, extra = "/api/v1/chat", {"Agent": agent}
        else:
            body = {
                "model": agent,
                "stream": stream,
                "messages": [{"role": "user", "content": words}],
            }
            path, extra = "/v1/chat/completions", {}
        headers = {"Authorization": f"Bearer {CALLER}", **extra, "x-request-id": self.made.new_id()}
        return {"url": self.url + path, "json": body, "headers": headers}

    async def stream(self, session: aiohttp.ClientSession) -> None:
        question = self._question(stream=True)
        async with asyncio.timeout(60), session.post(**question) as answer:
            self._note(answer)
            raw = await answer.read()
        if answer.status == 200:
            ends = raw.endswith(b"data: [DONE]\n\n")
            if ends == (b'"error":{' in raw):
                self.made.broken.append(f"a stream with {raw[-200:]!r}")

    async def whole(self, session: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(60), session.post(**self._question(stream=False)) as answer:
            self._note(answer)
            body = await answer.json()
        if answer.status == 200 and not body["choices"][0]["message"]["content"]:
            self.made.broken.append(f"an empty answer: {body}")

    async def leaver(self, session: aiohttp.ClientSession) -> None:
        """Disconnects at a random moment: before the answer, in the middle of it, or never."""
        question = self._question(stream=random.random() < 0.7)
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(random.random() ** 2 * 2),
                session.post(**question) as answer,
            ):
                self._note(answer)
                await answer.read()

    async def file(self, session: aiohttp.ClientSession) -> None:
        form = aiohttp.FormData()
        size = random.choice([10, 10_000, 6_000_000])
        form.add_field("file", os.urandom(8) + b"x" * size, filename="x.zip")
        headers = {"Authorization": f"Bearer {CALLER}"}
        async with asyncio.timeout(60):
            async with session.post(
                f"{self.url}/api/v1/upload", data=form, headers=headers
            ) as answer:
                self.made.statuses[f"upload {answer.status}"] += 1
                await answer.read()

    async def odd(self, session: aiohttp.ClientSession) -> None:
        """Refused requests, and read-only ones."""
        for path in ("/v1/models", "/api/v1/agents", "/nowhere", "/readyz"):
            async with session.get(self.url + path, headers={"x-api-key": "sk-wrong"}) as answer:
                self.made.statuses[f"GET {answer.status}"] += 1
                await answer.read()

    def _note(self, answer: aiohttp.ClientResponse) -> None:
        self.made.answered.add(answer.headers["x-request-id"])
        self.made.statuses[str(answer.status)] += 1


async def faults(soak: Soak, stores: "Stores", gateway: asyncio.subprocess.Process) -> None:
    """Every few seconds one of the gateway's servers hangs or restarts, or the gateway reloads."""

    async def pause(server: servers.Server, seconds: float) -> None:
        server.pause()
        await asyncio.sleep(seconds)
        server.go_on()

    async def restart(server: servers.Server, seconds: float) -> None:
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(server.start)

    things = [
        lambda: pause(stores.redis, 0.5), lambda: restart(stores.redis, 0.5),
        lambda: pause(stores.postgresql, 1.0), lambda: restart(stores.postgresql, 0.5),
        lambda: pause(stores.s3, 0.5),
    ]  # fmt: skip
    while soak.goes_on:
        await asyncio.sleep(1 + random.random() * 2)
        if random.random() < 0.3:
            gateway.send_signal(signal.SIGHUP)
        if soak.until - time.monotonic() > 3:
            await random.choice(things)()


class Stores:
    def __init__(self, folder: Path) -> None:
        self.redis = servers.Redis(folder)
        self.s3 = servers.S3()
        self.postgresql = servers.PostgreSQL()
        for server in (self.redis, self.s3, self.postgresql):
            server.start()
        self.database = self.postgresql.database()

    def close(self) -> None:
        self.redis.stop()
        self.s3.stop(signal.SIGKILL)
        self.postgresql.remove()


def write_config(folder: Path, stores: Stores, urls: dict[str, str], ops: int) -> Path:
    def agent(kind: str, **more: Any) -> dict[str, Any]:
        timeouts = {"first_delta": "2s", "idle": "2s", "queue": "1s"}
        settings = {"platform": kind, "base_url": urls[kind], "api_key": KEYS[kind]}
        settings |= {"concurrency": 40, "timeouts": timeouts, "retries": 1}
        settings |= {"bot_id": "7553210987654300001"} if kind == "coze" else {}
        settings |= {"model": "gpt-4o-mini"} if kind in ("openai", "zhipu") else {}
        return settings | more

    agents = {kind: agent(kind) for kind in KEYS}
    agents["drained"] = agent("dify", on_disconnect={"policy": "drain", "max_time": "3s"})
    breaker = {"failures": 4, "cooldown": "1s"}
    agents["dead"] = agent(
        "dify", base_url=f"http://127.0.0.1:{servers.free_port()}", breaker=breaker
    )
    config = {
        "server": {"ops_port": ops, "keepalive": "500ms", "drain_timeout": "10s"},
        "auth": {
            "jwt_secret": "0123456789abcdef0123456789abcdef",
            "admin_password": "correct horse battery",
            "keys": [{"name": "soak", "key": CALLER, "permissions": ["chat", "upload"]}],
        },
        "database": stores.database,
        "redis": {"url": stores.redis.url, "prefix": "soak"},
        "storage": stores.s3.storage(stores.s3.bucket("soak")),
        "record": {"spool": str(folder / "spool")},
        "rate_limits": {"chat": "100000/min", "upload": "100000/min", "agents": None},
        "agents": agents,
        "routes": {
            "route": ["dead", "fastgpt"],
            "shared": [{"agent": "coze", "weight": 2}, "dify"],
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


@asynccontextmanager
async def run_gateway(path: Path, port: int, log: list[str]):
    command = [sys.executable, "run.py", "--config", str(path), "--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            log.append(line.decode("utf-8", "replace"))

    reading = asyncio.ensure_future(read())
    try:
        async with asyncio.timeout(30):
            while not any("listens on" in line for line in log):
                assert process.returncode is None, "".join(log)
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def process_gauges(ops: int) -> dict[str, float]:
    """Unlabelled samples, and the sum of those that differ by agent only."""
    out: dict[str, float] = {}
    url = f"http://127.0.0.1:{ops}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        for line in (await answer.text()).splitlines():
            if match := re.fullmatch(r'([a-z_]+)(?:\{agent="[^"]*"\})? ([0-9.e+-]+)', line):
                out[match[1]] = out.get(match[1], 0.0) + float(match[2])
    return out


async def watch(soak: Soak, ops: int, seen: list[dict[str, float]]) -> None:
    while soak.goes_on:
        with suppress(aiohttp.ClientError):
            seen.append(await process_gauges(ops))
        await asyncio.sleep(1)


async def soak_for(seconds: float, clients: int) -> list[str]:
    """The problems at the end, as sentences; empty if there are none."""
    log: list[str] = []
    seen: list[dict[str, float]] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        stores = Stores(folder)
        stack.callback(stores.close)
        urls = {}
        for kind, key in KEYS.items():
            demo = simulator(kind)(key=key, pace_s=0.005, silence_s=30.0)
            urls[kind] = await stack.enter_async_context(serve_demo(demo))
        port, ops = servers.free_port(), servers.free_port()
        path = write_config(folder, stores, urls, ops)
        gateway = await stack.enter_async_context(run_gateway(path, port, log))
        await warm_up(port)
        before = await process_gauges(ops)

        soak = Soak(f"http://127.0.0.1:{port}", seconds)
        running = [soak.client() for _ in range(clients)]
        await asyncio.gather(*running, faults(soak, stores, gateway), watch(soak, ops, seen))
        after = await calm(ops, before)
        recorded = await rows(stores, soak.made)
        problems = [
            *leftovers(before, after),
            *memory(seen, after),
            *of_record(soak.made, recorded, log),
        ]
        problems += sorted(set(soak.made.broken))[:20]
        problems += [line.strip() for line in log if "Traceback" in line or " ERROR " in line][:5]

        gateway.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.wait_for(gateway.wait(), 30)
        except TimeoutError:
            status = None
        if status != 0:
            problems.append(f"SIGTERM ended it with {status}")
        report(seconds, soak.made, before, after, len(recorded))
        if problems and (kept := os.environ.get("SOAK_LOG")):
            Path(kept).write_text("".join(log), "utf-8")
    return problems


async def warm_up(port: int) -> None:
    """Call every agent once: modules and settings loaded then are no leak."""
    quiet = Soak(f"http://127.0.0.1:{port}", 0, words=WORDS[:1])
    async with aiohttp.ClientSession() as session:
        for sort in (quiet.whole, quiet.stream, quiet.file):
            await asyncio.gather(*(sort(session) for _ in range(20)))


async def calm(ops: int, before: dict[str, float]) -> dict[str, float]:
    """The gauges after all calls have ended; running work has some seconds to end."""
    until = time.monotonic() + CALMING_S + 10
    while True:
        await asyncio.sleep(0.5)
        now = await process_gauges(ops)
        if not leftovers(before, now) or time.monotonic() > until:
            return now


def leftovers(before: dict[str, float], after: dict[str, float]) -> list[str]:
    names = (
        "gateway_open_streams", "gateway_agent_running", "gateway_agent_waiting",
        "gateway_agent_draining", "gateway_record_queue_depth", "gateway_record_lost_total",
        "gateway_record_rejected_total",
    )  # fmt: skip
    out = [f"{name} is {after[name]:g}" for name in names if after[name] != 0]
    if after["gateway_inflight_requests"] > 1:
        out.append(f"gateway_inflight_requests is {after['gateway_inflight_requests']:g}")
    # Pools keep some connections open: those of PostgreSQL, Redis and S3, and workers' own.
    for name, spare in (("gateway_event_loop_tasks", 10), ("process_open_fds", 60)):
        if after[name] > before[name] + spare:
            out.append(f"{name} was {before[name]:g} and is {after[name]:g}")
    return out


def memory(seen: list[dict[str, float]], after: dict[str, float]) -> list[str]:
    """Flat memory: the use at the end equals the use after a third of the time."""
    sizes = [sample["process_resident_memory_bytes"] / 1e6 for sample in seen]
    if len(sizes) < 30:
        return []  # too short to tell
    early = max(sizes[: len(sizes) // 3])
    late = after["process_resident_memory_bytes"] / 1e6
    if late > early * 1.1 + 10:
        return [f"memory went from {early:.0f} MB to {late:.0f} MB"]
    return []


async def rows(stores: Stores, made: Made) -> list[str]:
    """The request ids of the calls in the database."""
    text = await asyncio.to_thread(
        stores.postgresql.sql, "SELECT request_id FROM calls", stores.database
    )
    return [id_ for id_ in text.split() if id_ in made.begun]


def of_record(made: Made, recorded: list[str], log: list[str]) -> list[str]:
    """Every call that has begun is recorded once, and no other call is."""
    usage_so_far = Counter(recorded)
    begun, in_vain = set(), set()
    for line in log:
        if line.startswith("{"):
            entry = json.loads(line)
            if entry.get("request_id") in made.begun:  # a request's line, not another one
                begun.add(entry["request_id"])
                if entry["status"] == 499 and "agent" not in entry:
                    in_vain.add(entry["request_id"])  # disconnected before the call was admitted
    out = []
    if twice := [id_ for id_, times in usage_so_far.items() if times > 1]:
        out.append(f"{len(twice)} calls are recorded more than once, such as {twice[0]}")
    if missing := begun - in_vain - usage_so_far.keys():
        out.append(f"{len(missing)} of {len(begun)} calls are not recorded, such as {min(missing)}")
    if more := usage_so_far.keys() - begun:
        out.append(f"{len(more)} calls are recorded that the log does not have")
    if unlogged := made.answered - begun:
        out.append(f"{len(unlogged)} answers are not in the log")
    return out


def report(
    seconds: float, made: Made, before: dict[str, float], after: dict[str, float], recorded: int
) -> None:
    print(f"{seconds:g} s, {len(made.begun)} calls, {recorded} recorded (the rest left before)")
    print("  " + ", ".join(f"{name}: {count}" for name, count in sorted(made.statuses.items())))
    for name in ("process_resident_memory_bytes", "process_open_fds", "gateway_event_loop_tasks"):
        print(f"  {name}: {before[name]:g} → {after[name]:g}")
    for name in ("gateway_retries_total", "gateway_fallbacks_total", "gateway_breaker_opened_total",
                 "gateway_redis_failures_total", "gateway_config_generation"):  # fmt: skip
        print(f"  {name}: {after.get(name, 0):g}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=40)
    args = parser.parse_args()
    problems = asyncio.run(soak_for(args.seconds, args.clients))
    for problem in problems:
        print(f"PROBLEM: {problem}", file=sys.stderr)
    print("clean" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
