"""The conversations of a Coze bot or chatflow: past turns, titles, feedback, next questions.

Source: Coze's developer guides, its SDKs and the open-source server. Coze checks the token, not the
end user.
"""

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import quote, urlencode

from gateway.errors import ConversationNotFound, MessageNotFound, NotOffered
from gateway.language.sentences import say
from gateway.platforms.base import (
    BasePlatform,
    Preliminary,
    Token,
    as_id,
    as_list,
    as_object,
    as_text,
    dump,
)
from gateway.platforms.coze import messages
from gateway.platforms.coze.failures import EXPIRED, explain
from gateway.platforms.coze.messages import Message
from gateway.platforms.coze.options import CozeOptions
from gateway.platforms.failures import message_of
from gateway.protocol import history
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.history import Feedback, Page
from gateway.protocol.usage import as_count

_MAX_PAGE = 50  # messages
_MAX_PAGES = 5  # in which a message is looked for
_MAX_NAME = 100  # characters, as all below
_MAX_COMMENT = 250
_MAX_REASONS, _MAX_REASON = 10, 30
_CURSOR = re.compile(r"([ab][0-9]{1,20})?\.([0-9A-Za-z_-]{1,64})")
# Of Coze Studio: a foreign conversation, an unknown one.
_NO_CONVERSATION = (103000001, 103000002)
# Coze Studio asks for a login at paths that it does not have.
_NO_SUCH_PATH = "session_key"

_Direction = Literal["before_id", "after_id"]

Learn = Callable[[UpstreamReply], Any]


