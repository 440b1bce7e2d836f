"""Conversations of a FastGPT app, from the answers of real servers."""

import json
from typing import Any

import pytest
from conversing import carried, reply, told
from hypothesis import given
from hypothesis import strategies as st
from test_fastgpt_captures import capture

from gateway.errors import (
    ConversationBusy,
    ConversationNotFound,
    GatewayError,
    InvalidRequest,
    MessageNotFound,
    NotOffered,
    UpstreamMisconfigured,
)
from gateway.platforms.base import Preliminary
from gateway.platforms.fastgpt.adapter import FastGPT
from gateway.platforms.fastgpt.options import FastGPTOptions
from gateway.platforms.fastgpt.records import into_turns, older_than, read_turn
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.history import Feedback

VERSIONS = ("4.8.20", "4.9.7", "4.12.2")
APP = "66e1a2b3c4d5e6f708091011"


def fastgpt(**options) -> FastGPT:
    agent = FastGPTOptions(platform="fastgpt", api_key="fastgpt-k", app_id=APP, **options)
    return FastGPT("f", agent, "https://f.test/api")


def captured(version: str, name: str) -> UpstreamReply:
    found = capture(version, name)
    return UpstreamReply(found.status, found.headers, found.body)


def good(data: object) -> UpstreamReply:
    return reply({"code": 200, "statusText": "", "message": "", "data": data})


def human(n: int, text: str = "", **more) -> dict:
    value = [{"type": "text", "text": {"content": text or f"q{n}"}}]
    return {
        "_id": f"{n // 2:08x}{n:016x}",
        "dataId": f"h{n}",
        "obj": "Human",
        "value": value,
        **more,
    }


def ai(n: int, text: str = "", **more) -> dict:
    value = [{"type": "text", "text": {"content": text or f"a{n}"}}]
    return {"_id": f"{n // 2:08x}{n:016x}", "dataId": f"d{n}", "obj": "AI", "value": value, **more}


def talk(turns: int, first: int = 0) -> list[dict]:
    return [item for n in range(first, turns) for item in (human(2 * n), ai(2 * n + 1))]


class Server:
    """Pages of items as FastGPT cuts them: `offset` counts the newer ones."""

    def __init__(self, items: list[dict]) -> None:
        self.items = items
        self.asked = 0

    def answer(self, step: Any) -> Any:
        while isinstance(step, Preliminary):
            self.asked += 1
            body = told(step.request)[3]
            end = max(len(self.items) - body["offset"], 0)
            listed = self.items[max(end - body["pageSize"], 0) : end]
            step = step.learn(good({"list": listed, "total": len(self.items)}))
        return step


@pytest.mark.parametrize("version", VERSIONS)
def test_a_question_and_its_answer_are_a_turn(version):
    page, asked = carried(fastgpt().past_turns("c", "u", "", 10), captured(version, "records"))
    assert told(asked[0]) == (
        "POST",
        "/api/core/chat/getPaginationRecords",
        {},
        {"appId": APP, "chatId": "c", "offset": 0, "pageSize": 22},
    )
    assert page.before == ""
    assert [turn.question for turn in page.turns] == ["短", "历史", "历史 再来", "历史"]
    items = json.loads(captured(version, "records").body)["data"]["list"]
    assert [turn.id for turn in page.turns] == [item["dataId"] for item in items[1::2]]
    first = page.turns[0].data()
    assert (first["answer"], first["reasoning"], first["status"]) == ("好的👌", "", "completed")
    assert abs(first["created"] - int(items[0]["_id"][:8], 16)) < 5
    assert (first["feedback"], first["usage"], first["citations"]) == (None, None, [])


def test_what_a_caller_cut_is_a_turn():
    page, _ = carried(
        fastgpt().past_turns("c", "u", "", 10), captured("4.12.2", "abort_then_records")
    )
    assert page.turns[0].answer == "你好，年假一共 10 天"


