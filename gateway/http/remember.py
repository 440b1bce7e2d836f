"""What is looked up before a chat is asked, and kept when it has been answered: whose conversation
it is, its turn where no platform keeps it, and the thread of a client that resends its history."""

from functools import partial

from aiohttp import web

from gateway.accounts.credentials import Caller
from gateway.chat.routing import Target
from gateway.chat.run import Run
from gateway.config.models import ConversationMode, Conversations, Memory
from gateway.conversations.draft import MAX_TURNS, Draft, draft_of, earlier
from gateway.conversations.latest import Answered
from gateway.conversations.register import Owner, Turn, new_place
from gateway.http.context import CONTEXT, CONVERSATIONS, LATEST, MEMORY, State
from gateway.ids import new_id
from gateway.memory.recall import MAX_TEXT, Recall
from gateway.protocol.history import Status
from gateway.protocol.messages import ChatRequest
from gateway.telemetry.call import Call


def owner_of(call: Call) -> Owner:
    """The owner of the conversations of that call's end user."""
    return owner_named(call.caller, call.end_user)


def owner_named(caller: Caller, user: str) -> Owner:
    """The owner for an end user of that caller; "" is the caller itself. PostgreSQL stores no
    NUL."""
    name = user.replace("\0", "\ufffd")
    return Owner("anonymous" if caller.is_anonymous else caller.id, name)


async def look_up(
    request: web.Request,
    state: State,
    call: Call,
    chat: ChatRequest,
    targets: list[Target],
    *,
    conversational: bool,
) -> Draft | None:
    """Check whose conversation the call names, and continue one that the gateway keeps. Raises
    ConversationNotFound, or DatabaseUnavailable if that cannot be found out."""
    if chat.task or not chat.messages:  # no question, but a call that is passed on, or audio
        return None
    register, target, owner = request.app[CONVERSATIONS], targets[0], owner_of(call)
    # Any of a route's agents may answer in the end. A named conversation has one agent.
    keeping = [each for each in targets if _mode(state, each) != "off"]
    named, is_alone, platform = chat.conversation_id, len(chat.messages) == 1, target.platform
    ours: tuple[str, ...] = ()
    if conversational and register.database is not None:
        ours = tuple([each.name for each in keeping if each.platform.is_model])
    is_ours = target.name in ours
    if named and (is_ours or (not platform.is_model and chat.seal is None)):
        # A sealed id is its own proof; one of the gateway's own conversations was never made up.
        siblings = partial(_siblings, state, target)
        await register.require(owner, (target.name, named), adopts=not is_ours, siblings=siblings)
    if not (is_alone or named):
        ours = ()  # the client keeps its history
    kept_at = ours
    if register.database is not None:
        kept_at += tuple([each.name for each in keeping if _is_copied(state, each)])
    draft = draft_of(
        owner,
        chat,
        is_titled=bool(keeping),
        kept_at=kept_at,
        has_tasks=not conversational and platform.remembers,
    )
    if kept_at:
        chat.own_message = new_place()
    if named and is_ours:
        turns = await register.history((target.name, named), MAX_TURNS) if is_alone else ()
        chat.continue_own(named, ours, earlier(turns))
    elif ours:
        chat.continue_own(new_id(32), ours)
    return draft


def _siblings(state: State, target: Target) -> list[str]:
    """The other agents with the same account at the platform, where its ids are known too."""
    own = target.agent
    return [
        each.name
        for each in state.routing.targets.values()
        if each is not target
        and (each.agent.platform, each.url, each.agent.api_key)
        == (own.platform, target.url, own.api_key)
    ]


def _is_copied(state: State, target: Target) -> bool:
    """Whether the gateway keeps the turns of a bot."""
    platform = target.platform
    return not platform.is_model and (_mode(state, target) == "gateway" or not platform.shows_turns)


def _mode(state: State, target: Target) -> ConversationMode:
    return conversations_of(state, target).mode


def conversations_of(state: State, target: Target) -> Conversations:
    """How conversations of that agent are kept."""
    own = target.agent.conversations
    return state.config.conversations if own is None else own


