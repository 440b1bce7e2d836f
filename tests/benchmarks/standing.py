"""Fixed costs: the start, and the memory of a process and of idle streams."""

import compileall
import json
import statistics
import time
from typing import Any

import machine
import targets
from machine import Process, answer_ms, free_port, wait_until_quiet
from measure import Load, Rig, line, whole_requests
from targets import GatewayFiles, Server

_SPARE_FILES = 300  # of a process with thousands of connections, for everything else
_OPENED_PER_S = 800  # a gateway that is busy opening connections would not be idle
_LIVEZ_CALLS = 50
_PATIENCE_S = 5  # until all of them have been opened and served


def start(rig: Rig, rounds: int) -> dict[str, Any]:
    """The time from the start of `python run.py` until /readyz is 200, and the memory then."""
    # As after `make install`; if Python cannot write bytecode, each start would compile every
    # edited module.
    compileall.compile_dir(targets.ROOT / "gateway", quiet=1)
    files = GatewayFiles(rig.folder / "start", rig.upstream.port).write()
    ready_s, resident_mb = [], []
    for _ in range(rounds):
        port = free_port()
        rig.turns.take()
        began = time.monotonic()
        process = Process(files.command(port), rig.folder / "start.log", cwd=targets.ROOT)
        try:
            process.wait_for(port)
            while answer_ms(f"http://127.0.0.1:{port}/readyz") is None:
                time.sleep(0.005)
            ready_s.append(time.monotonic() - began)
            time.sleep(1)
            resident_mb.append(process.memory_kib("Rss") / 1024)
        finally:
            process.stop()
    print(f"  ready after {statistics.median(ready_s):.2f} s", flush=True)
    return {"ready_s": ready_s, "resident_mb": resident_mb}


def idle(rig: Rig, rounds: int, wanted: int) -> dict[str, Any]:
    """Streams with one piece and then long silence, and /livez during it."""
    # Each takes the gateway a client's connection and an upstream's.
    files_here = machine.open_files()
    count = min(wanted, (files_here - _SPARE_FILES) // 2)
    why_fewer = "a quick run"
    if count < wanted:
        why_fewer = f"a process may have {files_here:,} files open here, and each takes two"
    held = [hold(rig, count, number) for number in range(rounds)]
    return {
        "streams": min(one["streams"] for one in held),
        "why_fewer": why_fewer,
        "kib_per_stream": [one["kib_per_stream"] for one in held],
        "livez_ms": [ms for one in held for ms in one["livez_ms"]],
        "failed": sum(one["failed"] for one in held),
    }


def hold(rig: Rig, count: int, number: int = 0, livez_calls: int = _LIVEZ_CALLS) -> dict[str, Any]:
    """`count` streams at one gateway: the memory of each, and the latency of /livez calls during
    them."""
    files = GatewayFiles(rig.folder / f"idle-{number}", rig.upstream.port).write()
    rig.turns.take()
    server = files.start()
    try:
        # A first call loads modules; that memory is not the streams'.
        rig.measure(targets.gateway("dify"), [server], whole_requests(4, 0.5))
        return _held(rig, server, count, livez_calls)
    finally:
        server.process.stop()


def _held(rig: Rig, server: Server, count: int, livez_calls: int) -> dict[str, Any]:
    spread_s = count / _OPENED_PER_S
    load = Load(
        connections=count,
        seconds=spread_s + _PATIENCE_S + livez_calls * 0.1,
        spread_s=spread_s,
        events=2,
        pause_ms=60_000,
    )
    before_kib = server.process.memory_kib()
    with rig.client(targets.gateway("dify"), [server], load) as client:
        line(client)  # the client has begun
        time.sleep(spread_s + 1)
        wait_until_quiet(server.process.pids, _PATIENCE_S - 2)
        memory_kib = server.process.memory_kib() - before_kib
        livez_ms = _ask_livez(server, livez_calls)
        assert line(client) == "closed\n"
        told = json.loads(line(client))
    streams = told["all_events"]  # each has sent its first piece
    print(f"  {streams} streams, {memory_kib / count:.1f} KiB each", flush=True)
    return {
        "streams": streams,
        "kib_per_stream": memory_kib / count,
        "livez_ms": livez_ms,
        "failed": told["refused"] + told["disconnects"] + count - streams,
    }


def _ask_livez(server: Server, calls: int) -> list[float | None]:
    times = []
    for _ in range(calls):
        times.append(answer_ms(f"http://127.0.0.1:{server.port}/livez"))
        time.sleep(0.05)
    return times
