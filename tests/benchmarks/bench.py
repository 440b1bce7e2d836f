"""The gateway's cost, compared with bare aiohttp, nginx and LiteLLM on the same machine.

    make bench              everything, about a quarter of an hour
    make bench QUICK=1      fewer and shorter rounds, about three minutes

Writes results.json, results.md and plot.svg next to this file; docs/performance.md explains them.
Linux and a C compiler are needed; nginx and LiteLLM are left out where they are not installed.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import plot
import report
import standing
import targets
from growth import Growth
from measure import Load, Rig, Rounds, interleaved, long_streams, short_streams, whole_requests
from targets import GatewayFiles, Server, Target

HERE = Path(__file__).parent
SECTIONS = ("start", "idle", "events", "requests", "growth")


class Bench:
    """The compared servers, and a method for each section of the results."""

    def __init__(self, rig: Rig, stack: contextlib.ExitStack, args: argparse.Namespace) -> None:
        self._rig, self._stack = rig, stack
        self._is_quick = args.quick
        self._rounds = args.rounds or (2 if args.quick else 5)
        # for sections that compare many things
        self._few = 1 if args.quick else min(self._rounds, 3)
        self._servers: dict[str, Server] = {"nothing": rig.upstream}

    def section(self, name: str) -> Any:
        print(f"{name}:", flush=True)
        return getattr(self, f"_{name}")()

    def _start(self) -> dict[str, Any]:
        return standing.start(self._rig, 3 if self._is_quick else 5)

    def _idle(self) -> dict[str, Any]:
        return standing.idle(self._rig, self._few, 2_000 if self._is_quick else 10_000)

    def _events(self) -> dict[str, Rounds]:
        """By the load's name, then by the target's."""
        window_s = 1.0 if self._is_quick else 2.0
        compared = self._with_nginx(targets.passed("bare aiohttp", "dify"))
        compared += [targets.passed("bare aiohttp", "openai")]
        compared += [targets.gateway(platform) for platform in targets.PATHS]
        floor = [targets.passed("nothing", "dify")]
        fewer = [t for t in compared if t.server == "gateway" or t.name == "nginx, dify"]
        out = {
            "long 200": self._compare(self._rounds, floor + compared, long_streams(200, window_s)),
            "short 200": self._compare(
                self._few, compared, short_streams(200, 2.5 if self._is_quick else 4)
            ),
        }
        for count in (100, 500):
            load = long_streams(count, window_s)
            out[f"long {count}"] = self._compare(self._few, floor + fewer, load)
        if self._has_litellm():
            load = long_streams(20, 2 * window_s)
            out["long 20"] = self._compare(self._few, self._beside_litellm(), load)
        return out

    def _requests(self) -> dict[str, Rounds]:
        compared = [targets.passed("bare aiohttp", "openai")]
        if targets.has_nginx():
            compared.append(targets.passed("nginx", "openai"))
        compared += [targets.gateway(platform) for platform in targets.PATHS]
        load = whole_requests(32, 1 if self._is_quick else 2)
        out = {"32": self._compare(self._rounds, compared, load)}
        if self._has_litellm():
            load = whole_requests(8, 4)
            out["8"] = self._compare(self._few, self._beside_litellm(), load)
        return out

    def _growth(self) -> dict[str, Any]:
        growth = Growth(self._rig, self._few, self._is_quick)
        names = [name for name in ("gateway", "nginx") if name != "nginx" or targets.has_nginx()]
        return {
            "streams": growth.streams({name: self._server(name) for name in names}),
            "agents": growth.agents(),
            "keys": growth.keys(),
            "replicas": growth.replicas(),
        }

    def _with_nginx(self, target: Target) -> list[Target]:
        """`target`, and nginx for the bytes of each platform, if it is installed."""
        found = targets.PATHS if targets.has_nginx() else ()
        return [*(targets.passed("nginx", platform) for platform in found), target]

    def _has_litellm(self) -> bool:
        return targets.litellm_program() is not None and not self._is_quick

    def _beside_litellm(self) -> list[Target]:
        return [targets.LITELLM, targets.gateway("openai")]

    def _compare(self, rounds: int, compared: Sequence[Target], load: Load) -> Rounds:
        def case(target: Target):
            servers = [self._server(target.server)]
            return lambda: self._rig.measure(target, servers, load)

        return interleaved(rounds, {target.name: case(target) for target in compared})

    def _server(self, name: str) -> Server:
        """The server, started and warmed up at its first use."""
        if name not in self._servers:
            folder, port = self._rig.folder, self._rig.upstream.port
            starts = {
                "gateway": lambda: GatewayFiles(folder / "gateway", port).write().start(),
                "bare aiohttp": lambda: targets.bare_aiohttp(folder, port),
                "nginx": lambda: targets.nginx(folder, port),
                "LiteLLM": lambda: targets.litellm(folder, port),
            }
            self._rig.turns.take()
            server = starts[name]()
            self._stack.callback(server.process.stop)
            self._servers[name] = server
            self._warm_up(name, server)
        return self._servers[name]

    def _warm_up(self, name: str, server: Server) -> None:
        agents = ("bench",) if name == "LiteLLM" else targets.PATHS if name == "gateway" else ("",)
        for agent in agents:
            target = Target(name, name, "openai", agent=agent)
            for load in (whole_requests(4, 0.3), long_streams(4, 0.3, 0)):
                self._rig.measure(target, [server], load)


def about_machine() -> dict[str, Any]:
    model = "unknown"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), model)
    return {
        "cores": os.cpu_count(),
        "cpu": model,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "pinned": machine.cores_at_start is not None,
        "day": time.strftime("%Y-%m-%d"),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    words = f"comma-separated, of {', '.join(SECTIONS)}; the rest stays as in results.json"
    parser.add_argument("--only", default=",".join(SECTIONS), metavar="SECTIONS", help=words)
    parser.add_argument("--rounds", type=int, help="of each measurement that is compared")
    words = "where to write; beside this file unless given"
    parser.add_argument("--out", type=Path, default=HERE, metavar="FOLDER", help=words)
    words = "a file to lock during each measurement, shared with others who measure here"
    parser.add_argument("--lock", type=Path, metavar="FILE", help=words)
    words = "only write the table and the plot of results.json anew"
    parser.add_argument("--render", action="store_true", help=words)
    return parser.parse_args()


def run(args: argparse.Namespace, results: dict[str, Any]) -> None:
    if machine.compiler() is None or not Path("/proc/self/stat").exists():
        raise SystemExit("The bench needs Linux and a C compiler (gcc, or cc).")
    # As Ctrl-C does, so that no server keeps running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped by SIGTERM."))
    machine.pin(os.getpid(), is_measured=False)
    wanted = [name for name in SECTIONS if name in args.only.split(",")]
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        machine.build(folder)
        upstream = targets.upstream(folder)
        stack.callback(upstream.process.stop)
        turns = machine.Turns(args.lock)
        stack.callback(turns.give_up)
        bench = Bench(Rig(folder, upstream, turns), stack, args)
        for name in wanted:
            results[name] = bench.section(name)
    took_min = (time.monotonic() - began - turns.waited_s) / 60
    print(f"measured in {took_min:.1f} min, and waited {turns.waited_s / 60:.1f} min for others")
    results["machine"] = about_machine() | {"quick": args.quick}


def in_lines(results: dict[str, Any]) -> str:
    """JSON with a line for each section."""
    parts = (f"{json.dumps(k)}: {json.dumps(v, default=asdict)}" for k, v in results.items())
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "results.json"
    results = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    if not args.render:
        run(args, results)
        text = in_lines(results)
        results = json.loads(text)  # as it is read from the file
        kept.write_text(text, "utf-8")
    (args.out / "results.md").write_text(report.markdown(results), "utf-8")
    print(report.targets_table(results))
    if "long 200" in results.get("events", {}):
        (args.out / "cost.svg").write_text(plot.small(results), "utf-8")
    if plot.draw(results, args.out / "plot.svg"):
        print(f"Wrote results.json, results.md and plot.svg to {args.out}")
    else:
        print("There is no plot: matplotlib is not installed (make bench installs it).")


if __name__ == "__main__":
    main()