async def recalled(
    request: web.Request, state: State, chat: ChatRequest, targets: list[Target]
) -> tuple[Recall | None, list[Target]]:
    """What the memory knows of the chat's history; the chat then continues its conversation, and
    that conversation's agent is the first target."""
    lease_s = targets[0].agent.timeouts.total
    recall = await request.app[MEMORY].recall(chat, _memory_of(state, targets[0]), lease_s)
    if recall is None:
        return None, targets
    recall.apply(chat)
    if chat.home:
        targets = sorted(targets, key=lambda target: target.name != chat.home)
    return recall, targets


def _memory_of(state: State, target: Target) -> Memory:
    """The settings of the memory for that agent."""
    return state.config.memory if target.agent.memory is None else target.agent.memory


async def keep(
    request: web.Request,
    run: Run,
    call: Call,
    *,
    cut: bool,
    error: str = "",
) -> None:
    """Keep the call, before its last bytes are sent. `cut`: the client may have received only a
    part of the answer, because of `error` if the client itself has not left."""
    if (draft := run.draft) is not None and not draft.is_over:
        draft.is_over = True
        await _keep_conversation(request, run, call, draft, cut=cut, error=error)
    if (recall := run.recall) is not None and not recall.is_over:
        await _keep_thread(request, run, recall, cut=cut)


def is_open(run: Run) -> bool:
    """Whether something of the call is still to be kept."""
    draft, recall = run.draft, run.recall
    return (draft is not None and not draft.is_over) or (recall is not None and not recall.is_over)


async def _keep_conversation(
    request: web.Request,
    run: Run,
    call: Call,
    draft: Draft,
    *,
    cut: bool,
    error: str,
) -> None:
    chat, target, renderer = run.chat, run.attempt.target, run.renderer
    notes = renderer.notes.members if renderer is not None else {}
    conversation = run.conversation_id or (chat.call_id if "interaction" in notes else "")
    if not conversation:
        return
    register, turn = request.app[CONVERSATIONS], None
    if draft.question is not None and target.name in draft.kept_at:
        thoughts = run.thoughts or ()
        status: Status = "failed" if error else "stopped" if cut else "completed"
        body = draft.turn(run.texts or (), thoughts, notes, call.usage, status=status, error=error)
        id_ = renderer.notes.message_id if renderer is not None else ""
        turn = Turn(chat.own_message, id_ or chat.own_message, body)
    if draft.head and renderer is not None:
        answered = Answered(
            draft.head,
            target.name,
            conversation,
            chat.user,
            renderer.notes.message_id,
            tuple(notes.get("suggestions", ())),
        )
        request.app[LATEST].note(draft.owner, answered)
    title, pause = notes.get("title"), None
    if shown := notes.get("interaction"):
        decoder = run.attempt.decoder
        pause = {"shown": shown, "state": (decoder.pause if decoder else None) or {}}
    elif not (cut or error) and (chat.resume is not None or not target.platform.keeps_forms):
        pause = {}  # until then a reply can be sent again
    state = request[CONTEXT].state
    assert state is not None
    if _mode(state, target) == "off":
        title = draft.title = ""
    register.note(
        draft.owner,
        (target.name, conversation),
        platform_user=chat.user,
        model=chat.route or call.model or target.name,
        title=title if isinstance(title, str) and title else draft.title,
        turn=turn,
        pause=pause,
        began_ms=call.began_ns // 1_000_000,
    )
    if pause or (chat.own_conversation and turn is not None):
        await register.settle()  # the next call may come at another replica


async def _keep_thread(request: web.Request, run: Run, recall: Recall, *, cut: bool) -> None:
    attempt = run.attempt
    texts = None if attempt.received > MAX_TEXT else run.texts
    platform, decoder = attempt.target.platform, attempt.decoder
    conversation = ""
    if decoder is not None and platform.remembers:
        conversation = decoder.conversation_id
    state = request[CONTEXT].state
    assert state is not None
    await request.app[MEMORY].remember(
        recall,
        _memory_of(state, attempt.target),
        attempt.target.name,
        conversation,
        texts,
        cut=cut,
        drops_cut=platform.drops_stopped,
    )


def memory_header(run: Run) -> str:
    """What became of the client's history, for a header."""
    assert run.recall is not None
    kind, decoder = run.recall.kind, run.attempt.decoder
    if decoder is not None:
        kind = run.recall.kind_at(run.attempt.target.name, decoder.conversation_id)
    return f"{kind}; depth={run.recall.verdict.depth}"
