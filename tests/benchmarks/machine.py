"""The machine: the compiled rig, pinned processes, and their CPU time and memory."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

RIG = Path(__file__).parent / "rig"
_QUIET_S = 0.002  # of CPU in 50 ms: a server below this is idle
_TURN_S = 60
_HZ = os.sysconf("SC_CLK_TCK")


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def build(folder: Path) -> None:
    """Compile the upstream and the load client into `folder`."""
    for name in ("upstream", "load"):
        source, program = str(RIG / f"{name}.c"), str(folder / name)
        subprocess.run([compiler() or "cc", "-O2", "-o", program, source], check=True)


def cores() -> tuple[int, int] | None:
    """(the measured core, the other core), or None if there is one core or no choice."""
    try:
        usable = sorted(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return None
    return (usable[0], usable[-1]) if len(usable) > 1 else None


def pin(pid: int, is_measured: bool) -> None:
    if chosen := cores_at_start:
        with contextlib.suppress(OSError):  # some sandboxes refuse it; figures are noisier then
            os.sched_setaffinity(pid, {chosen[0 if is_measured else 1]})


cores_at_start = cores()  # before this process itself is pinned


def free_port() -> int:
    """A port below the ephemeral range, of which outgoing connections use thousands here."""
    for port in range(20_000 + os.getpid() % 5_000, 32_000):
        with socket.socket() as s, contextlib.suppress(OSError):
            if port not in _given:
                s.bind(("127.0.0.1", port))
                _given.add(port)
                return port
    raise RuntimeError("there is no free port")


_given: set[int] = set()


def open_files() -> int:
    """The number of files and sockets that a process may have open here."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


class Turns:
    """A lock for several measurements on this machine: each process takes its turn.

    Without a file there is no other process.
    """

    def __init__(self, lock: Path | None) -> None:
        self._file = lock.open("a") if lock else None
        self._since: float | None = None
        self.waited_s = 0.0

    def take(self) -> None:
        """Take the turn before a measurement; it is kept for some more of them."""
        if self._since is not None and time.monotonic() - self._since > _TURN_S:
            self.give_up()
            time.sleep(0.2)  # or this process would get it again immediately
        if self._file and self._since is None:
            asked = time.monotonic()
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._since = time.monotonic()
            self.waited_s += self._since - asked

    def give_up(self) -> None:
        if self._file:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._since = None


class Process:
    """A server on the measured core, with its children; or a part of the rig on the other core."""

    def __init__(
        self, command: Sequence[str], log: Path, is_measured: bool = True, cwd: Path | None = None
    ) -> None:
        self.command = list(command)
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self.command, cwd=cwd, stdout=out, stderr=out, start_new_session=True
            )
        pin(self._process.pid, is_measured)

    @property
    def pids(self) -> list[int]:
        """The process and its descendants."""
        parents = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (fields := _stat(int(entry))):
                parents[int(entry)] = int(fields[1])
        found = [self._process.pid]
        for pid in found:  # grows during the loop
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def wait_for(self, port: int, patience_s: float = 120) -> None:
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.01)
        raise RuntimeError(f"{self.command[:3]} does not listen:\n{self._log.read_text()[-2000:]}")

    def memory_kib(self, field: str = "Pss") -> int:
        """Pss divides pages that several processes share; Rss counts them in full."""
        total = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    total += int(line.split()[1]) if line.startswith(f"{field}:") else 0
        return total

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
                return


def cpu_s(pids: Sequence[int]) -> float:
    """The total user and system time of these processes."""
    return sum(_cpu_of(pid) for pid in pids)


def _cpu_of(pid: int) -> float:
    try:
        # Like clock_getcpuclockid(3): the same time as in /proc/PID/stat, but in nanoseconds, so
        # that half a second is long enough to measure.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        fields = _stat(pid)
        return (int(fields[11]) + int(fields[12])) / _HZ if fields else 0.0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, or none if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def wait_until_quiet(pids: Sequence[int], patience_s: float = 20) -> None:
    """Wait until the processes have finished the rest of the last measurement: cancelled streams,
    records."""
    end = time.monotonic() + patience_s
    before = cpu_s(pids)
    while time.monotonic() < end:
        time.sleep(0.05)
        now = cpu_s(pids)
        if now - before < _QUIET_S:
            return
        before = now


def answer_ms(url: str) -> float | None:
    """How long a successful GET takes; None if its status is not 200."""
    began = time.perf_counter()
    try:
        with urlopen(url, timeout=10) as answer:
            answer.read()
    except (URLError, OSError):
        return None
    return (time.perf_counter() - began) * 1000
