"""How much one caller's worst attack costs another caller, measured from outside.

    python tests/abuse/abuse.py                          every attack for five seconds
    python tests/abuse/abuse.py --seconds 20 places      one of them for longer

One gateway process with default limits, its upstream, and an attacker with a key of its own in a
third one. Meanwhile another caller asks `/livez` and chats, and the tool reports both times. It
exits with 1 if the 99th percentile of `/livez` reaches 100 ms, a chat takes a second, or one fails.
"""

import argparse
import contextlib
import gzip
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EVIL, GOOD = "sk-evil-caller-0001", "sk-good-caller-0001"
LIVEZ_S, CHAT_S = 0.1, 1.0  # what another caller may have to wait
MIB = 1 << 20
MOST = 10 * MIB  # server.max_body


# The attacks. Each is called repeatedly, from several threads concurrently.

Attack = Callable[["Line"], None]
ATTACKS: dict[str, Attack] = {}


def attack(send: Attack) -> Attack:
    ATTACKS[send.__name__] = send
    return send


class Line:
    """The gateway's address, and the connections that an attack holds open until the end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.held: list[socket.socket] = []
        self.made: dict[str, bytes] = {}  # bodies that take long to make

    def open(self, window: int = 0) -> socket.socket:
        line = socket.socket()
        if window:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        line.settimeout(10)
        line.connect(("127.0.0.1", self.port))
        return line

    def ask(self, method: str, path: str, body: bytes, *headers: str, key: str = EVIL) -> int:
        with contextlib.closing(self.open()) as line:
            line.sendall(head(method, path, len(body), *headers, key=key) + body)
            with contextlib.suppress(ValueError, IndexError):
                return int(line.recv(64).split()[1])
        return 0

    def body(self, name: str, make: Callable[[], bytes]) -> bytes:
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]


def head(method: str, path: str, size: int, *headers: str, key: str = EVIL) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {size}", *headers]
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, "", ""]).encode()


def filled(before: bytes, unit: bytes, after: bytes, most: int = MOST) -> bytes:
    """`before`, as many of `unit` as fit, with commas, and `after`."""
    count = (most - len(before) - len(after)) // (len(unit) + 1)
    return before + b",".join([unit] * count) + after


CHAT = b'{"model":"bot","messages":[{"role":"user","content":'


@attack
def one_long_question(line: Line) -> None:
    body = line.body("text", lambda: CHAT + b'"' + b"\\n" * (MOST // 2 - 100) + b'"}]}')
    line.ask("POST", "/v1/chat/completions", body)


@attack
def many_values(line: Line) -> None:
    """As many members, entries and objects as a body may hold."""

    def make() -> bytes:
        members = b",".join(b'"%x":1' % i for i in range(149_000))
        return CHAT + b'"x"}],"a":{' + members + b'},"b":[' + filled(b"", b'"a"', b"]}", MIB)

    line.ask("POST", "/v1/chat/completions", line.body("values", make))


@attack
def too_many_values(line: Line) -> None:
    body = line.body("nested", lambda: filled(CHAT + b'"x"}],"a":[', b"[]", b"]}"))
    line.ask("POST", "/v1/chat/completions", body)


@attack
def long_history(line: Line) -> None:
    turn = b'{"role":"assistant","tool_calls":[],"content":"%s"}' % (b"a" * 1900)
    last = b'{"role":"user","content":"x"}]}'
    body = line.body("history", lambda: filled(b'{"model":"bot","messages":[', turn, b"," + last))
    line.ask("POST", "/v1/chat/completions", body)


@attack
def many_parts(line: Line) -> None:
    part = b'{"type":"image_url","image_url":{"url":"http://a/b"}}'
    body = line.body("parts", lambda: filled(CHAT + b"[", part, b"]}]}", 2 * MIB))
    line.ask("POST", "/v1/chat/completions", body)


@attack
def inflated(line: Line) -> None:
    """Three megabytes that would inflate to three thousand, with a key and without."""
    bomb = line.body("bomb", lambda: gzip.compress(b"\0" * (300 * MIB), 9) * 10)
    line.ask("POST", "/v1/chat/completions", bomb, "Content-Encoding: gzip")
    line.ask("GET", "/health", bomb, "Content-Encoding: gzip", key="")


@attack
def unknown_members(line: Line) -> None:
    names = (b'"snoissimrep%06d":1' % i for i in range(400_000))
    body = line.body("members", lambda: b"{" + b",".join(names) + b"}")
    line.ask("POST", "/api/v1/tokens", body)
    line.ask("POST", "/api/v1/tokens", body[: 3000 * 22 - 1] + b"}")


@attack
def token_settings(line: Line) -> None:
    """Settings just under the size limit."""
    agents = filled(b'{"user":"u","agents":[', b"0", b"]}", 65_000)
    user = json.dumps({"user": "\ufdfa" * 20_000}, ensure_ascii=False).encode()
    for body in (agents, user):
        line.ask("POST", "/api/v1/tokens", body)


@attack
def logins(line: Line) -> None:
    name = json.dumps({"username": "\ufdfa" * 20_000, "password": "x"}, ensure_ascii=False)
    line.ask("POST", "/api/v1/login", name.encode(), key="")


@attack
def places(line: Line) -> None:
    """Streams that are never read."""
    body = b'{"query":"pour","stream":true}'
    stream = line.open(4096)
    stream.sendall(head("POST", "/api/v1/chat", len(body), "Agent: bot") + body)
    line.held.append(stream)


@attack
def uploads(line: Line) -> None:
    """Files sent as slowly as the gateway allows."""
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    kind = "Content-Type: multipart/form-data; boundary=b"
    upload = line.open()
    upload.sendall(head("POST", "/v1/files", 90_000_000, kind) + form + b"a" * 5000)
    line.held.append(upload)


@attack
def slow_bodies(line: Line) -> None:
    slow = line.open()
    slow.sendall(head("POST", "/v1/chat/completions", MOST) + b'{"model":"bot","x":"')
    line.held.append(slow)


@attack
def tiny_chunks(line: Line) -> None:
    body = b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 200_000
    with contextlib.closing(line.open()) as sent:
        sent.sendall(b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\n" + body)


@attack
def pipelined(line: Line) -> None:
    body = b'{"query":"pour","stream":true}'
    with contextlib.closing(line.open()) as sent:
        sent.settimeout(1)
        sent.sendall(head("POST", "/api/v1/chat", len(body), "Agent: bot") + body)
        sent.recv(16)
        sent.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 60_000)


@attack
def long_heads(line: Line) -> None:
    hops = "X-Forwarded-For: " + "127.0.0.1," * 800
    kind = "Content-Type: multipart/form-data" + ";a=b" * 1900
    query = "/api/v1/calls?" + "&".join(f"a{i}" for i in range(1000))
    line.ask("GET", query, b"", *[hops] * 100)
    line.ask("POST", "/v1/files", b"x", kind)
    line.ask("GET", "/files/" + "uploads/" * 900, b"", *[f"Cookie: {'a=b;' * 1900}"] * 100)


# The upstream: a short answer to a question, and an endless one to "pour".


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        pours = b"pour" in body[:4096]
        event = {"choices": [{"index": 0, "delta": {"content": "x" * (3000 if pours else 3)}}]}
        with contextlib.suppress(OSError):
            for _ in range(100_000 if pours else 3):
                self.wfile.write(b"data: %s\n\n" % json.dumps(event).encode())
            event["choices"][0] |= {"delta": {}, "finish_reason": "stop"}
            self.wfile.write(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(event).encode())
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1000


def free_port() -> int:
    """Below the ephemeral range, of which outgoing connections use thousands here."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


