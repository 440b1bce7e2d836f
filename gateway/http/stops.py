"""Stops answers that are under way, by their conversation: here, and at the other replicas.

With Redis all replicas listen on one channel: a stop is a message with a number, and whoever runs
the answer replies with that number. Without Redis a process knows its own answers only.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any, Literal, Protocol

import orjson
from aiohttp import web

from gateway.chat.run import Run
from gateway.conversations.register import Owner
from gateway.http.context import CONTEXT
from gateway.http.inflight import InFlight
from gateway.ids import new_id

log = logging.getLogger("gateway")

CHANNEL = "stops"
_REPLY_S = 0.5
_AGAIN_S = 1.0
_MOST_WAITING = 1000

Result = Literal["asked", "not_offered"]  # whether the platform is asked to stop, too


class Bus(Protocol):
    """Messages to all replicas, this one included. Every method may raise."""

    async def publish(self, channel: str, message: bytes) -> None: ...

    def listen(self, channel: str) -> AsyncIterator[bytes]: ...


class Stops:
    """`bus` None: there are no other replicas that could be asked."""

    def __init__(self, in_flight: InFlight, bus: Bus | None) -> None:
        self._in_flight = in_flight
        self._bus = bus
        self._replies: dict[str, asyncio.Future[Result]] = {}
        self._listening: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._bus is not None:
            self._listening = asyncio.ensure_future(self._listen(self._bus))

    async def stop(
        self, owner: Owner, conversation: str, agents: Collection[str] | None = None
    ) -> Result | None:
        """Stop the owner's answers in that conversation, whose id may have the agent's name in
        front; None if none is under way. `agents` are the agents and routes whose answers may be
        stopped; None is all."""
        result = self._stop_here(owner, conversation, agents)
        if result is None and self._bus is not None and len(self._replies) < _MOST_WAITING:
            names = None if agents is None else list(agents)
            wish = ["stop", new_id(16), *owner, conversation, names]
            result = await self._stop_elsewhere(self._bus, wish)
        return result

    def _stop_here(
        self, owner: Owner, conversation: str, agents: Collection[str] | None
    ) -> Result | None:
        result: Result | None = None
        for task, request, run in list(self._running(owner, conversation, agents)):
            context = request[CONTEXT]
            if not context.stopped_by_user:
                attempt, decoder = run.attempt, run.attempt.decoder
                is_asked = decoder is not None and attempt.target.platform.stop(run.chat, decoder)
                context.stopped_by_user = "asked" if is_asked else "not_offered"
                task.cancel()
            result = "asked" if result == "asked" else context.stopped_by_user
        return result

    def _running(
        self, owner: Owner, conversation: str, agents: Collection[str] | None
    ) -> Iterator[tuple[asyncio.Task[object], web.Request, Run]]:
        """Answers to stop. One whose end is being sent is left alone: it would break off."""
        for task, request in self._in_flight.running():
            context = request.get(CONTEXT)
            run = context.run if context is not None else None
            if run is None or run.draft is None or run.draft.owner != owner:
                continue
            if run.draft.is_over and not context.stopped_by_user:
                continue
            id_, name = run.conversation_id, run.attempt.target.name
            may_stop = agents is None or name in agents or context.call.model in agents
            if id_ and may_stop and conversation in (id_, f"{name}:{id_}"):
                yield task, request, run

    async def _stop_elsewhere(self, bus: Bus, wish: list[Any]) -> Result | None:
        number = wish[1]
        reply: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        try:
            async with asyncio.timeout(_REPLY_S):
                await bus.publish(CHANNEL, orjson.dumps(wish))
                return await reply
        except TimeoutError:
            return None
        except Exception as error:
            log.warning("Other replicas cannot be asked to stop an answer: %s", error)
            return None
        finally:
            del self._replies[number]

    async def _listen(self, bus: Bus) -> None:
        while True:
            try:
                async for message in bus.listen(CHANNEL):
                    with contextlib.suppress(ValueError, TypeError):
                        await self._receive(bus, *orjson.loads(message))
            except Exception as error:
                log.debug("The channel for stops is closed: %s", error)
            await asyncio.sleep(_AGAIN_S)

    async def _receive(self, bus: Bus, kind: str, number: str, *rest: Any) -> None:
        if kind == "stopped":
            reply = self._replies.get(number)
            if reply is not None and not reply.done():
                reply.set_result("asked" if rest == ("asked",) else "not_offered")
        elif kind == "stop" and number not in self._replies:
            caller, user, conversation, agents = rest
            if result := self._stop_here(Owner(caller, user), conversation, agents):
                await bus.publish(CHANNEL, orjson.dumps(["stopped", number, result]))

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening})


STOPS: web.AppKey[Stops] = web.AppKey("stops", Stops)
