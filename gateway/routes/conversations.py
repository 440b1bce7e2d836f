"""/api/v1/conversations: the conversations of an end user, with their turns, titles and feedback.

Which ones there are, and whose, is the gateway's own register. The turns come from the platform, or
from the gateway where the platform keeps none. A page's token reaches those of its user alone, and
anything else is reported as not found.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

import orjson
from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gateway.chat.routing import Target
from gateway.chat.steps import resolve
from gateway.conversations.draft import CLEARED, is_shown, title_of
from gateway.conversations.register import Conversation, Owner, Register, Turn, new_place
from gateway.errors import (
    Conflict,
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    MessageNotFound,
    NotFound,
    NotOffered,
    UpstreamTimeout,
)
from gateway.http.answer import answering
from gateway.http.body import (
    Nothing,
    check,
    choice,
    envelope,
    number,
    read_settings,
    read_small,
    require_known,
    require_query,
)
from gateway.http.context import (
    CONTEXT,
    CONVERSATIONS,
    SIGNER,
    UPSTREAM,
    State,
    caller_of,
    state_of,
)
from gateway.http.remember import owner_named
from gateway.http.stops import STOPS
from gateway.language.sentences import say
from gateway.platforms.base import Preliminary, json_text
from gateway.protocol.history import Feedback, PastTurn
from gateway.protocol.messages import ChatRequest, Message, Resume
from gateway.protocol.redaction import masked_in
from gateway.telemetry.call import Call
from gateway.times import iso

_PAGE, _LARGEST_PAGE = 20, 100
_FETCH_S = 10.0
_AT_ONCE = 4  # calls to platforms
_DELETE_S = 60.0  # for all of a call that deletes many, if platforms hang
MAX_DELETED = 500  # conversations in one call
_FAR_MS = 1 << 53
_SCOPE = ("user", "agent")  # the query of every address
MAX_TITLE = 100  # characters, as Coze allows
MAX_COMMENT = 2000
MAX_REPLY = 20_000  # characters
_LONGEST_ID = 1200
_LONGEST_USER = 1024


def _line(value: str) -> str:
    value = " ".join(value.split())
    if not value or not is_shown(value):
        raise ValueError(say("must have text, and no control characters"))
    return value


class Renamed(BaseModel):
    """The body of a rename."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    title: Annotated[str, Field(max_length=MAX_TITLE), AfterValidator(_line)]


class Opinion(BaseModel):
    """The body of feedback. `rating` null takes it back."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    rating: Literal["like", "dislike"] | None
    text: Annotated[str, Field(max_length=MAX_COMMENT)] = ""
    reasons: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=10)] = []


# Reading.


async def list_conversations(request: web.Request) -> web.Response:
    """A page of the end user's conversations, the newest first: `?user=&agent=&limit=&before=`."""
    require_query(request, "user", "agent", "limit", "before")
    register, owner = _register(request), _owner(request)
    limit = number(request, "limit", _PAGE, _LARGEST_PAGE)
    before = _cursor(request.query.get("before", ""))
    rows = await register.page(owner, _asked_agent(request), limit, before)
    shown = [_described(request, row) for row in rows if _may_see(request, row)]
    last = rows[-1] if len(rows) == limit else None
    return envelope({"conversations": shown, "next": None if last is None else _next(last)})


async def get_conversation(request: web.Request) -> web.Response:
    """One conversation."""
    return envelope(_described(request, await _find(request)))


async def list_messages(request: web.Request) -> web.Response:
    """A page of its turns, the oldest first; `next`, sent as `?before=`, leads to older ones."""
    one = await _find(request, "limit", "before")
    limit, before = number(request, "limit", _PAGE, _LARGEST_PAGE), request.query.get("before", "")
    if len(before) > _LONGEST_ID or not before.isprintable():
        raise InvalidRequest("'before' must be the 'next' of a page.", param="before")
    turns, older = await read_messages(request, one, limit, before)
    return envelope({"messages": turns, "next": older or None})


