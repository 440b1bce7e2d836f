"""One measurement: a load through a server, and the server's CPU time for it."""

import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import Turns, cpu_s, pin, wait_until_quiet
from targets import Server, Target

ENDLESS = 1_000_000  # events: such a stream outlasts every measurement


@dataclass(frozen=True)
class Load:
    """`events` and `pause_ms` describe each stream; whole requests have an answer without pauses.

    Connections begin evenly over `spread_s`, and the time before `settle_s` is not counted. `vary`
    is how many different numbers {n} takes in bodies and headers.
    """

    is_streamed: bool = True
    connections: int = 200
    seconds: float = 3
    spread_s: float = 0
    settle_s: float = 0
    events: int = 100
    pause_ms: int = 20
    vary: int = 1


def long_streams(
    connections: int, window_s: float, spread_s: float = 1, pause_ms: int = 20
) -> Load:
    """Only the time in which all streams are open counts, without starts and ends."""
    settle_s = spread_s + 0.2
    return Load(
        connections=connections,
        seconds=settle_s + window_s,
        spread_s=spread_s,
        settle_s=settle_s,
        events=ENDLESS,
        pause_ms=pause_ms,
    )


def short_streams(connections: int, seconds: float) -> Load:
    """Streams of 100 events, one after the other, that all begin simultaneously."""
    return Load(connections=connections, seconds=seconds)


def whole_requests(connections: int, seconds: float) -> Load:
    return Load(
        is_streamed=False,
        connections=connections,
        seconds=seconds + 0.2,
        settle_s=0.2,
        events=20,
        pause_ms=0,
    )


@dataclass(frozen=True)
class Sample:
    """`cpu_us` is per event or request of the counted part, `whole_us` per one of the whole run,
    from before the first connection until the last has closed."""

    cpu_us: float
    whole_us: float
    count: int
    cores: float
    delay_ms: list[float]  # p50, p99, maximum; -1 if there is none
    first_ms: list[float]
    total_ms: list[float]
    lost: int
    reordered: int
    failed: int

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.reordered or self.failed)


@dataclass(frozen=True)
class Rig:
    """The compiled programs and the upstream that all measurements share.

    `folder` holds the programs and the servers' files.
    """

    folder: Path
    upstream: Server
    turns: Turns

    def client(
        self, target: Target, servers: Sequence[Server], load: Load
    ) -> "subprocess.Popen[str]":
        """Start the load client; its connections are spread over the servers."""
        program = str(self.folder / "load")
        command = [program, *_arguments(target, servers, load)]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        pin(client.pid, is_measured=False)
        return client

    def measure(self, target: Target, servers: Sequence[Server], load: Load) -> Sample:
        """Measure the CPU time of all the servers."""
        self.turns.take()
        pids = [pid for server in servers for pid in server.process.pids]
        before = cpu_s(pids)
        with self.client(target, servers, load) as client:
            marks = [_cpu_at(line(client), pids) for _ in range(2)]
            told = json.loads(line(client))
        after = cpu_s(pids)
        wait_until_quiet(pids)
        return _sample(told, "events" if load.is_streamed else "requests", marks, after - before)


def line(client: "subprocess.Popen[str]") -> str:
    """The next line of the client's output."""
    assert client.stdout is not None
    text = client.stdout.readline()
    if not text:
        raise RuntimeError(f"the load client has failed; it was {client.args}")
    return text


def _cpu_at(mark: str, pids: Sequence[int]) -> float:
    assert mark in ("open\n", "closed\n"), mark
    return cpu_s(pids)


def _sample(told: dict[str, Any], unit: str, marks: Sequence[float], whole_s: float) -> Sample:
    window_s = marks[1] - marks[0]
    return Sample(
        cpu_us=round(window_s * 1e6 / max(told[unit], 1), 2),
        whole_us=round(whole_s * 1e6 / max(told[f"all_{unit}"], 1), 2),
        count=told[unit],
        cores=round(window_s / told["seconds"], 3),
        failed=told["refused"] + told["disconnects"],
        **{name: told[name] for name in ("delay_ms", "first_ms", "total_ms", "lost", "reordered")},
    )


def _arguments(target: Target, servers: Sequence[Server], load: Load) -> list[str]:
    ports = ",".join(str(server.port) for server in servers)
    question = f"events={load.events} pause_ms={load.pause_ms}"
    # An endless stream is cut off, and a whole answer need not have come from one.
    events = load.events if load.is_streamed and load.events != ENDLESS else 0
    options = {
        "connections": load.connections,
        "seconds": load.seconds,
        "spread-ms": round(load.spread_s * 1000),
        "settle-ms": round(load.settle_s * 1000),
        "events": events,
        "vary": load.vary,
    }
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    body = target.body(question, load.is_streamed)
    return [*given, f"127.0.0.1:{ports}", target.path, body, *target.headers]


# Rounds.

Rounds = Mapping[str, Sequence[Sample]]


def interleaved(rounds: int, cases: Mapping[str, Callable[[], Sample]]) -> Rounds:
    """A B C, B C A: a disturbance of the machine affects all cases, and none always comes first."""
    out: dict[str, list[Sample]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(rounds):
        at = number % len(names)
        for name in names[at:] + names[:at]:
            sample = cases[name]()
            out[name].append(sample)
            bad = "" if sample.is_clean else f"  {asdict(sample)}"
            print(f"  {number + 1}/{rounds} {name:24}{sample.cpu_us:9.1f} us{bad}", flush=True)
    return out


@dataclass(frozen=True)
class Figure:
    """The median of some rounds, with the lowest and the highest value."""

    median: float
    low: float
    high: float

    def shown(self, digits: int = 1) -> str:
        if self.median < 0:
            return "–"
        low, median, high = (f"{v:,.{digits}f}" for v in (self.low, self.median, self.high))
        return median if low == high else f"{median} ({low}–{high})"


def figure(values: Sequence[float]) -> Figure:
    return Figure(statistics.median(values), min(values), max(values))


def ratio(values: Sequence[float], base: Sequence[float]) -> Figure:
    """Relative to the base in the same round."""
    return figure([value / other for value, other in zip(values, base, strict=True)])
