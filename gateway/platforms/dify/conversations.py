"""The conversations of a Dify chat app: past turns, titles, feedback, next questions.

Source: Dify's service API and captures of real servers. Dify checks the end user of each call; an
unknown conversation and one of another user are the same 404.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from gateway.errors import ConversationNotFound, MessageNotFound, NotOffered
from gateway.language.sentences import say
from gateway.platforms.base import (
    BasePlatform,
    Preliminary,
    as_id,
    as_list,
    as_object,
    as_text,
    dump,
)
from gateway.platforms.dify.decoder import citation
from gateway.platforms.dify.failures import NO_CONVERSATION, explain
from gateway.platforms.failures import message_of
from gateway.protocol import history
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.history import Feedback, Page, PastFile, PastTurn, Status
from gateway.protocol.messages import Usage
from gateway.protocol.profile import MAX_TITLE, words
from gateway.protocol.usage import as_count

_MAX_PAGE = 100  # messages
_MAX_NAME = 255  # characters
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")
_STATUS: dict[str, Status] = {"error": "failed", "paused": "waiting", "stopped": "stopped"}
_SWITCHED_OFF = "app_suggested_questions_after_answer_disabled"  # after 1.17


class DifyConversations(BasePlatform):
    """The part of `Dify` for conversations. Dify's message is a whole turn."""

    _api: str
    _headers: dict[str, str]
    _mode: str | None

    @property
    def shows_turns(self) -> bool:
        return True

    def past_turns(self, conversation: str, user: str, before: str, limit: int) -> Preliminary:
        with _as_cursor():
            request = self._messages(conversation, user, before, limit)
        return Preliminary(request, _as_cursor()(lambda reply: read_page(_good(reply))))

    def rename(self, conversation: str, user: str, title: str) -> Preliminary:
        return self._name(conversation, {"name": title[:_MAX_NAME], "user": user}, lambda _: None)

    def make_title(self, conversation: str, user: str) -> Preliminary:
        """If the app's model fails, the title stays as it is, and is the result."""
        body = {"auto_generate": True, "user": user}
        return self._name(conversation, body, lambda about: words(about.get("name"), MAX_TITLE))

    def _name(
        self, conversation: str, body: dict[str, Any], learn: Callable[[dict[str, Any]], Any]
    ) -> Preliminary:
        request = self._call("POST", f"{self._path(conversation)}/name", body)
        return Preliminary(request, lambda reply: learn(_good(reply)))

    def delete(self, conversation: str, user: str) -> Preliminary:
        return Preliminary(self._call("DELETE", self._path(conversation), {"user": user}), _gone)

    def give_feedback(
        self, conversation: str, user: str, message_id: str, feedback: Feedback
    ) -> Preliminary:
        body: dict[str, Any] = {"rating": feedback.rating, "user": user}
        if feedback.rating and feedback.comment:
            body["content"] = feedback.comment
        request = self._call("POST", f"/messages/{message_id}/feedbacks", body)

        def learn(reply: UpstreamReply) -> None:
            is_undone = not feedback.rating and "feedback not exists" in message_of(reply.object())
            if not is_undone:
                _good(reply)

        return self._with_message(conversation, user, message_id, Preliminary(request, learn))

    def suggest(self, conversation: str, user: str, message_id: str) -> Preliminary:
        query = urlencode({"user": user})
        request = self._call("GET", f"/messages/{message_id}/suggested?{query}")
        return self._with_message(conversation, user, message_id, Preliminary(request, _suggested))

    def _with_message(
        self, conversation: str, user: str, message_id: str, then: Preliminary
    ) -> Preliminary:
        """`then`, after proof that the message is in the conversation: Dify has a page of messages
        before it."""
        if not message_id:
            raise MessageNotFound
        request = self._messages(conversation, user, message_id, 1)

        def learn(reply: UpstreamReply) -> Preliminary:
            _good(reply)
            return then

        return Preliminary(request, learn)

    def _messages(self, conversation: str, user: str, before: str, limit: int) -> UpstreamRequest:
        self._path(conversation)  # checks it
        limit = max(1, min(limit, _MAX_PAGE))
        query: dict[str, Any] = {"conversation_id": conversation, "user": user, "limit": limit}
        if before:
            if not _UUID.fullmatch(before):  # Dify refuses the form, not the message
                raise MessageNotFound
            query["first_id"] = before
        return self._call("GET", f"/messages?{urlencode(query)}")

    def _path(self, conversation: str) -> str:
        if not _UUID.fullmatch(conversation):  # it does not get past Dify's routes
            raise ConversationNotFound(NO_CONVERSATION)
        return f"/conversations/{conversation}"

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> UpstreamRequest:
        if self._mode not in (None, "chat"):
            raise _keeps_none()
        data = b"" if body is None else dump(body)
        return UpstreamRequest(
            method, self._api + path, self._headers, data, max_reply=history.MAX_REPLY
        )


