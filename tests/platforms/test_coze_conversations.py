"""Conversations of Coze, from the contract's samples; the lists are cut as Coze cuts them."""

import json
from typing import Any

import pytest
from conversing import carried, reply, told
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    MessageNotFound,
    NotOffered,
    UpstreamMisconfigured,
)
from gateway.platforms.base import Preliminary
from gateway.platforms.coze.adapter import Coze
from gateway.platforms.coze.messages import into_turns, older_than, read_turn
from gateway.platforms.coze.options import CozeOptions
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.history import Feedback
from gateway.protocol.messages import Usage

ANSWER = {
    "id": "7553288800000000012", "conversation_id": "7553288800000000002",
    "chat_id": "7553288800000000001", "role": "assistant", "type": "answer",
    "content": "每年 10 天 🏖️。", "content_type": "text", "meta_data": {},
    "created_at": 1795312803, "updated_at": "1795312804",
}  # fmt: skip
QUESTION = {
    **ANSWER, "id": "7553288800000000011", "role": "user", "type": "question",
    "content": "年假几天？", "created_at": "1795312801",
}  # fmt: skip
WITH_PICTURE = {
    **QUESTION, "id": "7553288800000000009", "chat_id": "", "type": "", "created_at": 1795312700,
    "content": '[{"type":"text","text":"看看这张图"},{"type":"image","file_id":"7553"}]',
    "content_type": "object_string",
}  # fmt: skip
STUDIO = {
    **ANSWER, "meta_data": {"token": "58", "input_tokens": "52", "output_tokens": "6"},
    "reasoning_content": "看手册",
}  # fmt: skip


def coze(**options: Any) -> Coze:
    agent = {"platform": "coze", "api_key": "pat_k", "bot_id": "7", **options}
    return Coze("c", CozeOptions(**agent), "https://c.test")


def good(data: object = None, **more: object) -> UpstreamReply:
    return reply({"code": 0, "msg": "", "data": data, **more})


def listing(*newest_first: dict, **more: object) -> UpstreamReply:
    ids = [message["id"] for message in newest_first]
    ends = {"first_id": ids[0], "last_id": ids[-1]} if ids else {}
    return good(list(newest_first), **{"has_more": False, **ends, **more})


def asked(n: int, chat: int) -> dict:
    return {**QUESTION, "id": str(n), "chat_id": str(chat), "content": f"q{n}"}


def said(n: int, chat: int) -> dict:
    return {**ANSWER, "id": str(n), "chat_id": str(chat), "content": f"a{n}"}


class Server:
    """Pages of a conversation, whose cursors count by time or by the order of the list."""

    def __init__(self, oldest_first: list[dict], pages_by: str) -> None:
        self.messages = oldest_first
        self.older = "before_id" if pages_by == "time" else "after_id"
        self.asked = 0

    def answer(self, step: Any) -> Any:
        while isinstance(step, Preliminary):
            self.asked += 1
            body = told(step.request)[3]
            if body is None:  # the state of a chat
                return step.learn(good({"status": "in_progress"}))
            found = self.messages[::-1]
            ids = [message["id"] for message in found]
            older = body.get(self.older)
            newer = body.get("after_id" if self.older == "before_id" else "before_id")
            if older:
                found = found[ids.index(older) + 1 :]
                page = found[:50]
            else:
                found = found[: ids.index(newer)] if newer else found
                page = found[-50:] if newer else found[:50]
            step = step.learn(listing(*page, has_more=len(found) > len(page)))
        return step


# One page.


def test_the_messages_of_a_chat_are_a_turn():
    step = coze().past_turns("75&", "u", "", 20)
    page, requests = carried(step, listing(ANSWER, QUESTION, WITH_PICTURE))
    assert told(requests[0]) == (
        "POST",
        "/v1/conversation/message/list",
        {"conversation_id": "75&"},
        {"order": "desc", "limit": 50},
    )
    picture, turn = (turn.data() for turn in page.turns)
    assert (turn["id"], turn["created"]) == (ANSWER["chat_id"], 1795312801)
    assert (turn["question"], turn["answer"]) == ("年假几天？", "每年 10 天 🏖️。")
    assert (turn["status"], turn["usage"], turn["feedback"]) == ("completed", None, None)
    assert (picture["id"], picture["question"]) == ("", "看看这张图")
    assert [file["type"] for file in picture["files"]] == ["image"]
    assert picture["status"] == "failed"
    assert page.before == ""


