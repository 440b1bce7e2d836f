"""The life of the process: listen, reload, and stop without cutting off answers.

On a stop `/readyz` answers 503, the listening sockets close, answers in flight go on for up to
`drain_timeout`, the rest end with an error, the calls are written, and the exit status is 0.
"""

import asyncio
import contextlib
import errno
import gc
import hashlib
import logging
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from aiohttp import web

from gateway.app import build, build_ops
from gateway.config.access import access_note
from gateway.config.check import warnings
from gateway.config.load import ConfigError, home, sources
from gateway.config.models import Config, Server
from gateway.config.outgoing import pem_files
from gateway.errors import StartError
from gateway.http.context import IN_FLIGHT, RELOAD, STATE, State
from gateway.reload import differences
from gateway.server.greeting import greet, look_around
from gateway.server.runner import Runner, bind, listen
from gateway.system import can_share_ports, on_signal, raise_file_limit
from gateway.telemetry.accesslog import AccessLog

log = logging.getLogger("gateway")

_BACKLOG = 4096  # connections that may wait to be accepted
_LOOK_MS = 2000  # how often the files are polled where the system reports no changes
_SETTLE_MS = 200  # an editor's changes within this time count as one
_SWAP_S = 1.0  # how long a file may be missing while it is replaced
_RETRY_S = 5.0
_LARGEST_FILE = 16 << 20  # bytes of a file that are hashed
_GOODBYE_S = 1.0  # for idle connections once all answers have ended

Load = Callable[[], Config]


async def serve(config: Config, path: Path, load: Load, lines: AccessLog) -> int:
    """Run until a signal stops the process; returns the exit status. `load` reads `path` again."""
    look_around(config, home(path))
    server, stop = config.server, asyncio.Event()
    raise_file_limit()
    if server.reuse_port and not can_share_ports():
        raise StartError("server.reuse_port: this system cannot share a port; leave it out")
    tls = _tls(server)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(lines.flush)
        # Before anything is created, such as the database with the password of `admin`.
        address = await _bind(stack, server.host, server.port, reuse_port=server.reuse_port)
        ops = None
        if server.ops_port is not None:
            ops = await _bind(stack, server.ops_host or server.host, server.ops_port)
        app = build(config, lines)
        reloads = _Reloads(app, config, load, path, tls)
        _on_signals(stop, reloads)
        if ops is not None:
            # Close it last: it answers probes until everything else has stopped.
            await _listen(stack, Runner(build_ops(app), 1000, patience_s=_GOODBYE_S), ops)
        main = Runner(app, server.max_connections, server.send_timeout, patience_s=_GOODBYE_S)
        await _listen(stack, main, address, tls)
        greet(config, path, main.addresses[0][1], for_people=lines.for_people)
        gc.freeze()  # exclude the loaded modules from garbage collection
        watching = asyncio.ensure_future(reloads.watch())
        try:
            await stop.wait()
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        await _drain(app, main, app[STATE].now.config.server.drain_timeout)
    log.info("Stopped")
    return 0


async def _bind(
    stack: contextlib.AsyncExitStack, host: str, port: int, *, reuse_port: bool = False
) -> asyncio.Server:
    """Take the address. Raises StartError if that is impossible."""
    with _explained(host, port):
        bound = await bind(host, port, reuse_port=reuse_port)
    stack.callback(bound.close)
    return bound


async def _listen(
    stack: contextlib.AsyncExitStack,
    runner: Runner,
    bound: asyncio.Server,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Start the application, then serve it. Raises StartError."""
    host, port = bound.sockets[0].getsockname()[:2]
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    with _explained(host, port):
        await listen(runner, bound, _BACKLOG, tls)


@contextlib.contextmanager
def _explained(host: str, port: int) -> Iterator[None]:
    """Turn an OSError into a StartError that says what to change."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = next((hint for number, hint in _HINTS.items() if error.errno == number), "")
        raise StartError(f"cannot listen on {host}:{port}: {reason}{hint}") from None


_HINTS = {
    errno.EADDRINUSE: "; choose another port with --port or PORT",
    errno.EACCES: "; choose a port from 1024 on with --port or PORT",
    errno.EADDRNOTAVAIL: "; this machine has no such address: set HOST (server.host) to one of its"
    " own, to 127.0.0.1 for this machine alone or to 0.0.0.0 for all networks",
}


async def _drain(app: web.Application, runner: Runner, patience_s: float) -> None:
    in_flight = app[IN_FLIGHT]
    in_flight.stopping = True
    log.info(
        "Stopping; %d requests under way have %g s to finish (ask again to stop at once)",
        len(in_flight),
        patience_s,
    )
    for site in list(runner.sites):
        await site.stop()
    if cancelled := await in_flight.drain(patience_s):
        log.warning("%d requests did not finish in time and were cancelled", cancelled)


# Signals.


def _on_signals(stop: asyncio.Event, reloads: "_Reloads") -> None:
    """The first SIGTERM or SIGINT drains, the second exits immediately; SIGHUP reloads."""

    def received() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):  # the last one is Ctrl+Break of Windows
        on_signal(name, received)
    on_signal("SIGHUP", reloads.ask)


