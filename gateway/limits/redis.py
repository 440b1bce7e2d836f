"""Buckets in Redis: the script and its commands."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.config.models import Redis
from gateway.limits.charges import LEASE_S, Argv, Charge, QuotaCharge, SlotCharge, TokenCharge
from gateway.limits.rules import Decision

SCRIPT = (Path(__file__).parent / "take_token.lua").read_text("utf-8")
_MAX_CONNECTIONS = 64
_LISTEN_S = 30.0
_BATCH = 200  # commands in one round trip


class RedisBuckets:
    """Runs the script and the commands for slots. Errors are redis-py's."""

    def __init__(self, settings: Redis) -> None:
        self._client, self._sentinels = _client(settings)
        self._prefix = settings.prefix
        self._sha = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
        self._is_cluster = settings.mode == "cluster"
        self._room = asyncio.Semaphore(_MAX_CONNECTIONS - 8)  # the client refuses more connections
        self._queue: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def charge(self, charges: list[Charge]) -> list[Decision]:
        out = await self._run("check", [(charge.key, charge.argv()) for charge in charges])
        return [
            Decision(bool(out[i]), int(out[i + 1]), int(out[i + 2]), int(out[i + 3]))
            for i in range(0, len(out), 4)
        ]

    async def spend(self, charge: TokenCharge, tokens: int) -> None:
        await self._run("spend", [(charge.key, charge.argv(tokens))])

    async def uncount(self, charge: QuotaCharge) -> None:
        """Return one call to a quota."""
        await self._run("spend", [(charge.key, charge.argv_to_return())])

    async def release(self, slots: list[SlotCharge]) -> None:
        await asyncio.gather(
            *(self._command("ZREM", self._key(slot.key), slot.holder) for slot in slots)
        )

    async def hold(self, slots: list[SlotCharge]) -> None:
        """Renew the lease of these slots, including those that Redis has lost."""
        seconds, _ = await self._command("TIME")
        until = (int(seconds) + LEASE_S) * 1000
        for slot in slots:
            key = self._key(slot.key)
            await asyncio.gather(
                self._command("ZADD", key, until, slot.holder),
                self._command("PEXPIRE", key, int(slot.lease_ms)),
            )

    async def evaluate(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The result of another script, whose keys are all in one slot of a cluster."""
        from redis.exceptions import NoScriptError

        names = [self._key(key) for key in keys]
        sha = sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return await self._command("EVALSHA", sha, len(names), *names, *args)
        except NoScriptError:
            return await self._command("EVAL", script, len(names), *names, *args)

    async def publish(self, channel: str, message: bytes) -> None:
        """Send a message to all replicas that listen, this one included."""
        await self._command("PUBLISH", self._key(channel), message)

    async def listen(self, channel: str) -> AsyncIterator[bytes]:
        """The messages from now on. Raises when the connection breaks."""
        pubsub = self._client.pubsub(ignore_subscribe_messages=True)
        try:
            await pubsub.subscribe(self._key(channel))
            while True:
                message = await pubsub.get_message(timeout=_LISTEN_S)
                if message is not None:
                    yield message["data"]
        finally:
            await pubsub.aclose()

    async def ping(self) -> None:
        await self._client.ping()

    async def close(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})
        for client in (self._client, *self._sentinels):
            with contextlib.suppress(Exception):
                await client.aclose()

    async def _run(self, mode: str, charges: list[tuple[str, Argv]]) -> list[Any]:
        """The script's answer: EVALSHA, or EVAL if Redis does not have the script (or a proxy
        cannot keep one)."""
        from redis.exceptions import NoScriptError

        args: list[Any] = [len(charges)]
        args += [self._key(key) for key, _ in charges]
        args.append(mode)
        for _, argv in charges:
            args += argv
        try:
            return list(await self._command("EVALSHA", self._sha, *args))
        except NoScriptError:
            return list(await self._command("EVAL", SCRIPT, *args))

    async def _command(self, *command: Any) -> Any:
        """Commands issued at the same time share one round trip over one connection."""
        if self._is_cluster:  # two callers' keys may be on two servers
            async with self._room:
                return await self._client.execute_command(*command)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((command, future))
        if self._sending is None:
            self._sending = asyncio.ensure_future(self._send())
        return await future

    async def _send(self) -> None:
        try:
            while self._queue:
                batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
                try:
                    await self._send_batch(batch)
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
        finally:
            self._sending = None

    async def _send_batch(self, batch: list[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        async with self._client.pipeline(transaction=False) as pipe:
            for command, _ in batch:
                pipe.execute_command(*command)
            answers = await pipe.execute(raise_on_error=False)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _key(self, key: str) -> str:
        return f"{self._prefix}:{key}"


def _client(settings: Redis) -> tuple[Any, list[Any]]:
    """redis-py's client for one server, for a cluster, or for a sentinel's master; and the
    sentinels' clients."""
    from redis import asyncio as aioredis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    url = settings.url.reveal()
    options: dict[str, Any] = {
        "max_connections": _MAX_CONNECTIONS,
        "socket_connect_timeout": 1.0,
        "socket_timeout": 1.0,
        "retry": Retry(NoBackoff(), 1),  # for a connection that broke while it was idle
    }
    if settings.mode == "cluster":
        return aioredis.RedisCluster.from_url(url, **options), []
    if settings.mode == "sentinel":
        parts = urlsplit(url)
        hosts = [_host(address) for address in parts.netloc.rpartition("@")[2].split(",")]
        login = urlsplit(f"//{parts.netloc.rpartition('@')[0]}@host")
        secret = settings.sentinel_password.reveal() or None
        sentinel = aioredis.Sentinel(  # type: ignore[no-untyped-call]
            hosts, sentinel_kwargs={"password": secret, "socket_connect_timeout": 1.0}
        )
        client = sentinel.master_for(
            settings.master,
            username=login.username or None,
            password=login.password or None,
            db=int(parts.path.strip("/") or 0),
            ssl=parts.scheme == "rediss",
            **options,
        )
        return client, sentinel.sentinels
    return aioredis.from_url(url, **options), []


def _host(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "26379")
    return host.strip("[]"), int(port)