async def read_messages(
    request: web.Request, one: Conversation, limit: int, before: str
) -> tuple[list[dict[str, Any]], str]:
    """The turns before that place, with their feedback; and the place before them, "" if there are
    no older ones."""
    register = _register(request)
    if one.is_kept:
        turns, older = await _kept_turns(register, one, limit, before)
    else:
        target = _target(request, one)
        step = target.platform.past_turns(one.id, one.platform_user, before, limit)
        page = await _ask(request, target, step)
        turns = masked_in([turn.data() for turn in page.turns], target.secrets)
        older = page.before
    ratings = await register.ratings(one)
    for turn in turns:
        # Platforms keep less of it than was said here.
        turn["feedback"] = ratings.get(turn["id"]) or turn["feedback"]
    return turns, older


async def described_rows(
    request: web.Request, owner: Owner
) -> AsyncIterator[tuple[Conversation, dict[str, Any]]]:
    """All conversations of the owner, each with its description."""
    async for row in _all_rows(request, owner):
        yield row, _described(request, row)


async def _all_rows(
    request: web.Request, owner: Owner, agent: str = ""
) -> AsyncIterator[Conversation]:
    """All conversations of the owner, those of agents that are gone included."""
    register, before = _register(request), _cursor("")
    while rows := await register.page(owner, agent, _LARGEST_PAGE, before):
        for row in rows:
            if _may_see(request, row, with_gone=True):
                yield row
        last = rows[-1]
        before = (last.updated_ms, last.agent, last.id)


