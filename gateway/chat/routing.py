"""Names to targets: which agents answer for the name that a caller puts in `Agent:` or `model`."""

import asyncio
import difflib
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from zlib import crc32

from gateway.accounts.credentials import Caller
from gateway.chat.breaker import Breaker, Permit
from gateway.config import kinds
from gateway.config.models import Agent, Config, RouteTarget
from gateway.config.outgoing import SYSTEM, Way, way_of
from gateway.errors import (
    AgentNotFound,
    CircuitOpen,
    ConversationNotFound,
    GatewayError,
    ShareTaken,
    TargetBusy,
    clean,
    shorten,
)
from gateway.filetypes import MediaKind
from gateway.language.sentences import edited, say
from gateway.limits.shares import Holders, Shares
from gateway.platforms.base import Platform
from gateway.protocol.messages import Media, Message
from gateway.protocol.redaction import masked
from gateway.protocol.seals import Seal

# Headers that identify the client or the format: an answer may well contain their values.
_PUBLIC = frozenset(
    ("accept", "accept-language", "content-type", "http-referer", "origin", "referer", "user-agent",
     "x-title")
)  # fmt: skip
MAX_NAME = 300
MAX_KNOWN = 50  # names that an error lists


@dataclass(eq=False)
class Target:
    """One agent of config.yaml with its platform adapter and its calls in flight.

    `running` counts the calls in flight; `draining` counts those whose client has disconnected.
    """

    name: str
    agent: Agent
    platform: Platform
    url: str
    way: Way
    breaker: Breaker = field(init=False)
    running: int = 0
    draining: int = 0
    learning: asyncio.Lock = field(default_factory=asyncio.Lock)
    _queue: deque[tuple[asyncio.Future[None], Holders]] = field(init=False, default_factory=deque)
    _held: Shares = field(init=False)
    _queued: Shares = field(init=False)

    def __post_init__(self) -> None:
        agent = self.agent
        self.breaker = Breaker(self.name, agent.breaker)
        self._held = Shares(agent.concurrency, agent.share)
        self._queued = Shares(agent.queue, agent.share)

    @property
    def waiting(self) -> int:
        """The number of calls in the queue."""
        return len(self._queue)

    @property
    def kinds(self) -> frozenset[MediaKind]:
        """The kinds of files that a question may have; the operator's setting wins."""
        accepted = self.agent.accepts
        return self.platform.kinds if accepted is None else frozenset(accepted)

    def acquire_now(self, holders: Holders = ()) -> Permit | None:
        """Like `acquire`, but returns None instead of waiting for a slot.

        While a slot is free, all calls in the queue belong to callers who already have their share.
        """
        if self.running >= self.agent.concurrency or not self._held.has_room(holders):
            return None
        permit = self.breaker.admit()
        self.running += 1
        self._held.take(holders)
        return permit

    async def acquire(self, patience_s: float | None = None, holders: Holders = ()) -> Permit:
        """Acquire one of the agent's slots, waiting in the queue for up to `patience_s` seconds
        (None: `timeouts.queue`). Returns the breaker's permit, to be handed back at the call's end.
        `holders` are the owners of the slot.

        Raises CircuitOpen, or TargetBusy or ShareTaken if no slot becomes free in time.
        """
        if permit := self.acquire_now(holders):
            return permit
        if self.breaker.state == "open":
            self.breaker.admit()  # raises CircuitOpen: waiting is pointless
        await self._wait(self.agent.timeouts.queue if patience_s is None else patience_s, holders)
        try:
            return self.breaker.admit()
        except CircuitOpen:
            self.release(holders)
            raise

    async def _wait(self, patience_s: float, holders: Holders) -> None:
        has_room = len(self._queue) < self.agent.queue and self._queued.has_room(holders)
        if patience_s > 0 and has_room:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append((turn, holders))
            self._queued.take(holders)
            try:
                await asyncio.wait({turn}, timeout=patience_s)
            except asyncio.CancelledError:
                if turn.done():
                    self.release(holders)  # the slot was assigned just before
                raise
            finally:
                self._queued.give_back(holders)
                if not turn.done():
                    self._queue.remove((turn, holders))
            if turn.done():
                return
        raise self._busy(holders)

    def _busy(self, holders: Holders) -> GatewayError:
        if self.running < self.agent.concurrency and not self._held.has_room(holders):
            return ShareTaken(
                say(
                    "Agent {name!r} has {most} places for one caller, and all of yours are "
                    "taken; wait for a call to end.",
                    name=self.name,
                    most=self._held.most,
                ),
                retry_after_s=1.0,
            )
        return TargetBusy(
            say(
                "Agent {name!r} has {calls} calls under way, which is its limit; try again "
                "shortly.",
                name=self.name,
                calls=self.running,
            ),
            retry_after_s=1.0,
        )

    @asynccontextmanager
    async def slot(self, holders: Holders = ()) -> AsyncIterator[None]:
        """Hold one of the agent's slots, and report the call's outcome to the breaker."""
        permit = await self.acquire(holders=holders)
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            is_theirs = isinstance(failure, GatewayError) and failure.type == "upstream_error"
            self.breaker.ended(permit, failure, has_answered=is_theirs)
            failure = None  # its traceback refers to this frame
            self.release(holders)

    def release(self, holders: Holders = ()) -> None:
        """Release the slot, or pass it to the first queued call whose caller's share has room."""
        self._held.give_back(holders)
        if not self._queue:
            self.running -= 1
            return
        for i, (turn, waiting) in enumerate(self._queue):
            if self._held.has_room(waiting):
                del self._queue[i]
                self._held.take(waiting)
                turn.set_result(None)
                return
        self.running -= 1

    @property
    def secrets(self) -> set[str]:
        """Secrets of the upstream and the proxy on the way: the key, its parts, and headers."""
        key = self.agent.api_key.reveal()
        headers = (value.reveal() for value in self.agent.headers.values())
        return {key, self.platform.token, *key.split("."), *headers, *self.way.secrets}

    @property
    def credentials(self) -> set[str]:
        """Those of `secrets` that no answer can contain by chance."""
        headers = self.agent.headers.items()
        private = {value.reveal() for name, value in headers if name.lower() not in _PUBLIC}
        bare = {value.rpartition(" ")[2] for value in private}  # without `Bearer`
        key = self.agent.api_key.reveal()
        return {key, self.platform.token, *private, *bare, *self.way.secrets}

    def redacted(self, error: GatewayError) -> GatewayError:
        """The error with the agent's name in front of its message and the agent's secrets redacted.

        Upstreams quote what they reject. The message is shortened only after the redaction: a cut
        through a secret would hide it from the search and reveal its beginning.
        """
        message, secrets = error.message, self.secrets
        if not message.startswith("Agent "):
            message = say("Agent {name!r}: {reason}", name=self.name, reason=message)
        return error.replace(
            message=edited(message, lambda text: shorten(clean(masked(text, secrets)))),
            param=error.param and masked(error.param, secrets),
        )


