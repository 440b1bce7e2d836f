"""The sessions of a RAGFlow chat assistant or agent: past turns, names, feedback.

Source: RAGFlow's HTTP reference and server, 0.16 to 0.27. RAGFlow checks the key, not the end user,
and sends a session whole.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from gateway.errors import ConversationNotFound, EmptyAnswer, MessageNotFound, NotOffered
from gateway.language.sentences import say
from gateway.platforms.base import (
    BasePlatform,
    Preliminary,
    as_id,
    as_list,
    as_object,
    as_text,
    dump,
    json_text,
)
from gateway.platforms.ragflow.decoder import RAGFlowDecoder
from gateway.platforms.ragflow.failures import explain, lacks_path
from gateway.protocol import history, sse
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.history import Feedback, Page, PastTurn, Status
from gateway.protocol.messages import Failed, Note, Reasoning, Text

_MAX_PAGE = 100  # turns
_MAX_NAME = 255  # characters

# A question and its answer; either may be missing. The answer has its `reference`.
_Turn = tuple[dict[str, Any], dict[str, Any]]


class RAGFlowConversations(BasePlatform):
    """The part of `RAGFlow` for conversations."""

    _api: str
    _headers: dict[str, str]
    _bots: str
    _path: str

    @property
    def shows_turns(self) -> bool:
        return True

    def past_turns(self, conversation: str, user: str, before: str, limit: int) -> Preliminary:
        """`before` is the number of older turns."""
        if before and not (before.isascii() and before.isdigit() and len(before) < 10):
            raise history.bad_cursor()

        def learn(turns: list[_Turn]) -> Page:
            end = min(int(before), len(turns)) if before else len(turns)
            start = max(0, end - max(1, min(limit, _MAX_PAGE)))
            read = [_read(turn, turn is turns[-1]) for turn in turns[start:end]]
            return Page(tuple(read), str(start) if start else "")

        return self._session(conversation, learn)

    def _session(self, conversation: str, learn: Callable[[list[_Turn]], Any]) -> Preliminary:
        query = {"id": conversation, "page": 1, "page_size": 1, "dsl": "false"}

        def read(reply: UpstreamReply) -> Any:
            listed = as_list(_good(reply).get("data"))
            session = as_object(next(iter(listed), None))
            if as_id(session.get("id")) != conversation:
                raise _unknown()
            return learn(_turns(session))

        request = self._call("GET", f"{self._path}/sessions?{urlencode(query)}")
        return Preliminary(request, read)

    def rename(self, conversation: str, user: str, title: str) -> Preliminary:
        self._require_chat(say("RAGFlow cannot rename a conversation of an agent."))
        path = f"{self._path}/sessions/{quote(conversation, safe='')}"
        body = {"name": title[:_MAX_NAME]}

        def learn(reply: UpstreamReply) -> Preliminary | None:
            if lacks_path(reply):  # before 0.26
                return Preliminary(self._call("PUT", path, body), _done)
            _done(reply)
            return None

        return Preliminary(self._call("PATCH", path, body), learn)

    def delete(self, conversation: str, user: str) -> Preliminary:
        if not conversation:  # without ids some versions delete all sessions
            raise _unknown()
        body = {"ids": [conversation]}
        return Preliminary(self._call("DELETE", f"{self._path}/sessions", body), _gone)

    def give_feedback(
        self, conversation: str, user: str, message_id: str, feedback: Feedback
    ) -> Preliminary:
        self._require_chat(say("RAGFlow takes no feedback on an agent."))
        if not feedback.rating:
            raise NotOffered(say("RAGFlow cannot take a rating back: it can only change it."))
        session, message = (quote(each, safe="") for each in (conversation, message_id))
        path = f"{self._path}/sessions/{session}/messages/{message}/feedback"
        body = {"thumbup": feedback.rating == "like", "feedback": feedback.comment}

        def rate(reply: UpstreamReply) -> None:
            if lacks_path(reply):
                raise NotOffered(say("This RAGFlow is too old to take feedback."))
            _done(reply)

        def learn(turns: list[_Turn]) -> Preliminary:
            if not message_id or all(as_id(said.get("id")) != message_id for _, said in turns):
                raise MessageNotFound
            return Preliminary(self._call("PUT", path, body), rate)

        return self._session(conversation, learn)

    def _require_chat(self, problem: str) -> None:
        if self._bots != "chats":
            raise NotOffered(problem)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> UpstreamRequest:
        data = b"" if body is None else dump(body)
        return UpstreamRequest(
            method, self._api + path, self._headers, data, max_reply=history.MAX_REPLY
        )


def _unknown() -> ConversationNotFound:
    return ConversationNotFound(say("RAGFlow does not know this conversation."))


def _good(reply: UpstreamReply) -> dict[str, Any]:
    """The body of a good reply. Raises the error in any other."""
    body = reply.object()
    if reply.status == 200 and body.get("code") == 0:
        return body
    raise explain(reply)


def _done(reply: UpstreamReply) -> None:
    _good(reply)


def _gone(reply: UpstreamReply) -> None:
    try:
        _good(reply)
    except ConversationNotFound:
        return


def _turns(session: dict[str, Any]) -> list[_Turn]:
    """The turns without the greeting. References are in the messages, or listed by answer."""
    messages = as_list(session.get("messages")) or as_list(session.get("message"))
    references = iter(as_list(session.get("reference")))
    turns: list[_Turn] = []
    for message in map(as_object, messages):
        if message.get("role") == "user":
            turns.append((message, {}))
        elif message.get("role") == "assistant" and turns:
            reference = message.get("reference") or next(references, None)
            said = {**message, "reference": reference}
            if turns[-1][1]:
                turns.append(({}, said))
            else:
                turns[-1] = (turns[-1][0], said)
    return turns


def _read(turn: _Turn, is_latest: bool) -> PastTurn:
    asked, said = turn
    answer, reasoning, citations, error = _answer(said)
    status: Status = "completed" if answer or reasoning else "failed"
    if not said:
        status = "running" if is_latest else "failed"
    return PastTurn(
        as_id(said.get("id")),
        history.seconds(asked.get("created_at")) or history.seconds(said.get("created_at")),
        history.passage(asked.get("content")),
        history.passage(answer),
        history.passage(reasoning),
        citations=history.cited(citations),
        feedback=_feedback(said),
        status="failed" if error else status,
        error=error,
    )


def _answer(said: dict[str, Any]) -> tuple[str, str, list[dict[str, Any]], str]:
    """(text, reasoning, citations, error), read as a whole answer is."""
    data = {"answer": as_text(said.get("content")), "final": True}
    frame = json_text({"code": 0, "data": {**data, "reference": said.get("reference")}})
    frame = frame or json_text({"code": 0, "data": data})
    decoder = RAGFlowDecoder("delta")
    deltas = decoder.feed(sse.event(frame.encode()) + sse.event(b'{"code":0,"data":true}'))
    text = "".join(delta.text for delta in deltas if isinstance(delta, Text))
    reasoning = "".join(delta.text for delta in deltas if isinstance(delta, Reasoning))
    notes = [d for d in deltas if isinstance(d, Note) and d.name == "citations"]
    failures = [delta.error for delta in deltas if isinstance(delta, Failed)]
    errors = [error.message for error in failures if not isinstance(error, EmptyAnswer)]
    citations = [citation for note in notes for citation in note.data]
    return text, reasoning, citations, history.problem(errors[0]) if errors else ""


def _feedback(said: dict[str, Any]) -> Feedback | None:
    thumb = said.get("thumbup")
    if not isinstance(thumb, bool):
        return None
    return Feedback("like" if thumb else "dislike", history.passage(said.get("feedback")))
