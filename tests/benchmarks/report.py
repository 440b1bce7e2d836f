"""results.json as Markdown: the targets and what was measured, then every figure."""

from collections.abc import Iterable, Sequence
from typing import Any

from measure import Figure, figure, ratio

PLATFORMS = ("dify", "coze", "fastgpt", "openai")
Samples = Sequence[dict[str, Any]]
Results = dict[str, Any]


def values(samples: Samples, name: str, index: int | None = None) -> list[float]:
    """One figure of each round; `index` 0, 1, 2 are a delay's p50, p99 and maximum."""
    return [s[name] if index is None else s[name][index] for s in samples]


def of(samples: Samples, name: str, index: int | None = None) -> Figure:
    return figure(values(samples, name, index))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


# The targets.


def targets_table(results: Results) -> str:
    return table(["wanted", "measured", "met"], list(_targets(results)))


def _targets(results: Results) -> Iterable[list[str]]:
    yield from _event_targets(results.get("events", {}))
    yield from _request_target(results.get("requests", {}).get("32", {}))
    yield from _delay_targets(results.get("events", {}))
    yield from _loss_target(results.get("events", {}))
    yield from _standing_targets(results)


def _row(wanted: str, measured: str, is_met: bool) -> list[str]:
    return [wanted, measured, "yes" if is_met else "**no**"]


def _event_targets(events: Results) -> Iterable[list[str]]:
    kinds = {
        "long 200": "an event in the midst of 200 streams",
        "short 200": "an event of 200 streams of 100 events, starts and ends included",
    }
    for load, words in kinds.items():
        for platform in PLATFORMS:
            ours = events.get(load, {}).get(f"gateway, {platform}")
            nginx = events.get(load, {}).get(f"nginx, {platform}")
            if ours and nginx:
                times = _times(ours, nginx, load)
                said = f"{times.shown(2)} ×"
                yield _row(f"{words}, {platform}: ≤ 1.5 × nginx", said, times.median <= 1.5)


def _times(samples: Samples, base: Samples, load: str) -> Figure:
    """For short streams the whole run counts, so that no part of a stream is left out."""
    name = "whole_us" if load.startswith("short") else "cpu_us"
    return ratio(values(samples, name), values(base, name))


def _request_target(requests: Results) -> Iterable[list[str]]:
    if requests:
        ours, bare = requests["gateway, openai"], requests["bare aiohttp, openai"]
        times = ratio(values(ours, "cpu_us"), values(bare, "cpu_us"))
        wanted = "a whole request to an OpenAI-compatible upstream: ≤ 1.3 × bare aiohttp"
        yield _row(wanted, f"{times.shown(2)} ×", times.median <= 1.3)


def _delay_targets(events: Results) -> Iterable[list[str]]:
    for load, index, limit_ms, words in (
        ("long 500", 1, 25.0, "500 streams of 50 events/s on one core: p99 added delay < 25 ms"),
        ("long 100", 0, 0.3, "100 streams of 50 events/s: p50 added delay < 0.3 ms"),
    ):
        measured = {
            platform: of(events[load][f"gateway, {platform}"], "delay_ms", index)
            for platform in PLATFORMS
            if load in events
        }
        if measured:
            worst = max(measured.values(), key=lambda f: f.median)
            said = f"{worst.shown(2)} ms, the slowest of the platforms"
            yield _row(words, said, worst.median < limit_ms)


def _loss_target(events: Results) -> Iterable[list[str]]:
    ours = []
    for by_target in events.values():
        for name, samples in by_target.items():
            ours += samples if name.startswith("gateway") else []
    if ours:
        count = sum(s["count"] for s in ours)
        wrong = {name: sum(s[name] for s in ours) for name in ("lost", "reordered", "failed")}
        said = ", ".join(f"{n} {name}" for name, n in wrong.items()) + f" of {count:,} events"
        yield _row("nothing lost or reordered", said, not any(wrong.values()))


def _standing_targets(results: Results) -> Iterable[list[str]]:
    if idle := results.get("idle"):
        yield from _idle_targets(idle)
    if start := results.get("start"):
        ready, memory = figure(start["ready_s"]), figure(start["resident_mb"])
        yield _row("ready within 1 s of `python run.py`", f"{ready.shown(2)} s", ready.median < 1)
        yield _row("idle: < 60 MB resident", f"{memory.shown()} MB", memory.median < 60)


def _idle_targets(idle: Results) -> Iterable[list[str]]:
    kib, streams, times = figure(idle["kib_per_stream"]), idle["streams"], idle["livez_ms"]
    note = "" if streams >= 10_000 else f" ({idle['why_fewer']})"
    is_met = kib.median < 20 and streams >= 9_800 and not idle["failed"]
    said = f"{kib.shown()} KiB each of {streams:,}{note}"
    yield _row("10,000 idle streams on one process: < 20 KiB each", said, is_met)
    slowest = max((t for t in times if t is not None), default=float("inf"))
    said = f"{slowest:.1f} ms, the slowest of {len(times)}"
    is_met = None not in times and slowest < 50
    yield _row("/livez meanwhile: within 50 ms", said, is_met)


