"""Whether an event or a request costs more when there is more of everything.

Streams, agents, keys in the database and replicas that share one Redis are varied one by one.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import targets
from machine import Process, free_port
from measure import Load, Rig, Rounds, Sample, interleaved, long_streams, whole_requests
from targets import GatewayFiles, Server, Target

STREAMS = (50, 100, 200, 500, 1000)
AGENTS = (1, 10, 100, 1000)
KEYS = (1, 1_000, 10_000, 100_000)
REPLICAS = (1, 2, 4)
_CONNECTIONS = 200
_ASKING = 32  # connections that ask one replica for whole answers
_SLOWER_MS = 50  # 1,000 streams of 20 events/s are the most for one core


class Growth:
    def __init__(self, rig: Rig, rounds: int, is_quick: bool) -> None:
        self._rig, self._rounds, self._is_quick = rig, rounds, is_quick
        self._window_s = 1.0 if is_quick else 2.0

    def _levels(self, levels: tuple[int, ...]) -> tuple[int, ...]:
        return (levels[0], levels[-1]) if self._is_quick else levels

    def streams(self, servers: dict[str, Server]) -> dict[str, dict[int, Rounds]]:
        """For the gateway and, to compare the shape, for nginx."""
        compared = {"gateway": targets.gateway("dify"), "nginx": targets.passed("nginx", "dify")}
        cases = {}
        for count in self._levels(STREAMS):
            load = long_streams(count, self._window_s, pause_ms=_SLOWER_MS)
            for name, target in compared.items():
                if name in servers:
                    cases[f"{name} {count}"] = self._case(target, [servers[name]], load)
        return _by_name_and_count(interleaved(self._rounds, cases))

    def agents(self) -> dict[int, Rounds]:
        """Traffic goes to all agents; if there are more agents than connections, to the
        first ones."""
        target = Target("agents", "gateway", "openai", agent="agent{n}")
        with contextlib.ExitStack() as stack:
            running = {
                count: [self._start(stack, self._files(f"agents-{count}", agents=count))]
                for count in self._levels(AGENTS)
            }
            return self._events_and_requests(
                {count: (servers, target, count) for count, servers in running.items()}
            )

    def keys(self) -> dict[int, Rounds]:
        """Each connection has its own key, as far as there are enough."""
        streamed = replace(targets.gateway("dify"), key=targets.NUMBERED_KEY)
        with contextlib.ExitStack() as stack:
            running = {}
            for count in self._levels(KEYS):
                files = self._files(f"keys-{count}")
                self._rig.turns.take()
                files.add_keys(count)
                running[count] = [self._start(stack, files)]
            return self._events_and_requests(
                {count: (servers, streamed, count) for count, servers in running.items()}
            )

    def replicas(self) -> dict[int, Rounds]:
        """A fixed number of streams, spread over more and more replicas on the same core. The same
        number of nginx processes, which share nothing, show the cost of switching between
        processes."""
        with contextlib.ExitStack() as stack:
            redis = stack.enter_context(_redis(self._rig.folder))
            most = max(REPLICAS)
            running = [
                self._start(stack, self._files(f"replica-{n}", redis=redis)) for n in range(most)
            ]
            target, levels = targets.gateway("dify"), self._levels(REPLICAS)
            cases = self._cases({count: (running[:count], target, 1) for count in levels})
            if targets.has_nginx():
                others = [self._start_nginx(stack, n) for n in range(most)]
                passed, load = targets.passed("nginx", "dify"), self._all_streams
                for count in levels:
                    cases[f"event, nginx {count}"] = self._case(passed, others[:count], load)
            return _by_count(interleaved(self._rounds, cases))

    @property
    def _all_streams(self) -> Load:
        return long_streams(_CONNECTIONS, self._window_s)

    def _files(self, name: str, **settings: Any) -> GatewayFiles:
        return GatewayFiles(self._rig.folder / name, self._rig.upstream.port, **settings).write()

    def _start(self, stack: contextlib.ExitStack, files: GatewayFiles) -> Server:
        self._rig.turns.take()
        server = files.start()
        stack.callback(server.process.stop)
        return server

    def _start_nginx(self, stack: contextlib.ExitStack, number: int) -> Server:
        folder = self._rig.folder / f"nginx-{number}"
        folder.mkdir()
        server = targets.nginx(folder, self._rig.upstream.port)
        stack.callback(server.process.stop)
        return server

    def _events_and_requests(
        self, levels: dict[int, tuple[list[Server], Target, int]]
    ) -> dict[int, Rounds]:
        return _by_count(interleaved(self._rounds, self._cases(levels)))

    def _cases(
        self, levels: dict[int, tuple[list[Server], Target, int]]
    ) -> dict[str, Callable[[], Sample]]:
        cases = {}
        for count, (servers, target, vary) in levels.items():
            events = self._all_streams
            # With fewer connections each, a replica would process smaller batches, which costs
            # more.
            requests = whole_requests(_ASKING * len(servers), self._window_s)
            whole = target if target.agent.startswith("agent") else replace(target, agent="openai")
            for name, aim, load in (("event", target, events), ("request", whole, requests)):
                varied = replace(load, vary=min(vary, load.connections))
                cases[f"{name} {count}"] = self._case(aim, servers, varied)
        return cases

    def _case(self, target: Target, servers: list[Server], load: Load) -> Callable[[], Sample]:
        return lambda: self._rig.measure(target, servers, load)


def _by_name_and_count(rounds: Rounds) -> dict[str, dict[int, Rounds]]:
    out: dict[str, dict[int, Rounds]] = {}
    for case, samples in rounds.items():
        name, _, count = case.rpartition(" ")
        out.setdefault(name, {})[int(count)] = {"event": samples}
    return out


def _by_count(rounds: Rounds) -> dict[int, Rounds]:
    out: dict[int, Rounds] = {}
    for case, samples in rounds.items():
        name, _, count = case.rpartition(" ")
        out[int(count)] = {**out.get(int(count), {}), name: samples}
    return out


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """The URL of a Redis of its own; the tests' helper finds a server."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from servers import redis_server

    port = free_port()
    command = [redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = Process([*command, "--dir", str(folder)], folder / "redis.log", is_measured=False)
    try:
        process.wait_for(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.stop()