def test_the_contracts_sample_without_times():
    items = [
        {"_id": "66f0a1b2c3d4e5f607182a01", "dataId": "h", "obj": "Human",
         "value": [{"text": {"content": "年假几天？"}}]},
        {"_id": "66f0a1b2c3d4e5f607182a02", "dataId": "a", "obj": "AI",
         "value": [{"text": {"content": "一共 10 天年假 🎉。"}}]},
    ]  # fmt: skip
    turn = read_turn(items, True)
    assert (turn.id, turn.question, turn.answer) == ("a", "年假几天？", "一共 10 天年假 🎉。")
    assert turn.created == 0x66F0A1B2


def test_all_parts_of_an_answer():
    value = [
        {"type": "reasoning", "reasoning": {"content": "看手册"}},
        {"type": "text", "text": {"content": "十天[6881f0a1b2c3d4e5f6071829](CITE)。"}},
        {"type": "tool", "tools": [{"toolName": "x"}]},
        {"text": {"content": "还有别的。"}},
        {"type": "interactive", "interactive": {"type": "userSelect", "params": {
            "description": "选一个", "userSelectOptions": [{"key": "1", "value": "甲"}]}}},
    ]  # fmt: skip
    quote = {"sourceName": "手册.pdf", "q": "几天", "a": "十天", "score": [{"value": 0.5}]}
    asked = {"value": [
        {"type": "file", "file": {"type": "image", "name": "a.png", "url": "https://x.test/a"}},
        {"type": "file", "file": {"type": "file", "name": "b.pdf", "url": "data:,x"}},
        {"type": "text", "text": {"content": "看看"}},
    ]}  # fmt: skip
    turn = read_turn([human(1) | asked, ai(2) | {"value": value, "totalQuoteList": [quote]}], True)
    assert turn.answer == "十天。\n还有别的。\n\n选一个\n1. 甲"
    assert (turn.reasoning, turn.status) == ("看手册", "waiting")
    assert turn.citations == ({"title": "手册.pdf", "text": "几天\n十天", "score": 0.5},)
    assert [(f.kind, f.name, f.url) for f in turn.files] == [
        ("image", "a.png", "https://x.test/a"),
        ("file", "b.pdf", ""),
    ]


def test_thinking_in_the_text_is_reasoning():
    turn = read_turn([human(1), ai(2, "<think>嗯</think>好")], True)
    assert (turn.answer, turn.reasoning) == ("好", "嗯")


@pytest.mark.parametrize(
    ("items", "is_latest", "status"),
    [
        ([human(1), ai(2)], True, "completed"),
        ([human(1)], True, "running"),
        ([human(1)], False, "failed"),
        ([ai(2)], True, "completed"),
        ([human(1), ai(2) | {"value": []}], True, "failed"),
        ([human(1), ai(2) | {"value": [{"text": {"content": ""}}]}], True, "failed"),
        ([human(1), ai(2) | {"value": [{"tools": [{"id": "t"}]}]}], True, "completed"),
        ([human(1), ai(2, errorMsg="429 Rate limit")], True, "failed"),
    ],
)
def test_the_status_of_a_turn(items, is_latest, status):
    assert read_turn(items, is_latest).status == status


def test_an_answered_question_of_the_bot_waits_no_more():
    asks = {"description": "?", "userSelectOptions": [{"value": "甲"}]}
    asked = {"value": [{"interactive": {"type": "userSelect", "params": asks}}]}
    assert read_turn([human(1), ai(2) | asked], True).status == "waiting"
    assert read_turn([human(1), ai(2) | asked], False).status == "completed"
    asks["userSelectedVal"] = "甲"
    assert read_turn([human(1), ai(2) | asked], True).status == "completed"


def test_a_failed_turn_says_why():
    assert read_turn([human(1), ai(2, errorMsg="429 Rate limit")], True).error == (
        "HTTP 429 Rate limit"
    )