# Every figure.


def markdown(results: Results) -> str:
    parts = [_head(results["machine"]), "## Wanted and measured\n", targets_table(results)]
    parts += _events(results.get("events", {}))
    parts += _requests(results.get("requests", {}))
    parts += _growth(results.get("growth", {}))
    return "\n".join(parts)


def _head(about: Results) -> str:
    pinned = "servers on one core, the rig on another" if about["pinned"] else "not pinned"
    quick = " A quick run: take these figures for a first look only." if about["quick"] else ""
    return (
        "# What the gateway costs\n\n"
        f"Written by `make bench` on {about['day']}: {about['cpu']}, {about['cores']} cores"
        f" ({pinned}), Linux {about['kernel']}, Python {about['python']}.{quick}\n\n"
        "Each figure is the median of its rounds with the lowest and the highest. CPU is user and"
        " system time of the server with its children, µs. Ratios are within a round."
        " [How it is measured](../../docs/performance.md).\n"
    )


_LOADS = {
    "long": "{} streams of 50 events/s each, in their midst",
    "short": "{} streams of 100 events, all begun at once, starts and ends included",
}


def _events(events: Results) -> list[str]:
    parts = ["## Per streamed event\n"] if events else []
    head = ["", "CPU µs", "× nginx", "× bare aiohttp", "delay p50 ms", "p99 ms"]
    head += ["first event p50 ms", "p99 ms"]
    for load, by_target in events.items():
        kind, _, count = load.partition(" ")
        rows = [_event_row(name, load, by_target) for name in by_target]
        parts += [f"### {_LOADS[kind].format(count)}\n", table(head, rows)]
    return parts


def _event_row(name: str, load: str, by_target: Results) -> list[str]:
    samples, platform = by_target[name], name.rpartition(", ")[2]
    cpu = of(samples, "whole_us" if load.startswith("short") else "cpu_us")
    bases = [by_target.get(f"{server}, {platform}") for server in ("nginx", "bare aiohttp")]
    bases[1] = bases[1] or by_target.get("bare aiohttp, dify")
    times = [_times(samples, base, load).shown(2) if base else "–" for base in bases]
    delays = [of(samples, "delay_ms", i).shown(2) for i in (0, 1)]
    firsts = [of(samples, "first_ms", i).shown() for i in (0, 1)]
    if name.startswith("nothing"):
        return ["the upstream itself, nothing between", "–", "–", "–", *delays, *firsts]
    return [name, cpu.shown(), *times, *delays, *firsts]


def _requests(requests: Results) -> list[str]:
    parts = ["## Per whole request\n"] if requests else []
    for count, by_target in requests.items():
        rows = []
        for name, samples in by_target.items():
            cpu = of(samples, "cpu_us")
            base = by_target.get("bare aiohttp, openai")
            own = values(samples, "cpu_us")
            times = ratio(own, values(base, "cpu_us")).shown(2) if base else "–"
            waits = [of(samples, "total_ms", i).shown(1) for i in (0, 1)]
            rows.append([name, cpu.shown(0), times, *waits])
        head = ["", "CPU µs", "× bare aiohttp", "time p50 ms", "p99 ms"]
        parts += [f"### {count} connections, one request after the other\n", table(head, rows)]
    if parts:
        parts.append(
            "Dify, Coze and FastGPT are asked for a stream of 20 events, which the gateway gathers"
            " into the whole answer.\n"
        )
    return parts


_VARIED = {
    "agents": "agents in config.yaml",
    "keys": "keys in the database",
    "replicas": "replicas that share one Redis",
}


def curves(growth: Results) -> dict[str, dict[str, dict[int, Figure]]]:
    """What is varied -> what is measured -> how many -> CPU µs."""
    out: dict[str, dict[str, dict[int, Figure]]] = {}
    if growth:
        out["streams"] = {
            f"event, {server}": {int(n): of(s["event"], "cpu_us") for n, s in by_count.items()}
            for server, by_count in growth["streams"].items()
        }
        for varied in _VARIED:
            by_count = growth[varied]
            out[varied] = {
                unit: {int(n): of(s[unit], "cpu_us") for n, s in by_count.items()}
                for unit in next(iter(by_count.values()))
            }
    return out


def _growth(growth: Results) -> list[str]:
    parts = ["## Growth\n\nCPU µs; each should be flat, or fall.\n"] if growth else []
    for varied, lines in curves(growth).items():
        counts = list(next(iter(lines.values())))
        rows = [[name, *(line[n].shown() for n in counts)] for name, line in lines.items()]
        title = _VARIED.get(varied, "streams of 20 events/s each")
        parts += [f"### {title}\n", table(["", *(f"{n:,}" for n in counts)], rows)]
    return parts