# Both sides.


@dataclass
class Told:
    """The other caller's latencies in seconds and its failures, and the gateway's CPU time and
    memory."""

    livez: list[float] = field(default_factory=list)
    chats: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    cpu_s: float = 0.0
    rss_mb: float = 0.0

    def p99(self) -> float:
        return sorted(self.livez)[int(len(self.livez) * 0.99)] if self.livez else float("inf")


class Gateway:
    """A gateway with default limits in a process of its own, in front of `Upstream`."""

    def __init__(self, folder: Path) -> None:
        self.port, upstream_port = free_port(), free_port()
        upstream = [sys.executable, __file__, "--upstream", str(upstream_port)]
        self._upstream = subprocess.Popen(upstream)
        keys = [
            {"name": name, "key": key, "permissions": ["chat", "upload"]}
            for name, key in (("evil", EVIL), ("good", GOOD))
        ]
        url = f"http://127.0.0.1:{upstream_port}/v1"
        bot = {"platform": "openai", "base_url": url, "api_key": "k", "model": "m"}
        # The other caller exceeds the default rate; the attacker is limited by it.
        keys[1]["rate_limits"] = {"chat": "1000/s"}
        config = {"server": {"port": self.port}, "auth": {"keys": keys}, "agents": {"bot": bot}}
        (folder / "config.yaml").write_text(json.dumps(config))
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        command = [sys.executable, str(ROOT / "run.py"), "serve", "--config", "config.yaml"]
        self._log = (folder / "log").open("wb")
        env = {**kept, "ADMIN_PASSWORD": "abuse-admin-1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(command, cwd=folder, stderr=self._log, env=env)
        self._wait()

    def _wait(self) -> None:
        for _ in range(300):
            with contextlib.suppress(OSError):
                if self.get("/livez") and self.chat() == 200:
                    return
            time.sleep(0.1)
        raise SystemExit("the gateway did not start")

    def get(self, path: str) -> bool:
        return self._send("GET", path, None, {}) == 200

    def chat(self) -> int:
        headers = {"Authorization": f"Bearer {GOOD}", "Agent": "bot"}
        return self._send("POST", "/api/v1/chat", b'{"query":"hi"}', headers)

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status

    def spent(self) -> tuple[float, float]:
        """(seconds of CPU, MB of memory at most)."""
        proc = Path(f"/proc/{self._process.pid}")
        times = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]
        lines = (proc / "status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK"), int(peak.split()[1]) / 1024

    def close(self) -> None:
        for process in (self._process, self._upstream):
            process.kill()
            process.wait()
        self._log.close()