def test_several_answers_of_a_chat_are_joined():
    second = {**ANSWER, "id": "7553288800000000013", "content": "还有病假。"}
    follow_up = {**ANSWER, "id": "7553288800000000014", "type": "follow_up", "content": "？"}
    verbose = {**ANSWER, "id": "7553288800000000015", "type": "verbose", "content": "{}"}
    turns = into_turns([QUESTION, verbose, ANSWER, second, follow_up])
    assert len(turns) == 1
    turn = read_turn(turns[0])
    assert (turn.id, turn.answer) == (ANSWER["chat_id"], "每年 10 天 🏖️。\n\n还有病假。")


def test_messages_written_by_hand_are_paired_by_role():
    by_hand = {"chat_id": "0", "type": ""}
    messages = [
        {**QUESTION, **by_hand, "id": "1", "content": "q1"},
        {**ANSWER, **by_hand, "id": "2", "content": "a1"},
        {**ANSWER, **by_hand, "id": "3", "content": "a2"},
        {**QUESTION, **by_hand, "id": "4", "content": "q2"},
        {**QUESTION, **by_hand, "id": "5", "content": "q3"},
        {**ANSWER, **by_hand, "id": "6", "content": "a3"},
    ]
    turns = [read_turn(turn) for turn in into_turns(messages)]
    pairs = [(turn.question, turn.answer, turn.id) for turn in turns]
    assert pairs == [("q1", "a1", "2"), ("", "a2", "3"), ("q2", "", ""), ("q3", "a3", "6")]


def test_what_coze_studio_adds_to_an_answer():
    turn = read_turn([QUESTION, STUDIO])
    assert (turn.reasoning, turn.usage) == ("看手册", Usage(52, 6, 58))


def test_files_of_a_question_and_an_answer():
    items = [
        {"type": "file", "file_url": "https://x.test/a.pdf", "name": "a.pdf"},
        {"type": "audio"},
    ]
    made = [{"type": "text", "text": "给你"}, {"type": "image", "file_url": "https://x.test/b.png"}]
    turn = read_turn([
        {**WITH_PICTURE, "content": json.dumps(items)},
        {**ANSWER, "content_type": "object_string", "content": json.dumps(made)},
    ])  # fmt: skip
    assert (turn.question, turn.answer) == ("", "给你")
    assert [(file.kind, file.url, file.belongs_to) for file in turn.files] == [
        ("file", "https://x.test/a.pdf", "question"),
        ("audio", "", "question"),
        ("image", "https://x.test/b.png", "answer"),
    ]


def test_a_turn_has_the_id_that_its_stream_had():
    assert read_turn([QUESTION, ANSWER]).id == ANSWER["chat_id"]


def test_without_a_chat_a_turn_has_the_id_of_its_text():
    answer = {**ANSWER, "chat_id": ""}
    made = {**answer, "id": "9", "content_type": "object_string", "content": "[]"}
    assert read_turn([QUESTION, answer, made]).id == ANSWER["id"]
    assert read_turn([QUESTION, made]).id == "9"


@pytest.mark.parametrize(
    ("chat", "status", "error"),
    [
        ({"status": "in_progress"}, "running", ""),
        ({"status": "created"}, "running", ""),
        (
            {"status": "failed", "last_error": {"code": 5000, "msg": "it broke"}},
            "failed",
            "it broke",
        ),
        ({"status": "requires_action"}, "waiting", ""),
        ({"status": "required_action"}, "waiting", ""),
        ({"status": "canceled", "last_error": {"msg": "x"}}, "stopped", ""),
        ({"status": "conversation.chat.cancelled"}, "stopped", ""),
        ({"status": 5}, "failed", ""),
        (None, "failed", ""),
    ],
)
def test_a_question_without_an_answer_has_its_chats_status(chat, status, error):
    step = coze().past_turns("75", "u", "", 20)
    page, requests = carried(step, listing(QUESTION), good(chat))
    assert (page.turns[0].status, page.turns[0].error) == (status, error)
    query = {"conversation_id": "75", "chat_id": "7553288800000000001"}
    assert told(requests[1])[:3] == ("GET", "/v3/chat/retrieve", query)