async def _kept_turns(
    register: Register, one: Conversation, limit: int, before: str
) -> tuple[list[dict[str, Any]], str]:
    rows, older = await register.turns((one.agent, one.id), limit, before)
    turns = [
        {**row.body, "id": row.id, "created": row.created_ms // 1000}
        for row in reversed(rows)
        if row.body["status"] != CLEARED
    ]
    return turns, older


# Changing.


async def rename(request: web.Request) -> web.Response:
    """Give it another title, here and at the platform."""
    one = await _find(request)
    title = (await read_settings(request, Renamed, query=_SCOPE)).title
    await _register(request).rename(one, title, "user")
    done = await _at_platform(
        request, one, lambda target: target.platform.rename(one.id, one.platform_user, title)
    )
    return envelope({"id": request.match_info["id"], "title": title, "platform": done})


async def make_title(request: web.Request) -> web.Response:
    """A title from the platform; if it makes none, the title stays as it is."""
    one = await _find(request)
    await read_settings(request, Nothing, query=_SCOPE, is_optional=True)
    title, by = one.title, one.title_by
    if not one.is_kept:
        target = _target(request, one)
        try:
            made = await _ask(
                request, target, target.platform.make_title(one.id, one.platform_user)
            )
            title, by = title_of([Message("user", made)]) or title, "bot"
        except NotOffered:
            pass
    await _register(request).rename(one, title, by)
    return envelope({"id": request.match_info["id"], "title": title, "title_by": by})


async def clear(request: web.Request) -> web.Response:
    """Let later questions begin without context; the turns remain readable."""
    one = await _find(request)
    await read_settings(request, Nothing, query=_SCOPE, is_optional=True)
    target = _target(request, one)
    if target.platform.is_model:  # others have a context of their own, even if turns are kept here
        mark = PastTurn("").data() | {"status": CLEARED}
        await _register(request).mark(one, Turn(new_place(), "", mark))
    else:
        await _ask(request, target, target.platform.clear(one.id, one.platform_user))
    return envelope({"id": request.match_info["id"], "cleared": True})


async def stop(request: web.Request) -> web.Response:
    """Stop the answer under way in it, at whichever replica; `platform` says whether the bot is
    asked to stop as well. A new conversation is not in the register yet."""
    owner, id_, agents = _owner(request), _id(request), _asked_agents(request)
    await read_settings(request, Nothing, query=_SCOPE, is_optional=True)
    result = await request.app[STOPS].stop(owner, id_, agents)
    if result is None:
        await _find(request)  # raises if it is another's
    data = {"id": request.match_info["id"], "stopped": result is not None, "platform": result}
    return envelope(data)


async def delete(request: web.Request) -> web.Response:
    """Delete it at the platform and here. If the platform fails, it stays, to be tried again."""
    one = await _find(request)
    done = await _delete(request, one)
    return envelope({"id": request.match_info["id"], "deleted": True, "platform": done})


async def delete_all(request: web.Request) -> web.Response:
    """Delete up to `MAX_DELETED` of the end user's conversations: `?all=true&user=&agent=`.

    `all` is required: the address of a conversation whose id is empty is this one."""
    require_query(request, "user", "agent", "all")
    if choice(request, "all", ("true",)) != "true":
        raise InvalidRequest(
            "Name one conversation in the address, or add '?all=true' to delete them all.",
            param="all",
        )
    return envelope(await deleted(request, _owner(request), _asked_agent(request)))


async def deleted(request: web.Request, owner: Owner, agent: str = "") -> dict[str, Any]:
    """Delete conversations, and report what each platform has confirmed."""
    limit, loop = asyncio.Semaphore(_AT_ONCE), asyncio.get_running_loop()
    rows, is_whole, ends_at = list[Conversation](), True, loop.time() + _DELETE_S
    async for row in _all_rows(request, owner, agent):
        if not (is_whole := len(rows) < MAX_DELETED):
            break
        rows.append(row)

    async def one(row: Conversation) -> dict[str, Any]:
        async with limit:
            try:
                if loop.time() > ends_at:
                    raise UpstreamTimeout("The others took too long; send the call again.")
                done = await _delete(request, row)
            except GatewayError as error:
                shown = request[CONTEXT].failed(error)
                return {**_named(request, row), "deleted": False, "problem": shown.message}
        return {**_named(request, row), "deleted": True, "platform": done}

    report = await asyncio.gather(*map(one, rows))
    is_complete = is_whole and all(row["deleted"] for row in report)
    return {"conversations": list(report), "is_complete": is_complete}


async def _delete(request: web.Request, one: Conversation) -> str:
    done = "not_offered"
    if not one.is_kept or _keeps_too(request, one):
        target = state_of(request).routing.targets.get(one.agent)
        if target is not None:
            try:
                await _ask(request, target, target.platform.delete(one.id, one.platform_user))
                done = "deleted"
            except NotOffered:
                pass
            except ConversationNotFound:
                done = "deleted"
    await _register(request).delete(one)
    return done


def _keeps_too(request: web.Request, one: Conversation) -> bool:
    """Whether the platform keeps a conversation, too, whose turns the gateway keeps."""
    target = state_of(request).routing.targets.get(one.agent)
    return target is not None and target.platform.remembers


# Answers.


class Reply(BaseModel):
    """A person's reply to a bot that waits: the id or title of a button, values for the fields of a
    form, or words."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    action: Annotated[str, Field(max_length=1000)] = ""
    inputs: Annotated[dict[str, Any], Field(max_length=100)] = {}
    text: Annotated[str, Field(max_length=MAX_REPLY)] = ""
    stream: bool = False
    detail: bool = False


async def _read_reply(
    request: web.Request, state: State, call: Call
) -> tuple[ChatRequest, list[Target]]:
    """The reply in the platform's conversation; the platform continues its run with it."""
    one = await _find(request)
    if not one.pause:
        raise Conflict("The bot waits for no answer in this conversation; ask a question.")
    target = _target(request, one)
    value = await read_small(request)
    require_known(value, list(Reply.model_fields))
    body = check(Reply, value)
    words = body.text or body.action or (json_text(body.inputs) if body.inputs else "")
    if not words.strip():
        raise InvalidRequest(
            "The reply is empty: give an 'action', 'inputs' or 'text'.", param="text"
        )
    call.end_user = one.owner.user
    routing, run = state.routing, one.pause.get("state", {})
    has_none = bool(run) and not target.platform.remembers  # the run itself is what goes on
    chat = ChatRequest(
        model=one.model or one.agent,
        messages=(Message("user", words),),
        user=one.platform_user,
        seal=request.app[SIGNER].seal(call.caller),
        stream=body.stream,
        detail=body.detail,
        conversation_id=None if has_none else one.id,
        own_conversation=one.id if has_none else "",
        own_agents=(target.name,),
        is_routed=one.model in routing.routes and len(routing.behind(one.model)) > 1,
        resume=Resume(run, body.action, body.inputs),
    )
    return chat, [target]


continue_run = answering(_read_reply, conversational=True)


async def give_feedback(request: web.Request) -> web.Response:
    """Keep a person's opinion of an answer, and hand it to the platform."""
    one, message = await _find(request), _message_id(request)
    body = await read_settings(request, Opinion, query=_SCOPE)
    feedback = Feedback(body.rating, body.text.strip(), tuple(body.reasons))
    if one.is_kept and not await _register(request).has_turn(one, message):
        raise MessageNotFound
    done = await _at_platform(
        request,
        one,
        lambda target: target.platform.give_feedback(one.id, one.platform_user, message, feedback),
    )
    await _register(request).rate(one, message, feedback.data())
    return envelope({"id": message, **feedback.data(), "platform": done})


async def suggestions(request: web.Request) -> web.Response:
    """The questions that the bot suggests after an answer."""
    one, message = await _find(request), _message_id(request)
    target = _target(request, one)
    questions = await _ask(
        request, target, target.platform.suggest(one.id, one.platform_user, message)
    )
    return envelope({"id": message, "suggestions": list(questions)})


# Helpers.


def _not_found() -> ConversationNotFound:
    return ConversationNotFound(
        "There is no such conversation of this user. With a key, ?user= must name the user who"
        " began it.",
        param="id",
    )


def _register(request: web.Request) -> Register:
    register = request.app[CONVERSATIONS]
    if register.database is None:
        raise NotFound("This gateway has no database (database: none), so it has no conversations.")
    return register


def _owner(request: web.Request) -> Owner:
    return owner_in(request, request.query.get("user", ""))


def owner_in(request: web.Request, user: str) -> Owner:
    """The owner that an address names. Chats take any name of up to 1024 characters."""
    if len(user) > _LONGEST_USER:
        raise InvalidRequest(
            say("'{name}' is longer than {most} characters.", name="user", most=_LONGEST_USER),
            param="user",
        )
    caller = caller_of(request)
    caller.named(user)  # raises if a page's token is for another user
    return owner_named(caller, caller.end_user or user)


def _asked_agent(request: web.Request) -> str:
    """The agent or route to list, as config.yaml writes it; "" for all."""
    name = request.query.get("agent", "")
    if not name:
        return ""
    known, _ = state_of(request).routing.first(name, caller_of(request))
    return known


def _asked_agents(request: web.Request) -> list[str] | None:
    """The agents and routes that the call may be about; None is all."""
    if name := _asked_agent(request):
        return [name]
    caller = caller_of(request)
    if caller.may_ask_all:
        return None
    return [name for name, _ in state_of(request).routing.visible(caller)]


def _may_see(request: web.Request, one: Conversation, *, with_gone: bool = False) -> bool:
    """Whether the caller may ask the agent, by its own name or as the route that was asked."""
    caller, routing = caller_of(request), state_of(request).routing
    is_known = with_gone or one.agent in routing.targets
    by_route = one.model in routing.routes and caller.may_ask(one.model, routing.behind(one.model))
    return by_route or (is_known and caller.may_ask(one.agent, [one.agent]))


async def _find(request: web.Request, *query: str) -> Conversation:
    """The conversation in the address. Raises ConversationNotFound."""
    require_query(request, *_SCOPE, *query)
    register, owner, asked = _register(request), _owner(request), _asked_agent(request)
    id_ = _id(request)
    rows = await register.named(owner, id_)
    for agent in state_of(request).routing.targets:  # a route's answers have it in front
        if id_.lower().startswith(f"{agent.lower()}:"):
            rest = id_[len(agent) + 1 :]
            rows += [row for row in await register.named(owner, rest) if row.agent == agent]
    for row in rows:
        if _may_see(request, row) and asked in ("", row.agent, row.model):
            request[CONTEXT].agent = row.agent
            request[CONTEXT].hide([row.agent], row.model)
            return row
    raise _not_found()


def _id(request: web.Request) -> str:
    """The conversation's id in the address, without the seal of a page's user: the owner is known
    anyway."""
    id_ = request.match_info["id"]
    if len(id_) > _LONGEST_ID or not id_.isprintable():
        raise _not_found()
    return (id_.rpartition("~")[0] or id_) if caller_of(request).end_user else id_


def _message_id(request: web.Request) -> str:
    message = request.match_info["message"]
    if len(message) > _LONGEST_ID or not message.isprintable():
        raise MessageNotFound
    return message


def _target(request: web.Request, one: Conversation) -> Target:
    target = state_of(request).routing.targets.get(one.agent)
    if target is None:
        raise NotOffered(
            say("Agent {name!r} is no longer in config.yaml.", name=one.model or one.agent)
        )
    return target


async def _ask(request: web.Request, target: Target, step: Preliminary) -> Any:
    """What the step leads to. Raises the platform's error, without its secrets."""
    try:
        return await resolve(request.app[UPSTREAM], target, step, fetch_s=_FETCH_S)
    except GatewayError as error:
        raise target.redacted(error) from None


async def _at_platform(
    request: web.Request, one: Conversation, step: Callable[[Target], Preliminary]
) -> str:
    """Do at the platform what the gateway has done itself: done, not_offered, or failed."""
    if one.is_kept and not _keeps_too(request, one):
        return "not_offered"
    target = state_of(request).routing.targets.get(one.agent)
    if target is None:
        return "not_offered"
    try:
        await _ask(request, target, step(target))
    except NotOffered:
        return "not_offered"
    except NotFound:
        raise
    except GatewayError as error:
        request[CONTEXT].failed(error)
        return "failed"
    return "done"


def _named(request: web.Request, one: Conversation) -> dict[str, Any]:
    """Its id as chats show it, and the agent or route that was asked."""
    routing, seal = state_of(request).routing, request.app[SIGNER].seal(caller_of(request))
    id_ = seal.close(one.agent, one.id) if seal else one.id
    is_routed = one.model in routing.routes and len(routing.behind(one.model)) > 1
    return {
        "id": f"{one.agent}:{id_}" if is_routed else id_,
        "agent": one.model or one.agent,
    }


def _described(request: web.Request, one: Conversation) -> dict[str, Any]:
    return {
        **_named(request, one),
        "user": one.owner.user,
        "title": one.title,
        "title_by": one.title_by,
        "kept_by": "gateway" if one.is_kept else "platform",
        "waits_for": one.pause.get("shown"),
        "created_at": iso(one.created_ms),
        "updated_at": iso(one.updated_ms),
    }


def _next(last: Conversation) -> str:
    return orjson.dumps([last.updated_ms, last.agent, last.id]).hex()


def _cursor(text: str) -> tuple[int, str, str]:
    """The place in a list that `_next` names; before all for ""."""
    if not text:
        return _FAR_MS, "", ""
    try:
        ms, agent, id_ = orjson.loads(bytes.fromhex(text[:8192]))
    except (ValueError, TypeError):
        ms, agent, id_ = None, None, None
    if type(ms) is not int or not (isinstance(agent, str) and isinstance(id_, str)):
        raise InvalidRequest("'before' must be the 'next' of a page.", param="before")
    return min(max(ms, 0), _FAR_MS), agent, id_