class _Reloads:
    """Reads the configuration again when its files change, and on SIGHUP."""

    def __init__(
        self,
        app: web.Application,
        config: Config,
        load: Load,
        path: Path,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._app = app
        self._load = load
        self._path = path
        self._tls = tls
        self._asked = asyncio.Event()
        self._server = config.server  # its certificate is served; a reload does not change it
        self._config = config
        self._seen = self._fingerprint()

    def ask(self) -> None:
        self._asked.set()

    async def watch(self) -> None:
        """Reload on request, forever. No failure here ends the process."""
        looking = asyncio.ensure_future(self._watch_files())
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                await self._reload()
        finally:
            looking.cancel()
            await asyncio.wait({looking})

    async def _watch_files(self) -> None:
        """Watch folders, not files: editors and ConfigMaps replace files."""
        from watchfiles import awatch

        while True:
            try:
                folders = {path.absolute().parent for path in self._paths()}
                changes: AsyncIterator[object] = awatch(
                    *(folder for folder in folders if folder.is_dir()),
                    watch_filter=None,
                    debounce=_SETTLE_MS,
                    rust_timeout=_LOOK_MS,
                    yield_on_timeout=True,
                    recursive=False,
                )
                async for _ in changes:
                    now = await asyncio.to_thread(self._fingerprint)
                    if any(self._seen.get(path) and not digest for path, digest in now.items()):
                        # A file is missing: in the middle of a replacement, or for good.
                        await asyncio.sleep(_SWAP_S)
                        now = await asyncio.to_thread(self._fingerprint)
                    if now != self._seen:
                        self._seen = now
                        self.ask()
            except Exception as error:
                log.warning("Changes of %s are not seen at the moment: %s", self._path, error)
            await asyncio.sleep(_RETRY_S)

    def _paths(self) -> list[Path]:
        tls = self._server.tls
        names = [tls.cert, tls.key] if tls else []
        return [*sources(self._path), *map(Path, names + pem_files(self._config))]

    def _fingerprint(self) -> dict[Path, str]:
        """A digest of each file's content; "" for a missing file."""
        return {path: _digest(path) for path in self._paths()}

    async def _reload(self) -> None:
        holder = self._app[STATE]
        before = holder.now.config
        try:
            config = await asyncio.to_thread(self._load)
            self._renew_certificate()
            fixed = await self._app[RELOAD](config)
        except ConfigError as error:
            self._reject(error.problems)
        except StartError as error:
            self._reject([str(error)])
        except Exception as error:
            log.debug("Reloading failed", exc_info=True)
            self._reject([f"unexpected {type(error).__name__}; LOG_LEVEL=DEBUG shows more"])
        else:
            self._config = config
            holder.problems = 0
            holder.reloads["ok"] += 1
            self._log_changes(before, holder.now, fixed)
            if fixed:
                log.warning("  these take effect with a restart only: %s", ", ".join(fixed))
            for warning in warnings(config, home(self._path)):
                log.warning("  %s", warning)

    def _log_changes(self, before: Config, state: State, fixed: list[str]) -> None:
        """Log the changes that took effect, and the access rule if it is different. `fixed` are
        those that did not."""
        nothing = "nothing took effect" if fixed else "nothing changed"
        changes = "; ".join(differences(before, state.config)) or nothing
        log.info(
            "%s, .env and secret files were read again; generation %d: %s",
            self._path,
            state.generation,
            changes,
        )
        note = access_note(state.config)
        if note != access_note(before):
            log.warning("  %s", note)

    def _renew_certificate(self) -> None:
        """Load the pair into a separate context first: a mismatched pair would leave the live
        context without any certificate."""
        files = self._server.tls
        if self._tls is not None and files is not None:
            _tls(self._server)
            self._tls.load_cert_chain(files.cert, files.key)

    def _reject(self, lines: list[str]) -> None:
        holder = self._app[STATE]
        holder.problems = len(lines)
        holder.reloads["failed"] += 1
        log.error("%s has problems; the configuration before it stays in effect", self._path)
        for line in lines:
            log.error("  %s", line)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_LARGEST_FILE)).hexdigest()
    except OSError:
        return ""


# The machine.


def _tls(server: Server) -> ssl.SSLContext | None:
    if server.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(server.tls.cert, server.tls.key)
    except OSError as error:
        raise StartError(
            f"server.tls: {server.tls.cert} and {server.tls.key} cannot be used: {error}"
        ) from None
    return context