@contextmanager
def _as_cursor() -> Iterator[None]:
    """The message that does not exist is the `before` of a page."""
    try:
        yield
    except MessageNotFound:
        raise history.bad_cursor() from None


def _keeps_none() -> NotOffered:
    return NotOffered(say("A Dify app of this kind keeps no conversations: only chat apps do."))


def _good(reply: UpstreamReply) -> dict[str, Any]:
    """The object in a good reply. Raises the error in any other."""
    body = reply.object()
    if reply.status in (200, 201) and body:
        return body
    if body.get("code") == "not_chat_app":
        raise _keeps_none()
    raise explain(reply)


def _gone(reply: UpstreamReply) -> None:
    if reply.status == 204:
        return
    try:
        _good(reply)
    except ConversationNotFound:
        return


def _suggested(reply: UpstreamReply) -> tuple[str, ...]:
    body = reply.object()
    is_off = body.get("code") == _SWITCHED_OFF or (
        body.get("code") == "bad_request" and "disabled" in as_text(body.get("message")).lower()
    )
    return () if is_off else history.next_questions(_good(reply).get("data"))


def read_page(body: dict[str, Any]) -> Page:
    """From the body of `/messages`: the latest messages, the oldest of them first."""
    turns = tuple(_turn(as_object(message)) for message in as_list(body.get("data")))
    return Page(turns, turns[0].id if turns and body.get("has_more") is True else "")


def _turn(message: dict[str, Any]) -> PastTurn:
    answer, reasoning = history.answer_and_reasoning(message.get("answer"))
    error = history.problem(message.get("error"))
    files = as_list(message.get("message_files"))[: history.MAX_FILES]
    sources = map(as_object, as_list(message.get("retriever_resources")))
    status = _STATUS.get(as_text(message.get("status")), "completed")
    return PastTurn(
        as_id(message.get("id")),
        history.seconds(message.get("created_at")),
        history.passage(message.get("query")),
        answer,
        reasoning,
        tuple(_file(as_object(file)) for file in files),
        history.cited(map(citation, sources)),
        _feedback(as_object(message.get("feedback"))),
        "failed" if error and status == "completed" else status,
        error,
        _usage(message),
    )


def _file(file: dict[str, Any]) -> PastFile:
    side: history.Side = "answer" if file.get("belongs_to") == "assistant" else "question"
    members = (file.get(name) for name in ("type", "url", "filename", "mime_type", "size"))
    return history.past_file(side, *members)


def _feedback(feedback: dict[str, Any]) -> Feedback | None:
    rating = feedback.get("rating")
    return Feedback(rating) if rating in ("like", "dislike") else None


def _usage(message: dict[str, Any]) -> Usage | None:
    """The message's tokens, which Dify tells from 1.14 on."""
    prompt = as_count(message.get("message_tokens"))
    completion = as_count(message.get("answer_tokens"))
    total = max(as_count(message.get("total_tokens")), prompt + completion)
    return Usage(prompt, completion, total) if total else None