@contextlib.contextmanager
def attacked(name: str, port: int, seconds: float) -> Iterator[None]:
    """While another process, at the lowest priority, attacks."""
    command = [sys.executable, __file__, "--attack", name, str(port), str(seconds)]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def do_worst(name: str, port: int, seconds: float) -> None:
    os.nice(10)
    line, ends_at = Line(port), time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < ends_at and len(line.held) < 400:
            with contextlib.suppress(OSError):
                ATTACKS[name](line)

    ATTACKS[name](line)  # makes the bodies
    workers = [threading.Thread(target=work, daemon=True) for _ in range(20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    time.sleep(max(0.0, ends_at - time.monotonic()))


def measure(name: str, seconds: float) -> Told:
    """One attack on a gateway of its own."""
    told = Told()
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(Path(folder))
        try:
            cpu_s, _ = gateway.spent()
            with attacked(name, gateway.port, seconds + 5):
                _watch(gateway, told, seconds)
            spent_s, told.rss_mb = gateway.spent()
            told.cpu_s = spent_s - cpu_s
        finally:
            gateway.close()
    return told


def _watch(gateway: Gateway, told: Told, seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        for _ in range(20):
            began = time.monotonic()
            if not gateway.get("/livez"):
                told.failed.append("livez")
            told.livez.append(time.monotonic() - began)
            time.sleep(random.uniform(0.001, 0.01))
        began = time.monotonic()
        if (status := gateway.chat()) != 200:
            told.failed.append(f"chat {status}")
        told.chats.append(time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--attack", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.upstream:
        Server(("127.0.0.1", given.upstream), Upstream).serve_forever()
    if given.attack:
        name, port, seconds = given.attack
        do_worst(name, int(port), float(seconds))
        return 0
    worst = 0
    print(f"{'attack':18} {'livez p99':>10} {'max':>8} {'chat max':>9} {'CPU':>7} {'memory':>8}")
    for name in given.names or ATTACKS:
        told = measure(name, given.seconds)
        is_bad = told.p99() >= LIVEZ_S or max(told.chats) >= CHAT_S or bool(told.failed)
        worst |= is_bad
        print(
            f"{name:18} {told.p99() * 1000:7.0f} ms {max(told.livez) * 1000:5.0f} ms"
            f" {max(told.chats) * 1000:6.0f} ms {told.cpu_s:5.1f} s {told.rss_mb:5.0f} MB"
            f"{'   TOO MUCH ' + ' '.join(sorted(set(told.failed))) if is_bad else ''}",
            flush=True,
        )
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