def test_a_hidden_question_is_not_shown():
    assert read_turn([human(1, hideInUI=True), ai(2)], True).question == ""


@pytest.mark.parametrize(
    ("members", "feedback"),
    [
        ({"userGoodFeedback": "yes"}, Feedback("like")),
        ({"userGoodFeedback": "清楚"}, Feedback("like", "清楚")),
        ({"userBadFeedback": "不够详细"}, Feedback("dislike", "不够详细")),
        ({"userBadFeedback": ""}, None),
        ({"userGoodFeedback": None, "userBadFeedback": 5}, None),
    ],
)
def test_feedback_is_read_back(members, feedback):
    assert read_turn([human(1), ai(2, **members)], True).feedback == feedback


# Pages.


@given(
    turns=st.integers(0, 30), lone=st.sets(st.integers(0, 60), max_size=8), limit=st.integers(1, 12)
)
def test_pages_give_every_turn_once_and_in_order(turns, lone, limit):
    """`lone` are items that are missing: lone questions and answers."""
    items = [item for at, item in enumerate(talk(turns)) if at not in lone]
    server, pages, before = Server(items), [], ""
    while items:
        page = server.answer(fastgpt().past_turns("c", "u", before, limit))
        assert 0 < len(page.turns) <= limit
        pages.append(page.turns)
        before = page.before
        if not before:
            break
    shown = [turn for page in reversed(pages) for turn in page]
    assert [(turn.question, turn.id) for turn in shown] == [
        (read_turn(turn, True).question, read_turn(turn, True).id) for turn in into_turns(items)
    ]


@given(more=st.integers(0, 40), limit=st.integers(1, 8))
def test_a_conversation_that_goes_on_repeats_nothing(more, limit):
    server = Server(talk(20))
    page = server.answer(fastgpt().past_turns("c", "u", "", limit))
    server.items = talk(20 + more)
    older = server.answer(fastgpt().past_turns("c", "u", page.before, limit))
    ids = [turn.id for turn in (*older.turns, *page.turns)]
    newest = [item["dataId"] for item in talk(20) if item["obj"] == "AI"]
    assert ids == newest[-len(ids) :]
    assert len(ids) > limit


def test_a_page_that_moved_out_of_sight_is_skipped_by_its_time():
    old, new = f"{1:08x}" + "0" * 16, f"{9:08x}" + "f" * 16
    assert older_than([{"_id": new}], old) == []
    assert older_than([{"_id": old}], new) == [{"_id": old}]
    assert older_than([{"dataId": "x"}], new) == [{"dataId": "x"}]


@pytest.mark.parametrize("before", ["x", "-1.a", "1e3.a", "99999999999.a", ".a", "١.a"])
def test_another_cursor_is_400(before):
    with pytest.raises(InvalidRequest) as raised:
        fastgpt().past_turns("c", "u", before, 5)
    assert raised.value.param == "before"


MEMBERS = (
    "_id dataId obj value time hideInUI text reasoning content interactive params file type url "
    "name tools totalQuoteList score q a responseData errorMsg userGoodFeedback list total"
).split()
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "AI", "Human"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.sampled_from(MEMBERS), ODD), min_size=1, max_size=4) | ODD)
def test_items_of_any_type_never_raise(listed):
    step = fastgpt().past_turns("c", "u", "", 5)
    try:
        page = step.learn(good({"list": listed}))
    except ConversationNotFound:
        assert not listed or not isinstance(listed, list)
        return
    assert isinstance(page, Preliminary) or json.dumps(page.data())


# The other calls.

RECORDS = good({"list": [human(1), ai(2)], "total": 2})


def calls(platform: FastGPT, message: str = "d2") -> dict:
    return {
        "past_turns": lambda: platform.past_turns("c", "u", "", 20),
        "rename": lambda: platform.rename("c", "u", "t"),
        "delete": lambda: platform.delete("c", "u"),
        "feedback": lambda: platform.give_feedback("c", "u", message, Feedback("like")),
        "suggest": lambda: platform.suggest("c", "u", message),
    }