def test_an_empty_conversation_is_an_empty_page():
    for empty in (good([]), good(None), reply({"code": 0, "msg": ""})):
        page, _ = carried(coze().past_turns("75", "u", "", 20), empty)
        assert page.data() == {"turns": [], "before": ""}


# Pages.

CHATS = st.lists(st.integers(1, 4), min_size=1, max_size=40)  # answers of each chat


def conversation(chats: list[int], first: int = 1000) -> list[dict]:
    out: list[dict] = []
    for chat, answers in enumerate(chats):
        for n in range(answers + 1):
            out.append((said if n else asked)(first + len(out), 10**6 + chat))
    return out


@given(chats=CHATS, limit=st.integers(1, 30), pages_by=st.sampled_from(["time", "list"]))
def test_pages_give_every_turn_whole_and_once(chats, limit, pages_by):
    platform, server = coze(), Server(conversation(chats), pages_by)
    pages, before = [], ""
    while True:
        page = server.answer(platform.past_turns("75", "u", before, limit))
        assert 0 < len(page.turns) <= limit
        pages.append(page.turns)
        before = page.before
        if not before:
            break
    shown = [turn for page in reversed(pages) for turn in page]
    assert shown == [read_turn(turn) for turn in into_turns(server.messages)]


@given(
    chats=st.lists(st.integers(1, 4), min_size=25, max_size=40),
    later=CHATS,
    limit=st.integers(1, 30),
    pages_by=st.sampled_from(["time", "list"]),
)
def test_a_conversation_that_goes_on_repeats_nothing(chats, later, limit, pages_by):
    server = Server(conversation(chats), pages_by)
    page = server.answer(coze().past_turns("75", "u", "", limit))
    if not page.before:
        return
    before = len(server.messages)
    server.messages = conversation([*chats, *later])
    older = server.answer(coze().past_turns("75", "u", page.before, limit))  # another process
    turns = [read_turn(turn) for turn in into_turns(server.messages[:before])]
    shown = [*older.turns, *page.turns]
    assert shown == turns[-len(shown) :]
    assert older.turns


@given(st.permutations([chat for chat in range(4) for _ in range(3)]))
def test_chats_whose_messages_mix_stay_apart(order):
    kinds = {chat: iter((asked, said, said)) for chat in range(4)}
    mixed = [next(kinds[chat])(100 + n, 10 + chat) for n, chat in enumerate(order)]
    turns = into_turns(mixed)
    assert [len(turn) for turn in turns] == [3, 3, 3, 3]
    assert all(len({message["chat_id"] for message in turn}) == 1 for turn in turns)
    assert [turn[0]["chat_id"] for turn in turns] == [str(10 + c) for c in dict.fromkeys(order)]


def test_a_chat_longer_than_a_page_ends_with_the_second():
    server = Server(conversation([120]), "time")
    page = server.answer(coze().past_turns("75", "u", "", 5))
    assert server.asked == 2
    assert len(page.turns) == 1
    rest = server.answer(coze().past_turns("75", "u", page.before, 5))
    assert rest.turns[0].question == "q1000"


@pytest.mark.parametrize("before", ["x", "c1.2", "b.", "b1", ".", "b1.2/3", "b١.2", "b1.2\n"])
def test_another_cursor_is_400(before):
    with pytest.raises(InvalidRequest) as raised:
        coze().past_turns("75", "u", before, 5)
    assert raised.value.param == "before"


def test_messages_that_moved_are_left_out_by_their_id():
    listed = [asked(5, 1), said(6, 1), asked(8, 2)]
    assert older_than(listed, "6") == listed[:1]
    assert older_than(listed, "7") == listed[:2]
    assert older_than(listed, "5x") == listed
    assert older_than(listed, "") == listed