def pin(
    targets: list[Target], conversation: str | None, is_route: bool, seal: Seal | None
) -> tuple[list[Target], str | None]:
    """The one target that owns the conversation, and the conversation's id there.

    Without a conversation, all targets. Raises ConversationNotFound for an id that does not fit the
    caller's `seal`.
    """
    if not conversation:
        return targets, conversation
    targets, conversation = _pinned(targets, conversation, is_route)
    return targets, seal.open(targets[0].name, conversation) if seal else conversation


def _pinned(targets: list[Target], conversation: str, is_route: bool) -> tuple[list[Target], str]:
    """A route's answers contain `agent:id`, so finding the agent again needs no stored state. The
    hash of an id that the caller made up (FastGPT accepts those) always selects the same agent.
    """
    if not is_route:
        return targets, conversation
    for target in sorted(targets, key=lambda target: -len(target.name)):
        label = f"{target.name}:"
        if conversation.lower().startswith(label.lower()) and conversation != label:
            return [target], conversation[len(label) :]
    by_name = sorted(targets, key=lambda target: target.name)
    return [by_name[crc32(conversation.encode()) % len(by_name)]], conversation


def pin_results(
    targets: list[Target], messages: tuple[Message, ...], seal: Seal
) -> tuple[list[Target], tuple[Message, ...]]:
    """The targets that may receive the tool results at the end of `messages`, and the messages with
    the platform's own ids.

    Only its own user may continue a run that waits at a platform. The target is the one that issued
    the ids; otherwise all targets that keep no runs. Raises ConversationNotFound if there is none.
    """
    first = len(messages)
    while first and messages[first - 1].role == "tool":
        first -= 1
    results = messages[first:]
    keepers = [target for target in targets if target.platform.keeps_runs]
    if not results or not keepers:
        return targets, messages
    for target in keepers:
        if all(seal.fits(target.name, result.tool_call_id) for result in results):
            opened = tuple(
                replace(result, tool_call_id=seal.open(target.name, result.tool_call_id))
                for result in results
            )
            return [target], messages[:first] + opened
    others = [target for target in targets if not target.platform.keeps_runs]
    if not others:
        raise ConversationNotFound(
            "These tool results belong to no call that this user was given.",
            param="messages",
        )
    return others, messages


