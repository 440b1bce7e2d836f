"""The gateway's CPU time relative to bare aiohttp's in the same run, and the memory of idle
streams, so that no change makes either expensive unnoticed. CPU time instead of wall time: other
work on the machine does not count.

The CPU test takes six seconds: three loads on two servers, for half a second each after its streams
have begun; with less, single figures would vary more than a real regression. The memory test takes
seven: its streams are opened one after another and have to become idle. Each takes twice that if
the first try is over a limit.
"""

from collections.abc import Iterator
from pathlib import Path

import machine
import pytest
import standing
import targets
from measure import Load, Rig, Sample, figure, long_streams, ratio, whole_requests
from targets import GatewayFiles, Server, Target

# Relative to bare aiohttp's cost. Passing an event costs about 0.6 of it, a request about 1.4.
EVENT_LIMIT = 1.1
REQUEST_LIMIT = 2.0
OPEN_STREAMS = 450  # each takes two of the 1,024 files that a process may have open at least
# Each takes 19 to 22: Python takes memory from the system in steps of 1 MiB, 2.3 KiB of each.
OPEN_STREAM_LIMIT_KIB = 24
TRIES = 2  # noise only ever adds, so the cheaper of two tries is more accurate

STREAMS = long_streams(100, window_s=0.5, spread_s=0.2)
REQUESTS = whole_requests(16, 0.5)
CASES = {
    "event of Dify": ("dify", STREAMS, EVENT_LIMIT),
    "event of OpenAI": ("openai", STREAMS, EVENT_LIMIT),
    "whole request to OpenAI": ("openai", REQUESTS, REQUEST_LIMIT),
}
pytestmark = pytest.mark.skipif(
    machine.compiler() is None or not Path("/proc/self/stat").exists(),
    reason="the rig needs Linux and a C compiler",
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    machine.build(tmp_path)
    upstream = targets.upstream(tmp_path)
    yield Rig(tmp_path, upstream, machine.Turns(None))
    upstream.process.stop()


@pytest.fixture
def bare(rig: Rig) -> Iterator[Server]:
    server = targets.bare_aiohttp(rig.folder, rig.upstream.port)
    yield server
    server.process.stop()


@pytest.fixture
def gateway(rig: Rig) -> Iterator[Server]:
    server = GatewayFiles(rig.folder / "gateway", rig.upstream.port).write().start()
    yield server
    server.process.stop()


def test_the_gateways_cost_relative_to_aiohttp_has_a_limit(rig, bare, gateway):
    over = dict(CASES)
    told: list[str] = []
    for _ in range(TRIES):
        for name, (platform, load, limit) in list(over.items()):
            theirs = measured(rig, targets.passed("bare aiohttp", platform), bare, load)
            ours = measured(rig, targets.gateway(platform), gateway, load)
            times = ours.cpu_us / theirs.cpu_us
            told.append(
                f"{name}: {ours.cpu_us:.0f} us, bare aiohttp {theirs.cpu_us:.0f} us:"
                f" {times:.2f}, limit {limit}"
            )
            if times <= limit:
                del over[name]
    print("\n".join(told))
    assert not over, "\n".join(told)


def test_a_stream_that_waits_takes_no_more_memory_than_its_limit(rig):
    each_kib: list[float] = []
    while len(each_kib) < TRIES and not any(kib < OPEN_STREAM_LIMIT_KIB for kib in each_kib):
        held = standing.hold(rig, OPEN_STREAMS, len(each_kib), livez_calls=3)
        assert held["failed"] == 0
        each_kib.append(held["kib_per_stream"])
    assert 1 < min(each_kib) < OPEN_STREAM_LIMIT_KIB, each_kib


def measured(rig: Rig, target: Target, server: Server, load: Load) -> Sample:
    sample = rig.measure(target, [server], load)
    assert sample.count > 100, sample
    assert sample.is_clean, f"{target.name} has lost, reordered or failed some: {sample}"
    return sample


def test_a_ratio_is_taken_within_each_round():
    slow_machine, fast_machine = 30.0, 10.0
    times = ratio([2 * slow_machine, 2 * fast_machine], [slow_machine, fast_machine])
    assert (times.low, times.median, times.high) == (2, 2, 2)


def test_a_figure_shows_its_spread():
    assert figure([3.0, 1.0, 2.0]).shown() == "2.0 (1.0–3.0)"