MEMBERS = "id chat_id role type content content_type meta_data created_at reasoning_content".split()
WORDS = ["", "answer", "question", "user", "assistant", "object_string", "text", "[{}]", "[[5]]"]
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from(MEMBERS), ODD) | ODD, max_size=5) | ODD, ODD)
def test_messages_of_any_type_never_raise(data, last):
    step = coze().past_turns("75", "u", "", 5).learn(good(data, has_more=True, last_id=last))
    assert isinstance(step, Preliminary) or json.dumps(step.data())


# The other calls.


def calls(platform: Coze, message: str = ANSWER["id"]) -> dict:
    return {
        "past_turns": lambda: platform.past_turns("75/", "u", "", 20),
        "rename": lambda: platform.rename("75/", "u", "新" * 101),
        "delete": lambda: platform.delete("75/", "u"),
        "clear": lambda: platform.clear("75/", "u"),
        "feedback": lambda: platform.give_feedback("75/", "u", message, Feedback("like")),
        "suggest": lambda: platform.suggest("75/", "u", message),
    }


CALLS = sorted(calls(coze()))


@pytest.mark.parametrize(
    ("call", "method", "path", "body"),
    [
        ("rename", "PUT", "/v1/conversations/75%2F", {"name": "新" * 100}),
        ("delete", "DELETE", "/v1/conversations/75%2F", None),
        ("clear", "POST", "/v1/conversations/75%2F/clear", {}),
    ],
)
def test_calls_on_a_conversation(call, method, path, body):
    result, requests = carried(calls(coze())[call](), good({"id": "75"}))
    assert result is None
    assert told(requests[0]) == (method, path, {}, body)
    assert requests[0].headers["Authorization"] == "Bearer pat_k"


@pytest.mark.parametrize("code", [4001, 4002, 103000001, 103000002])
def test_a_conversation_that_is_gone_is_deleted(code):
    assert carried(coze().delete("75", "u"), reply({"code": code, "msg": "x"}))[0] is None


def test_feedback_is_that_of_the_contract():
    opinion = Feedback("dislike", "没有写病假。", ("不够详细",))
    step = coze().give_feedback("75", "u", ANSWER["id"], opinion)
    result, requests = carried(step, listing(ANSWER, QUESTION), good())
    assert result is None
    method, path, _, body = told(requests[1])
    assert (method, path) == ("POST", f"/v1/conversations/75/messages/{ANSWER['id']}/feedback")
    assert body == {
        "feedback_type": "unlike", "reason_types": ["不够详细"], "comment": "没有写病假。",
    }  # fmt: skip


def test_the_id_of_a_chat_means_its_latest_answer_of_text():
    second = {**ANSWER, "id": "7553288800000000013"}
    picture = {**ANSWER, "id": "7553288800000000014", "content_type": "object_string"}
    step = coze().give_feedback("75", "u", ANSWER["chat_id"], Feedback("like"))
    _, requests = carried(step, listing(picture, second, ANSWER, QUESTION), good())
    assert told(requests[1])[1] == "/v1/conversations/75/messages/7553288800000000013/feedback"


def test_feedback_is_cut_to_cozes_limits():
    opinion = Feedback("like", "字" * 300, tuple(f"{n}" + "因" * 40 for n in range(12)))
    step = coze().give_feedback("75", "u", ANSWER["id"], opinion)
    body = told(carried(step, listing(ANSWER), good())[1][1])[3]
    assert (len(body["comment"]), body["feedback_type"]) == (250, "like")
    assert [len(reason) for reason in body["reason_types"]] == [30] * 10


def test_feedback_is_taken_back():
    step = coze().give_feedback("75", "u", ANSWER["id"], Feedback(None, "x"))
    result, requests = carried(step, listing(ANSWER), good())
    assert result is None
    assert told(requests[1])[0] == "DELETE"
    assert requests[1].body == b""


def test_suggestions_are_among_the_messages_of_the_chat():
    follow_ups = [{**ANSWER, "type": "follow_up", "content": text} for text in ("一？", "二？")]
    step = coze().suggest("75", "u", ANSWER["id"])
    result, requests = carried(step, listing(ANSWER, QUESTION), good([ANSWER, *follow_ups]))
    assert result == ("一？", "二？")
    query = {"conversation_id": "75", "chat_id": "7553288800000000001"}
    assert told(requests[1])[:3] == ("GET", "/v3/chat/message/list", query)