CALLS = sorted(calls(fastgpt()))


@pytest.mark.parametrize("version", VERSIONS)
def test_rename_and_delete(version):
    result, asked = carried(fastgpt().rename("c", "u", "新"), captured(version, "update_history"))
    assert result is None
    body = {"appId": APP, "chatId": "c", "customTitle": "新"}
    assert told(asked[0]) == ("POST", "/api/core/chat/updateHistory", {}, body)
    result, asked = carried(fastgpt().delete("c&", "u"), captured(version, "del_history"))
    assert result is None
    query = {"appId": APP, "chatId": "c&"}
    assert told(asked[0]) == ("DELETE", "/api/core/chat/delHistory", query, None)


def test_a_server_that_has_moved_its_calls_is_remembered():
    page = UpstreamReply(404, {"Content-Type": "text/html"}, b"<!DOCTYPE html>")
    platform = fastgpt()
    _, asked = carried(platform.rename("c", "u", "新"), page, good(None))
    assert told(asked[1])[:2] == ("PUT", "/api/core/chat/history/updateHistory")
    _, asked = carried(platform.delete("c", "u"), good(None))
    assert told(asked[0])[:2] == ("DELETE", "/api/core/chat/history/delHistory")
    _, asked = carried(platform.past_turns("c", "u", "", 1), RECORDS)
    assert told(asked[0])[:2] == ("POST", "/api/core/chat/record/getPaginationRecords")


def test_an_address_without_these_calls_is_the_operators():
    page = UpstreamReply(404, {"Content-Type": "text/html"}, b"<!DOCTYPE html>")
    with pytest.raises(UpstreamMisconfigured):
        carried(fastgpt().rename("c", "u", "新"), page, page)


def test_a_conversation_that_is_gone_is_deleted():
    gone = reply({"code": 504000, "statusText": "unAuthChat", "message": "x", "data": None}, 500)
    assert carried(fastgpt().delete("c", "u"), gone)[0] is None


@pytest.mark.parametrize(
    ("feedback", "sent"),
    [
        (Feedback("like"), {"userGoodFeedback": "yes"}),
        (Feedback("like", "好", ("清楚",)), {"userGoodFeedback": "清楚\n好"}),
        (Feedback("dislike"), {"userBadFeedback": "yes"}),
        (Feedback("dislike", "错"), {"userBadFeedback": "错"}),
        (Feedback(None, "x"), {}),
    ],
)
def test_feedback_sends_one_side_or_none(feedback, sent):
    step = fastgpt().give_feedback("c", "u", "d2", feedback)
    result, asked = carried(step, RECORDS, captured("4.12.2", "feedback_like"))
    assert result is None
    body = {"appId": APP, "chatId": "c", "dataId": "d2", **sent}
    assert told(asked[1]) == ("POST", "/api/core/chat/feedback/updateUserFeedback", {}, body)


@pytest.mark.parametrize("message", ["", "d9", "h1"])
@pytest.mark.parametrize("call", ["feedback", "suggest"])
def test_a_message_that_is_no_answer_of_the_conversation_is_404(call, message):
    with pytest.raises(MessageNotFound):
        carried(calls(fastgpt(), message)[call](), RECORDS)


def test_an_old_answer_is_found_within_five_pages():
    server = Server(talk(400))
    step = fastgpt().give_feedback("c", "u", "d101", Feedback("like"))
    with pytest.raises(MessageNotFound):
        server.answer(step)
    assert server.asked == 5
    items, far = server.items, fastgpt().suggest("c", "u", "d401")
    for offset in range(0, 400, 100):
        assert told(far.request)[3]["offset"] == offset
        listed = items[len(items) - offset - 100 : len(items) - offset]
        far = far.learn(good({"list": listed, "total": len(items)}))
    assert "/core/chat/init" in far.request.url