class CozeConversations(BasePlatform):
    """The part of `Coze` for conversations."""

    _agent: CozeOptions
    _api: str
    _token: Token
    # Which argument gives older messages: by time it is `before_id`, by the order of the list, as
    # in Coze's SDKs, `after_id`.
    _older: _Direction = "before_id"

    @abstractmethod
    def _headers(self) -> dict[str, str]:
        """The headers of a JSON call."""

    @abstractmethod
    def _renew(self, then: Callable[[], Any]) -> Preliminary:
        """Fetch a token, then continue with `then`."""

    @property
    def shows_turns(self) -> bool:
        return True

    def past_turns(self, conversation: str, user: str, before: str, limit: int) -> Preliminary:
        """`before` is the list's position and the oldest message before which turns are wanted, as
        `<position>.<id>`: pages cut turns, whose messages belong together."""
        cursor = _CURSOR.fullmatch(before) if before else None
        if before and not cursor:
            raise history.bad_cursor()
        position, oldest = (cursor[1] or "", cursor[2]) if cursor else ("", "")
        limit = max(1, min(limit, _MAX_PAGE))

        def page(position: str, newer: list[Message], seen: frozenset[str]) -> Preliminary:
            """`newer` are the messages of a turn that the page before has cut."""

            def learn(listed: list[Message], older: str) -> Any:
                turns = messages.into_turns(messages.older_than(listed, oldest) + newer)
                if older and (not turns or (len(turns) == 1 and not newer)):
                    return page(older, turns[0] if turns else newer, _ids(listed))
                has_more = bool(older) or len(turns) > limit
                if older and len(turns) > 1:  # the next page may have the beginning of the oldest
                    turns = turns[1:]
                kept = turns[-limit:]
                place = position and self._older[0] + position[1:]
                cursor = f"{place}.{as_id(kept[0][0].get('id'))}" if has_more else ""
                found = Page(tuple(map(messages.read_turn, kept)), cursor)
                is_latest = not oldest and bool(kept)
                return self._with_status(conversation, found, kept[-1]) if is_latest else found

            return self._list(conversation, position, seen, learn)

        return page(position, [], frozenset())

    def _with_status(
        self, conversation: str, page: Page, latest: list[Message]
    ) -> Page | Preliminary:
        """The page with the state of its latest turn, if that has no answer yet."""
        turn, chat = page.turns[-1], as_id(latest[0].get("chat_id"))
        if turn.id or not chat:
            return page

        def learn(reply: UpstreamReply) -> Page:
            status, error = messages.chat_status(as_object(reply.object().get("data")))
            last = replace(turn, status=status, error=error)
            return replace(page, turns=(*page.turns[:-1], last))

        query = urlencode({"conversation_id": conversation, "chat_id": chat})
        return self._ask("GET", f"/v3/chat/retrieve?{query}", None, learn)

    def _list(
        self,
        conversation: str,
        position: str,
        seen: frozenset[str],
        learn: Callable[[list[Message], str], Any],
    ) -> Preliminary:
        """Leads to what `learn` makes of a page of messages, the oldest first, and of the position
        of the older page, "" if there is none. `seen` are the ids of the page before."""
        direction: _Direction = "after_id" if position.startswith("a") else "before_id"

        def read(reply: UpstreamReply) -> Any:
            body = _good(reply)
            listed = [as_object(message) for message in reversed(as_list(body.get("data")))]
            if seen and _ids(listed) <= seen:
                self._older = "before_id" if direction == "after_id" else "after_id"
                turned = self._older[0] + position[1:]
                return self._list(conversation, turned, frozenset(), learn)
            last = as_id(body.get("last_id")) if listed and body.get("has_more") is True else ""
            return learn(listed, self._older[0] + last if last else "")

        body: dict[str, Any] = {"order": "desc", "limit": _MAX_PAGE}
        if position:
            body[direction] = position[1:]
        query = urlencode({"conversation_id": conversation})
        return self._ask("POST", f"/v1/conversation/message/list?{query}", body, read)

    def rename(self, conversation: str, user: str, title: str) -> Preliminary:
        return self._ask("PUT", _path(conversation), {"name": title[:_MAX_NAME]}, _done)

    def delete(self, conversation: str, user: str) -> Preliminary:
        return self._ask("DELETE", _path(conversation), None, _gone)

    def clear(self, conversation: str, user: str) -> Preliminary:
        return self._ask("POST", f"{_path(conversation)}/clear", {}, _done)

    def give_feedback(
        self, conversation: str, user: str, message_id: str, feedback: Feedback
    ) -> Preliminary:
        """Longer reasons and texts than Coze takes are cut."""
        body: dict[str, Any] = {"feedback_type": "like" if feedback.rating == "like" else "unlike"}
        if feedback.reasons:
            body["reason_types"] = [each[:_MAX_REASON] for each in feedback.reasons[:_MAX_REASONS]]
        if feedback.text:
            body["comment"] = feedback.text[:_MAX_COMMENT]

        def then(message: Message) -> Preliminary:
            own = quote(as_id(message.get("id")), safe="")
            path = f"{_path(conversation)}/messages/{own}/feedback"
            if not feedback.rating:
                return self._ask("DELETE", path, None, _done)
            return self._ask("POST", path, body, _done)

        return self._with_message(conversation, message_id, then)

    def suggest(self, conversation: str, user: str, message_id: str) -> Preliminary:
        """Coze has made them with the answer: they are among the messages of its chat."""

        def then(message: Message) -> Preliminary | tuple[str, ...]:
            chat = as_id(message.get("chat_id"))
            query = urlencode({"conversation_id": conversation, "chat_id": chat})
            if not chat:  # a message that nobody asked for
                return ()
            return self._ask("GET", f"/v3/chat/message/list?{query}", None, _follow_ups)

        return self._with_message(conversation, message_id, then)

    def _with_message(
        self,
        conversation: str,
        message_id: str,
        then: Callable[[Message], Any],
        position: str = "",
        seen: frozenset[str] = frozenset(),
        left: int = _MAX_PAGES,
    ) -> Preliminary:
        """What `then` makes of the conversation's answer with that id, or of the latest one of the
        chat with that id, which is the id that comes with an answer's stream."""

        def learn(listed: list[Message], older: str) -> Any:
            found = [each for each in listed if messages.has_id(each, message_id)]
            if found:
                return then(messages.rated(found))
            if not older or left <= 1:
                raise MessageNotFound
            return self._with_message(conversation, message_id, then, older, _ids(listed), left - 1)

        if not message_id:
            raise MessageNotFound
        return self._list(conversation, position, seen, learn)

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        learn: Learn,
        is_renewed: bool = False,
    ) -> Preliminary:
        """A call with a token that is valid: one that was revoked early is renewed."""

        def ask(is_renewed: bool) -> Preliminary:
            return self._ask(method, path, body, learn, is_renewed)

        def read(reply: UpstreamReply) -> Any:
            is_refused = as_count(reply.object().get("code")) in EXPIRED
            if self._agent.oauth and is_refused and not is_renewed:
                self._token.until = 0.0
                return ask(True)
            return learn(reply)

        if self._token.is_over:
            return self._renew(lambda: ask(is_renewed))
        data = b"" if body is None else dump(body)
        return Preliminary(
            UpstreamRequest(
                method, self._api + path, self._headers(), data, max_reply=history.MAX_REPLY
            ),
            read,
        )


def _ids(listed: list[Message]) -> frozenset[str]:
    return frozenset(as_id(message.get("id")) for message in listed)


def _path(conversation: str) -> str:
    return f"/v1/conversations/{quote(conversation, safe='')}"


def _good(reply: UpstreamReply) -> dict[str, Any]:
    """The body of a good reply. Raises the error in any other."""
    body = reply.object()
    if reply.status == 200 and "code" in body and not as_count(body["code"]):
        return body
    if _NO_SUCH_PATH in message_of(body):
        raise NotOffered(say("Coze Studio does not offer this; Coze itself does."))
    if as_count(body.get("code")) in _NO_CONVERSATION:
        raise ConversationNotFound(say("Coze does not know this conversation."))
    raise explain(reply)


def _done(reply: UpstreamReply) -> None:
    _good(reply)


def _gone(reply: UpstreamReply) -> None:
    try:
        _good(reply)
    except ConversationNotFound:
        return


def _follow_ups(reply: UpstreamReply) -> tuple[str, ...]:
    listed = map(as_object, as_list(_good(reply).get("data")))
    return history.next_questions(
        [as_text(each.get("content")) for each in listed if each.get("type") == "follow_up"]
    )
