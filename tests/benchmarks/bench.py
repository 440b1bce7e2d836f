"""What a streamed event costs: CPU of the gateway beside bare aiohttp, in one run.

    make bench            (Linux: CPU time is read from /proc)

An upstream sends every stream 50 events a second; a client in its own process reads them. The CPU
of the server process, user and system, is divided by the events that came through. Absolute times
on a shared machine mean little: read the ratios.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

ROOT = Path(__file__).parents[2]
UPSTREAM, BARE, GATEWAY = 9411, 9412, 9413
HZ = os.sysconf("SC_CLK_TCK")
KEY = "sk-bench-12345678"

_IDS = '"conversation_id":"c0ffee00-0000-4000-8000-000000000000","message_id":"m0ffee00-0000-4000-8000-000000000000"'
EVENTS = {
    "dify": (
        f'data: {{"event":"message",{_IDS},"created_at":1,"task_id":"t","answer":"你好","from_variable_selector":[]}}\n\n',
        f'data: {{"event":"message_end",{_IDS},"task_id":"t","metadata":{{"usage":{{"prompt_tokens":1,"completion_tokens":2}}}}}}\n\n',
    ),
    "fastgpt": (
        'event: answer\ndata: {"id":"","object":"","created":0,"model":"","choices":[{"delta":{"role":"assistant","content":"你好"},"index":0,"finish_reason":null}]}\n\n',
        'event: answer\ndata: {"choices":[{"delta":{},"index":0,"finish_reason":"stop"}]}\n\nevent: flowResponses\ndata: []\n\nevent: answer\ndata: [DONE]\n\n',
    ),
    "coze": (
        'event:conversation.message.delta\ndata:{"id":"1","conversation_id":"2","bot_id":"3","role":"assistant","type":"answer","content":"你好","content_type":"text","chat_id":"4"}\n\n',
        'event:conversation.chat.completed\ndata:{"id":"4","conversation_id":"2","status":"completed","usage":{"token_count":3,"output_count":2,"input_count":1}}\n\nevent:done\ndata:"[DONE]"\n\n',
    ),
    "openai": (
        'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"你好"},"finish_reason":null}]}\n\n',
        'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    ),
}  # fmt: skip
PATHS = {
    "/v1/chat-messages": "dify",
    "/api/v1/chat/completions": "fastgpt",
    "/v3/chat": "coze",
    "/v1/chat/completions": "openai",
}


async def upstream(events: int, period_s: float) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        one, last = (text.encode() for text in EVENTS[PATHS[request.path]])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(events):
            await response.write(one)
            await asyncio.sleep(period_s)
        await response.write(last)
        return response

    await _serve(answer, UPSTREAM)


async def bare() -> None:
    """aiohttp passing bytes through: what the framework alone costs."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def answer(request: web.Request) -> web.StreamResponse:
            url = f"http://127.0.0.1:{UPSTREAM}{request.path}"
            async with session.post(url, data=await request.read()) as got:
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                await response.prepare(request)
                async for chunk in got.content.iter_any():
                    await response.write(chunk)
                return response

        await _serve(answer, BARE)


async def _serve(handler, port: int) -> None:
    app = web.Application()
    app.router.add_post("/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def load(url: str, body: str, streams: int) -> int:
    """Bytes of events that came back over `streams` concurrent streams."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def one() -> int:
            async with client.post(url, data=body, headers=headers) as answer:
                return (await answer.read()).count("你好".encode())

        return sum(await asyncio.gather(*(one() for _ in range(streams))))


def _uvloop(main) -> int:
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


@contextmanager
def started(*command: str, port: int):
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int) -> None:
    import socket

    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on {port}")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / HZ


def cost_us(pid: int, url: str, body: str, streams: int, rounds: int) -> list[float]:
    """CPU microseconds per event, one figure per round."""
    out = []
    for _ in range(rounds):
        before = cpu_s(pid)
        command = [sys.executable, __file__, "load", url, body, str(streams)]
        events = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        out.append((cpu_s(pid) - before) * 1e6 / events)
    return out


def table(streams: int, rounds: int) -> None:
    config = f"auth: {{anonymous: false, keys: [{{name: bench, key: {KEY}}}]}}\n"
    config += "rate_limits: {chat: 1000000/s}\nagents:\n"
    for name in EVENTS:
        more = {"dify": "mode: chat", "coze": "bot_id: '1'", "openai": "model: m"}.get(name, "")
        config += f"  {name}: {{platform: {name}, base_url: 'http://127.0.0.1:{UPSTREAM}', api_key: bench-key, concurrency: 10000, {more}}}\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.yaml"
        record = f"database: 'sqlite:///{folder}/gateway.db'\nrecord: {{spool: '{folder}/spool'}}\n"
        path.write_text(config + record, "utf-8")
        gateway = ["run.py", "--config", str(path), "--port", str(GATEWAY)]
        with (
            started(__file__, "upstream", port=UPSTREAM),
            started(__file__, "bare", port=BARE) as bare_pid,
            started(*gateway, port=GATEWAY) as gateway_pid,
        ):
            print(f"{streams} streams of 50 events/s, CPU us per event, median (lowest-highest)")
            print(f"{'':10}{'bare aiohttp':>24}{'gateway':>24}{'ratio':>8}")
            for path_, name in PATHS.items():
                body = f'{{"model":"{name}","stream":true,"messages":[{{"role":"user","content":"hi"}}]}}'
                urls = (
                    f"http://127.0.0.1:{BARE}{path_}",
                    f"http://127.0.0.1:{GATEWAY}/v1/chat/completions",
                )
                pids = (bare_pid, gateway_pid)
                costs = [
                    cost_us(p, u, body, streams, rounds) for p, u in zip(pids, urls, strict=True)
                ]
                shown = [f"{statistics.median(c):.1f} ({min(c):.1f}-{max(c):.1f})" for c in costs]
                ratio = statistics.median(costs[1]) / statistics.median(costs[0])
                print(f"{name:10}{shown[0]:>24}{shown[1]:>24}{ratio:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=["upstream", "bare", "load"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.part == "upstream":
        _uvloop(upstream(100, 0.02))
    elif args.part == "bare":
        _uvloop(bare())
    elif args.part == "load":
        print(_uvloop(load(args.rest[0], args.rest[1], int(args.rest[2]))))
    else:
        table(args.streams, args.rounds)


if __name__ == "__main__":
    main()