def pin_files(
    targets: list[Target], messages: tuple[Message, ...], seal: Seal
) -> tuple[list[Target], tuple[Message, ...]]:
    """The one target whose platform stores the files that `messages` name, and the messages with
    the platform's own ids. Without such files, all targets. Raises FileNotFound if the files belong
    to another user, or to several agents."""
    ids = [media.uploaded for turn in messages for media in turn.media if media.uploaded]
    if not ids:
        return targets, messages
    for target in targets[:-1]:
        if all(seal.fits_file(target.name, id_) for id_ in ids):
            break
    else:
        target = targets[-1]

    def opened(media: Media) -> Media:
        if not media.uploaded:
            return media
        return replace(media, uploaded=seal.open_file(target.name, media.uploaded))

    return [target], tuple(
        replace(turn, media=tuple(map(opened, turn.media))) if turn.media else turn
        for turn in messages
    )


class Routing:
    """The routing table, built completely from one configuration and then immutable."""

    def __init__(
        self,
        config: Config,
        demo_urls: Mapping[str, str],
        choose: random.Random | None = None,
        before: "Routing | None" = None,
    ) -> None:
        """`demo_urls` are the addresses of the simulators, by agent name. An agent unchanged since
        `before` keeps its target, with the calls in flight and the learned state."""
        self._choose = choose or random.Random()  # noqa: S311 - shares load, guards nothing
        self.targets: dict[str, Target] = {}
        for name, agent in config.agents.items():
            url = demo_urls[name] if agent.is_demo else agent.base_url
            way = way_of(agent, url, config.outgoing)
            target = before.targets.get(name) if before else None
            if target is None or target.agent != agent or target.url != url:
                kind = kinds.find(agent.platform)
                assert kind is not None  # `load` has checked it
                platform = kind.adapter(name, agent, url)
                target = Target(name, agent, platform, url, way)
            elif way.proxy != target.way.proxy or way.trust is not SYSTEM:
                target.way = way  # for later calls; the contents of PEM files may have changed
            self.targets[name] = target
        self.routes = config.routes
        self._by_name = {name.lower(): name for name in (*self.routes, *self.targets)}
        # The fast path: nearly all callers write names as the file does.
        self._exact = {
            name: [target] for name, target in self.targets.items() if name.lower() == name
        }

    def agent(self, name: str, caller: Caller | None) -> Target:
        """The agent of that name; case does not matter. The caller need not be allowed to ask it.
        Raises AgentNotFound, which names the agents that the caller may ask; of a route that it may
        ask, the route's own."""
        found = self._known_as(name)
        if found in self.targets:
            return self.targets[found]
        raise self._no_agent(name, found, caller)

    def first(self, name: str, caller: Caller | None) -> tuple[str, Target]:
        """The name of an agent or a route as config.yaml writes it, and the agent, or the route's
        first one. Raises AgentNotFound, also if the caller may not ask it."""
        found = self._known_as(name)
        agents = self.behind(found) if found else []
        if agents and caller is not None and caller.may_ask(found, agents):
            return found, self.targets[agents[0]]
        raise self._no_agent(name, found, caller)

    def _known_as(self, name: str) -> str:
        return self._by_name.get(name[:MAX_NAME].strip().lower(), "")

    def _no_agent(self, name: str, found: str, caller: Caller | None) -> AgentNotFound:
        known = [each for each, _ in self.visible(caller)] if caller else []
        agents = [each for each in known if each in self.targets]
        if found in known and found not in self.targets:
            return _is_a_route(found, [each for each in agents if each in self.behind(found)])
        return _not_found(name, "agent", agents)

    def allowed(self, caller: Caller, name: str, word: str = "model") -> list[Target]:
        """Like `resolve`, for a caller. Raises Forbidden for a name that the caller may not ask,
        and AgentNotFound, which names only those that it may."""
        targets = self._exact.get(name) or self._find(name)
        if targets is None:
            raise _not_found(name, word, [model for model, _ in self.visible(caller)])
        if not caller.may_ask_all:
            caller.require_agent(name, [target.name for target in targets])
        return targets

    def resolve(self, name: str, word: str = "model") -> list[Target]:
        """The targets to try in order, for the name of an agent, a route or `agent/model`.

        `word` is the caller's term for it: "model" or "agent". Raises AgentNotFound.
        """
        targets = self._exact.get(name) or self._find(name)
        if targets is None:
            raise _not_found(name, word, [model for model, _ in self.models()])
        return targets

    def _find(self, name: str) -> list[Target] | None:
        wanted = name.strip().lower() if len(name) <= MAX_NAME else ""
        found = self._by_name.get(wanted) or self._by_name.get(wanted.partition("/")[0])
        if found in self.targets:
            target = self.targets[found]
            if wanted == found.lower() or target.platform.models is not None:
                return [target]
        elif found is not None and wanted == found.lower():
            return [self.targets[choice.agent] for choice in self._order(self.routes[found])]
        return None

    def is_route(self, name: str) -> bool:
        return self.known(name) in self.routes

    def known(self, name: str) -> str:
        """The agent or route of a resolved name, as config.yaml writes it."""
        if name in self._exact:
            return name
        wanted = name.strip().lower()
        return self._by_name.get(wanted) or self._by_name.get(wanted.partition("/")[0], "")

    def asked(self, name: str, model: object = None) -> str:
        """A resolved name, as config.yaml writes it, and `/model` if the caller chooses a model.

        Only OpenAI-compatible agents let callers choose. `model` is the second way to do so, with
        or without the agent's name in front; a model in `name` takes precedence.
        """
        known = self.known(name)
        if known not in self.targets or self.targets[known].platform.models is None:
            return known
        own = name.strip().partition("/")[2]
        if not own and isinstance(model, str):
            prefix, slash, rest = model.strip().partition("/")
            is_named = prefix.lower() == known.lower()
            own = rest if is_named else prefix + slash + rest
        return f"{known}/{own}" if own else known

    def _order(self, choices: list[RouteTarget]) -> list[RouteTarget]:
        """As written; if any has a weight, the order is drawn by weight, and all but the first are
        fallbacks."""
        if all(choice.weight is None for choice in choices):
            return choices
        left, order = list(choices), []
        while left:
            weights = [choice.weight or 1.0 for choice in left]
            order.append(left.pop(self._choose.choices(range(len(left)), weights)[0]))
        return order

    def models(self) -> Iterator[tuple[str, str]]:
        """Every valid name for `model`, with its owner."""
        for name, target in self.targets.items():
            yield name, target.platform.kind
            for model in target.platform.models or ():
                yield f"{name}/{model}", target.platform.kind
        for name in self.routes:
            yield name, "gateway"

    def visible(self, caller: Caller) -> Iterator[tuple[str, str]]:
        """Those of `models` that the caller may ask."""
        for name, owner in self.models():
            if caller.may_ask(name, self.behind(name)):
                yield name, owner

    def behind(self, name: str) -> list[str]:
        """The agents that answer for a name from `models`."""
        if name in self.routes:
            return [choice.agent for choice in self.routes[name]]
        return [name if name in self.targets else name.partition("/")[0]]


def listed(known: list[str]) -> str:
    """A sentence for the end of an error that lists names; "" if the caller may ask none."""
    return say(" Known: {known}.", known=", ".join(known[:MAX_KNOWN])) if known else ""


_WORDS = {"agent": say("agent"), "model": say("model")}


def _not_found(name: str, word: str, known: list[str]) -> AgentNotFound:
    near = difflib.get_close_matches(name[:100].lower(), known, 1, 0.7)
    hint = say(" Did you mean {name!r}?", name=near[0]) if near else ""
    return AgentNotFound(
        say(
            "There is no {word} {name!r}.{hint}{known}",
            word=_WORDS.get(word, word),
            name=name[:100],
            hint=hint,
            known=listed(known),
        ),
        param="model" if word == "model" else "Agent",
        detail={"known": known[:MAX_KNOWN]},
    )


def _is_a_route(name: str, agents: list[str]) -> AgentNotFound:
    return AgentNotFound(
        say(
            "{name!r} is a route; this address is about a single agent.{known}",
            name=name,
            known=listed(agents),
        ),
        param="Agent",
        detail={"known": agents[:MAX_KNOWN]},
    )
