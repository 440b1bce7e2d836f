"""The conversations of a FastGPT app: past turns, titles, feedback, next questions.

Source: FastGPT's server, and captures of real ones. FastGPT checks the key, not the end user. It
answers for an unknown conversation as for an empty one, and for an unknown message as if all were
well.
"""

from collections.abc import Callable
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
    dump,
)
from gateway.platforms.failures import message_of
from gateway.platforms.fastgpt import records
from gateway.platforms.fastgpt.failures import explain
from gateway.protocol import history
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.history import Feedback, Page
from gateway.protocol.usage import as_count

_MAX_PAGE = 100  # items; a turn has two
_MAX_PAGES = 5  # in which a message is looked for
# 4.14 moved these calls: (method, path) before and after.
_RECORDS = (("POST", "getPaginationRecords"), ("POST", "record/getPaginationRecords"))
_RENAME = (("POST", "updateHistory"), ("PUT", "history/updateHistory"))
_DELETE = (("DELETE", "delHistory"), ("DELETE", "history/delHistory"))
_TOO_OLD = say("This FastGPT is too old for this: it must be of version 4.8.20 or later.")


class FastGPTConversations(BasePlatform):
    """The part of `FastGPT` for conversations."""

    _api: str
    _headers: dict[str, str]
    _generation = 0  # which of the two paths the server has

    @property
    def shows_turns(self) -> bool:
        return bool(self.app_id)

    def past_turns(self, conversation: str, user: str, before: str, limit: int) -> Preliminary:
        """`before` is the number of newer items and the oldest of them, as `<number>.<id>`: the
        number grows while the conversation goes on."""
        offset, _, oldest = before.partition(".")
        if before and not (offset.isascii() and offset.isdigit() and len(offset) < 10):
            raise history.bad_cursor()
        limit = max(1, min(limit, _MAX_PAGE // 2 - 1))
        return self._page(conversation, int(offset or 0), oldest, limit)

    def _page(self, conversation: str, offset: int, oldest: str, limit: int) -> Preliminary:
        def learn(items: list[dict[str, Any]], has_more: bool) -> Page | Preliminary:
            after = offset + len(items)
            turns = records.into_turns(records.older_than(items, oldest))
            if has_more and len(turns) > 1 and not records.is_whole(turns[0]):
                turns = turns[1:]  # the next page has its question
            if not turns:
                return self._page(conversation, after, oldest, limit) if has_more else Page()
            kept = turns[-limit:]
            first = kept[0][0]
            position = after - next(i for i, item in enumerate(items) if item is first)
            read = [records.read_turn(t, not oldest and t is turns[-1]) for t in kept]
            rest = has_more or position < after
            return Page(tuple(read), f"{position}.{records.id_of(first)}" if rest else "")

        return self._items(conversation, offset, 2 * limit + 2, learn)

    def _items(
        self,
        conversation: str,
        offset: int,
        size: int,
        learn: Callable[[list[dict[str, Any]], bool], Any],
    ) -> Preliminary:
        """Leads to what `learn` makes of a page of items and of whether there are older ones."""

        def read(data: Any) -> Any:
            listed = [as_object(item) for item in as_list(as_object(data).get("list"))]
            if not listed and not offset:
                raise ConversationNotFound(
                    say("FastGPT has no such conversation, or nothing in it yet.")
                )
            total = as_count(as_object(data).get("total"))
            has_more = offset + len(listed) < total if total else len(listed) >= size
            return learn(listed, bool(listed) and has_more)

        body = {**self._about(conversation), "offset": offset, "pageSize": size}
        return self._either(_RECORDS, body, read)

    def rename(self, conversation: str, user: str, title: str) -> Preliminary:
        body = {**self._about(conversation), "customTitle": title}
        return self._either(_RENAME, body, lambda data: None)

    def delete(self, conversation: str, user: str) -> Preliminary:
        return self._either(_DELETE, self._about(conversation), lambda data: None, gone=True)

    def give_feedback(
        self, conversation: str, user: str, message_id: str, feedback: Feedback
    ) -> Preliminary:
        """FastGPT removes what is not sent: a like takes a dislike back."""
        body = {**self._about(conversation), "dataId": message_id}
        if feedback.rating:
            name = "userGoodFeedback" if feedback.rating == "like" else "userBadFeedback"
            body[name] = feedback.comment or records.NO_WORDS

        def learn(reply: UpstreamReply) -> None:
            if "chatItemId is required" in message_of(reply.object()):
                raise NotOffered(_TOO_OLD)
            _good(reply)

        request = self._call("POST", "/core/chat/feedback/updateUserFeedback", body)
        return self._with_message(conversation, message_id, Preliminary(request, learn))

    def suggest(self, conversation: str, user: str, message_id: str) -> Preliminary:
        """FastGPT makes questions for the latest turns, also if they are switched off, which the
        app's settings tell."""
        about = self._about(conversation)
        ask = self._call("POST", "/core/ai/agent/v2/createQuestionGuide", about)

        def learn(reply: UpstreamReply) -> Preliminary | tuple[str, ...]:
            app = as_object(as_object(_good(reply)).get("app"))
            guide = as_object(app.get("chatConfig")).get("questionGuide")
            is_on = guide is True or as_object(guide).get("open") is True
            return Preliminary(ask, _questions) if is_on else ()

        query = urlencode({"appId": about["appId"]})
        settings = Preliminary(self._call("GET", f"/core/chat/init?{query}"), learn)
        return self._with_message(conversation, message_id, settings)

    def _with_message(
        self, conversation: str, message_id: str, then: Preliminary, offset: int = 0
    ) -> Preliminary:
        """`then`, after proof that the conversation has this answer."""

        def learn(items: list[dict[str, Any]], has_more: bool) -> Preliminary:
            if any(i.get("obj") == "AI" and as_id(i.get("dataId")) == message_id for i in items):
                return then
            after = offset + _MAX_PAGE
            if not has_more or after >= _MAX_PAGES * _MAX_PAGE:
                raise MessageNotFound
            return self._with_message(conversation, message_id, then, after)

        if not message_id:
            raise MessageNotFound
        return self._items(conversation, offset, _MAX_PAGE, learn)

    def _about(self, conversation: str) -> dict[str, Any]:
        if not self.app_id:
            raise NotOffered(
                say("FastGPT finds a conversation only by its app: set app_id for this agent.")
            )
        return {"appId": self.app_id, "chatId": conversation}

    def _either(
        self,
        places: tuple[tuple[str, str], tuple[str, str]],
        body: dict[str, Any],
        read: Callable[[Any], Any],
        gone: bool = False,
        is_last: bool = False,
    ) -> Preliminary:
        """A call that older and newer servers have at different places. With `gone` an unknown
        conversation is no error."""
        generation = self._generation
        method, path = places[generation]

        def learn(reply: UpstreamReply) -> Any:
            if not is_last and reply.status in (404, 405) and "code" not in reply.object():
                self._generation = 1 - generation
                return self._either(places, body, read, gone, is_last=True)
            try:
                return read(_good(reply))
            except ConversationNotFound:
                if gone:
                    return None
                raise

        if method == "DELETE":
            query = urlencode(body)
            return Preliminary(self._call(method, f"/core/chat/{path}?{query}"), learn)
        return Preliminary(self._call(method, f"/core/chat/{path}", body), learn)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> UpstreamRequest:
        data = b"" if body is None else dump(body)
        return UpstreamRequest(
            method, self._api + path, self._headers, data, max_reply=history.MAX_REPLY
        )


def _good(reply: UpstreamReply) -> Any:
    """The `data` of a good reply. Raises the error in any other."""
    body = reply.object()
    code = as_count(body.get("code"))
    if reply.status == 200 and code == 200:
        return body.get("data")
    if reply.status == 200 and code == 403:  # up to 4.8.11 no key may do this
        raise NotOffered(_TOO_OLD)
    raise explain(reply)


def _questions(reply: UpstreamReply) -> tuple[str, ...]:
    if reply.status == 404 and "code" not in reply.object():  # before 4.8.16
        raise NotOffered(_TOO_OLD)
    return history.next_questions(_good(reply))