@pytest.mark.parametrize("answer", [good([ANSWER]), good(None), reply({"code": 0})])
def test_a_bot_that_suggests_nothing_gives_none(answer):
    assert carried(coze().suggest("75", "u", ANSWER["id"]), listing(ANSWER), answer)[0] == ()


def test_a_message_written_by_hand_has_no_suggestions():
    step = coze().suggest("75", "u", "9")
    assert carried(step, listing({**ANSWER, "id": "9", "chat_id": ""}))[0] == ()


@pytest.mark.parametrize("call", ["feedback", "suggest"])
@pytest.mark.parametrize("message", ["", "1", QUESTION["id"]])
def test_a_message_that_is_no_answer_of_the_conversation_is_404(call, message):
    with pytest.raises(MessageNotFound):
        carried(calls(coze(), message)[call](), listing(ANSWER, QUESTION))


@pytest.mark.parametrize("pages_by", ["time", "list"])
def test_an_old_answer_is_found_within_five_pages(pages_by):
    server = Server(conversation([1] * 200), pages_by)
    with pytest.raises(MessageNotFound):
        server.answer(coze().suggest("75", "u", "1001"))
    platform, server = coze(), Server(conversation([1] * 60), pages_by)
    step = platform.suggest("75", "u", "1001")
    while "conversation/message/list" in step.request.url:
        body = told(step.request)[3]
        found = server.messages[::-1]
        ids = [message["id"] for message in found]
        older = body.get(server.older)
        rest = found[ids.index(older) + 1 :] if older else found[: 50 if len(body) == 2 else 49]
        page = rest[:50]
        more = page[-1]["id"] != "1000"
        step = step.learn(listing(*page, has_more=more))
    assert "/v3/chat/message/list" in step.request.url


# Refusals, and the token.


@pytest.mark.parametrize("code", [4001, 4002, "4002", 103000001, 103000002])
@pytest.mark.parametrize("call", ["past_turns", "rename", "clear", "feedback", "suggest"])
def test_an_unknown_conversation_is_404(call, code):
    with pytest.raises(ConversationNotFound):
        calls(coze())[call]().learn(reply({"code": code, "msg": "not found"}))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply({"code": 4101, "msg": "no scope"}), UpstreamMisconfigured),
        (reply({"code": 4100, "msg": "token"}, 401), UpstreamMisconfigured),
        (reply({"code": 4000, "msg": "bad"}), InvalidRequest),
        (reply({"code": 5000, "msg": "internal"}), GatewayError),
        (UpstreamReply(502, {}, b"<html>"), GatewayError),
        (UpstreamReply(200, {}, b"<html>"), GatewayError),
        (reply([]), GatewayError),
    ],
)
@pytest.mark.parametrize("call", CALLS)
def test_a_refusal_is_its_error(call, answer, error):
    with pytest.raises(error) as raised:
        calls(coze())[call]().learn(answer)
    assert raised.value.outage is (answer.status == 502)


def test_coze_studio_has_no_feedback():
    missing = reply({"code": 700012006, "msg": "missing session_key in cookie"}, 401)
    with pytest.raises(NotOffered, match="Studio"):
        carried(calls(coze())["feedback"](), listing(ANSWER), missing)


def test_titles_are_not_offered():
    with pytest.raises(NotOffered, match="Coze cannot make a title"):
        coze().make_title("75", "u")


@pytest.fixture(scope="module")
def private_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@pytest.mark.parametrize("call", CALLS)
def test_an_oauth_token_is_fetched_and_renewed_once(call, private_key):
    oauth = {"app_id": "a", "key_id": "k", "private_key": private_key}
    platform = coze(api_key="", oauth=oauth)
    step = calls(platform)[call]()
    expired = reply({"code": 4100, "msg": "expired"}, 401)
    for token in ("czs_one", "czs_two"):
        assert step.shared
        assert step.request.url.endswith("/api/permission/oauth2/token")
        step = step.learn(reply({"access_token": token, "expires_in": 900}))
        assert step.request.headers["Authorization"] == f"Bearer {token}"
        if token == "czs_one":
            step = step.learn(expired)
    with pytest.raises(UpstreamMisconfigured):
        step.learn(expired)