def settings(guide: object) -> UpstreamReply:
    return good({"app": {"chatConfig": {"questionGuide": guide}}})


@pytest.mark.parametrize("guide", [True, {"open": True}])
def test_suggestions(guide):
    step = fastgpt().suggest("c", "u", "d2")
    result, asked = carried(step, RECORDS, settings(guide), good(["一？", 5, "二？"]))
    assert result == ("一？", "二？")
    assert told(asked[1])[1:3] == ("/api/core/chat/init", {"appId": APP})
    assert told(asked[2])[1] == "/api/core/ai/agent/v2/createQuestionGuide"
    assert told(asked[2])[3] == {"appId": APP, "chatId": "c"}


@pytest.mark.parametrize("guide", [False, {"open": False}, None, "x"])
def test_suggestions_that_are_switched_off_cost_no_model_call(guide):
    assert carried(fastgpt().suggest("c", "u", "d2"), RECORDS, settings(guide))[0] == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_suggestions_of_a_real_server(version):
    step, init = fastgpt().suggest("c", "u", "d2"), captured(version, "init")
    assert carried(step, RECORDS, init)[0] == ()
    step = fastgpt().suggest("c", "u", "d2")
    guide = captured(version, "question_guide_v2")
    assert carried(step, RECORDS, settings(True), guide)[0] == ()


# Refusals.


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_is_too_old_offers_nothing(call):
    with pytest.raises(NotOffered):
        calls(fastgpt())[call]().learn(captured("4.8.11", "records"))


def test_feedback_of_an_old_server_is_not_offered():
    with pytest.raises(NotOffered):
        carried(calls(fastgpt())["feedback"](), RECORDS, captured("4.8.11", "feedback_like"))


def test_suggestions_of_an_old_server_are_not_offered():
    with pytest.raises(NotOffered):
        carried(
            fastgpt().suggest("c", "u", "d2"),
            RECORDS,
            settings(True),
            captured("4.8.11", "question_guide_v2"),
        )


@pytest.mark.parametrize("call", CALLS)
def test_without_an_app_nothing_is_offered(call):
    agent = FastGPTOptions(platform="fastgpt", api_key="fastgpt-k")
    with pytest.raises(NotOffered, match="app_id"):
        calls(FastGPT("f", agent, "https://f.test"))[call]()


@pytest.mark.parametrize("call", ["make_title", "clear"])
def test_titles_and_clearing_are_not_offered(call):
    with pytest.raises(NotOffered, match="FastGPT cannot"):
        getattr(fastgpt(), call)("c", "u")


@pytest.mark.parametrize("call", ["past_turns", "feedback", "suggest"])
def test_a_conversation_without_items_is_404(call):
    with pytest.raises(ConversationNotFound):
        calls(fastgpt())[call]().learn(good({"list": [], "total": 0}))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (captured("4.12.2", "histories_bad_key"), UpstreamMisconfigured),
        (reply({"code": 514, "message": "x"}), UpstreamMisconfigured),
        (reply({"code": 504001, "message": "x"}, 500), ConversationBusy),
        (reply({"code": 502000, "message": "appUnExist"}), UpstreamMisconfigured),
        (UpstreamReply(502, {}, b"<html>"), GatewayError),
        (UpstreamReply(200, {}, b"<html>"), GatewayError),
    ],
)
@pytest.mark.parametrize("call", CALLS)
def test_a_refusal_is_its_error(call, answer, error):
    with pytest.raises(error) as raised:
        calls(fastgpt())[call]().learn(answer)
    assert raised.value.outage is (answer.status == 502)


@pytest.mark.parametrize("call", ["past_turns", "rename", "feedback", "suggest"])
def test_a_conversation_of_another_member_is_404(call):
    foreign = reply({"code": 504000, "statusText": "unAuthChat", "message": "x"}, 500)
    with pytest.raises(ConversationNotFound):
        calls(fastgpt())[call]().learn(foreign)
