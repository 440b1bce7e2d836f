"""Conversations held through the gateway, and what the simulators then tell of them."""

from typing import Any

import aiohttp
import orjson
import pytest
from conftest import AGENTS, Script
from test_dify_captures import FOLDER, read_capture
from test_fastgpt_captures import capture

from gateway.chat.steps import resolve
from gateway.errors import ConversationNotFound, MessageNotFound, NotOffered
from gateway.http.context import STATE, UPSTREAM
from gateway.protocol.history import Feedback, Page

APP = "66f0a1b2c3d4e5f6071829ff"
ALL_AGENTS = {
    **AGENTS,
    "fastgpt": {**AGENTS["fastgpt"], "app_id": APP},
    "ragflow": {"platform": "ragflow", "api_key": "ragflow-key", "chat_id": "c"},
    "ragflow agent": {"platform": "ragflow", "api_key": "ragflow-key", "agent_id": "a"},
}
# The simulators' variants: (name of the agent, options of the simulator).
VARIANTS = [
    ("dify", {"suggests": True}),
    ("dify", {"mode": "advanced-chat", "suggests": True}),
    ("fastgpt", {"suggests": True}),
    ("fastgpt", {"suggests": True, "has_moved": True}),
    ("coze", {}),
    ("coze", {"pages_by": "list"}),
]
RAGFLOWS = [("ragflow", {}), ("ragflow", {"version": "cumulative"}), ("ragflow agent", {})]
KINDS = pytest.mark.parametrize(("name", "options"), [*VARIANTS, *RAGFLOWS])
RATED = pytest.mark.parametrize(("name", "options"), VARIANTS)  # which also suggest


class Talk:
    """A conversation of one agent, through the gateway."""

    def __init__(self, gw: Any, served: Any, name: str) -> None:
        self.gw, self.demo, self.name, self.id = gw, served.demo, name, ""
        self.message_id = ""  # as the latest answer has it

    async def ask(self, question: str, **body: Any) -> dict[str, Any]:
        """The `message` of the answer, with `reasoning_content` if there is one."""
        more = {"conversation_id": self.id} if self.id else {}
        answer = await self.gw.chat(self.name, question, user="u-1", **more, **body)
        whole = await answer.json()
        self.message_id = whole.get("gateway", {}).get("message_id", "")
        self.id = whole.get("gateway", {}).get("conversation_id") or self.id
        return whole["choices"][0]["message"] if "choices" in whole else whole

    async def call(self, name: str, *args: Any, talk: str = "", user: str = "u-1") -> Any:
        target = self.gw.app[STATE].now.routing.targets[self.name]
        step = getattr(target.platform, name)(talk or self.id, user, *args)
        return await resolve(self.gw.app[UPSTREAM], target, step)

    async def page(self, before: str = "", limit: int = 20) -> Page:
        return await self.call("past_turns", before, limit)


@pytest.fixture
def talk_with(gateway, demo):
    async def start(name: str, **options: Any) -> Talk:
        agent = ALL_AGENTS[name]
        served = await demo(agent["platform"], key=agent["api_key"], **options)
        gw = await gateway(agents={"bot": {**agent, "base_url": served.url}})
        return Talk(gw, served, "bot")

    return start


@KINDS
async def test_past_turns_show_what_was_said(talk_with, name, options):
    talk, said = await talk_with(name, **options), []
    questions = ["你好", "#think 为什么？", "Third question"]
    for question in questions:
        said.append(await talk.ask(question))
    turns = (await talk.page()).turns
    assert [turn.question for turn in turns] == questions
    assert [turn.answer for turn in turns] == [message["content"].strip() for message in said]
    reasoning = [message.get("reasoning_content") or "" for message in said]
    assert [turn.reasoning for turn in turns] == [text.strip() for text in reasoning]
    assert bool(turns[1].reasoning)
    assert {turn.status for turn in turns} == {"completed"}
    has_ids = options != {"version": "cumulative"}
    assert len({turn.id for turn in turns} - {""}) == (3 if has_ids else 0)
    assert not has_ids or all(
        abs(turn.created - talk.demo.talks.items()[0][1].created) < 60 for turn in turns
    )


@KINDS
async def test_pages_go_back_to_the_beginning(talk_with, name, options):
    talk, pages, before = await talk_with(name, **options), [], ""
    for n in range(30):
        await talk.ask(f"q{n}")
    while not pages or before:
        page = await talk.page(before, 7)
        pages.insert(0, page.turns)
        before = page.before
    assert [turn.question for page in pages for turn in page] == [f"q{n}" for n in range(30)]


@RATED
async def test_feedback_is_kept_and_taken_back(talk_with, name, options):
    talk = await talk_with(name, **options)
    await talk.ask("你好")
    message = (await talk.page()).turns[0].id
    for feedback in (Feedback("like"), Feedback("dislike", "错"), Feedback(), Feedback()):
        assert await talk.call("give_feedback", message, feedback) is None
        kept = talk.demo.talks.items()[0][1].turns[0].feedback
        shown = (await talk.page()).turns[0].feedback
        assert bool(kept) is bool(feedback.rating)
        if name != "coze":  # which does not tell
            assert (shown and shown.rating) == feedback.rating


@RATED
async def test_a_message_of_another_conversation_is_not_rated(talk_with, name, options):
    talk = await talk_with(name, **options)
    await talk.ask("你好")
    other, talk.id = (await talk.page()).turns[0].id, ""
    await talk.ask("another")
    for args in (("give_feedback", other, Feedback("like")), ("suggest", other)):
        with pytest.raises(MessageNotFound):
            await talk.call(*args)
    assert [one.turns[0].feedback for _, one in talk.demo.talks.items()] == [None, None]


@RATED
async def test_suggestions_follow_an_answer(talk_with, name, options):
    talk = await talk_with(name, **options)
    await talk.ask("你好")
    message = (await talk.page()).turns[0].id
    assert await talk.call("suggest", message) == ("还能做什么？", "怎么接入我的智能体？")


@pytest.mark.parametrize("name", ["dify", "fastgpt"])
async def test_suggestions_that_are_off_are_none(talk_with, name):
    talk = await talk_with(name)
    await talk.ask("你好")
    assert await talk.call("suggest", (await talk.page()).turns[0].id) == ()


@KINDS
async def test_rename_and_delete(talk_with, name, options):
    talk = await talk_with(name, **options)
    await talk.ask("你好")
    if name != "ragflow agent":
        assert await talk.call("rename", "新名字 ✏️") is None
        assert [one.title for _, one in talk.demo.talks.items()] == ["新名字 ✏️"]
    for _ in range(2):
        assert await talk.call("delete") is None
    assert talk.demo.talks.items() == []
    with pytest.raises(ConversationNotFound):
        await talk.page()


async def test_ragflow_keeps_a_rating_and_cannot_take_it_back(talk_with):
    talk = await talk_with("ragflow")
    await talk.ask("你好")
    message = (await talk.page()).turns[0].id
    for feedback in (Feedback("like"), Feedback("dislike", "错")):
        assert await talk.call("give_feedback", message, feedback) is None
        assert (await talk.page()).turns[0].feedback == feedback
    with pytest.raises(NotOffered):
        await talk.call("give_feedback", message, Feedback())
    with pytest.raises(MessageNotFound):
        await talk.call("give_feedback", "another", Feedback("like"))


async def test_dify_makes_a_title(talk_with):
    talk = await talk_with("dify")
    await talk.ask("年假几天？")
    assert await talk.call("make_title") == "年假几天？"


async def test_coze_clears_the_context_and_keeps_the_turns(talk_with):
    talk = await talk_with("coze")
    await talk.ask("my first question")
    assert await talk.call("clear") is None
    answer = await talk.ask("and now?")
    assert "my first question" not in answer["content"]
    assert len((await talk.page()).turns) == 2


@pytest.mark.parametrize("name", ["dify", "coze", "ragflow"])
async def test_an_answer_comes_with_an_id_to_rate_it_by(talk_with, name):
    talk = await talk_with(name)
    await talk.ask("你好")
    assert await talk.call("give_feedback", talk.message_id, Feedback("like")) is None
    assert talk.demo.talks.items()[0][1].turns[0].feedback


async def test_two_answers_of_coze_are_one_turn(talk_with):
    talk = await talk_with("coze")
    answer = await talk.ask("你好 #two")
    assert answer["content"].endswith("\n\n再补充一句。")
    assert [turn.answer for turn in (await talk.page()).turns] == [answer["content"]]


@KINDS
async def test_an_unknown_conversation_is_404(talk_with, name, options):
    talk = await talk_with(name, **options)
    unknown = "00000000-0000-0000-0000-000000000005"
    with pytest.raises(ConversationNotFound):
        await talk.call("past_turns", "", 5, talk=unknown)
    assert await talk.call("delete", talk=unknown) is None


async def test_dify_shows_a_conversation_to_its_user_only(talk_with):
    talk = await talk_with("dify")
    await talk.ask("你好")
    with pytest.raises(ConversationNotFound):
        await talk.call("past_turns", "", 5, user="u-2")
    assert await talk.call("delete", user="u-2") is None
    assert len((await talk.page()).turns) == 1


@pytest.mark.parametrize("name", ["dify", "fastgpt", "coze", "ragflow"])
async def test_a_failed_turn_has_failed(talk_with, name):
    talk = await talk_with(name)
    await talk.ask("你好")
    await talk.ask("#fail")
    first, second = (await talk.page()).turns
    assert (first.status, second.status, second.answer) == ("completed", "failed", "")
    assert second.question == "#fail"


@pytest.mark.parametrize("name", ["dify", "fastgpt", "coze"])
async def test_a_picture_of_a_question_is_its_file(talk_with, name):
    talk = await talk_with(name)
    link = "https://files.test/pictures/cat.png"
    await talk.ask("看图", files=[{"type": "image", "url": link}])
    files = (await talk.page()).turns[0].files
    assert [(file.kind, file.url, file.belongs_to) for file in files] == [
        ("image", link, "question")
    ]


# The wire.


async def fetched(method: str, url: str, **kwargs: Any) -> tuple[int, str, Any]:
    async with aiohttp.ClientSession() as client, client.request(method, url, **kwargs) as answer:
        body = await answer.read()
        return answer.status, answer.content_type, orjson.loads(body) if body else None


def shape(value: Any) -> Any:
    """The members of a JSON value, in order."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


async def test_difys_calls_have_the_form_of_1_16(demo):
    served = await demo("dify")
    body = {"inputs": {}, "query": "短", "user": "u", "response_mode": "blocking"}
    _, _, answer = await fetched("POST", f"{served.url}/v1/chat-messages", json=body)
    talk, message = answer["conversation_id"], answer["message_id"]
    user, calls = {"user": "u"}, f"{served.url}/v1"
    asked = {
        "chat_get_messages": ("GET", f"/messages?user=u&conversation_id={talk}", None),
        "chat_get_messages_other_user": ("GET", f"/messages?user=x&conversation_id={talk}", None),
        "chat_rename_conversation": ("POST", f"/conversations/{talk}/name", {**user, "name": "新"}),
        "chat_post_feedback": (
            "POST",
            f"/messages/{message}/feedbacks",
            {**user, "rating": "like"},
        ),
        "chat_get_suggested": ("GET", f"/messages/{message}/suggested?user=u", None),
        "chat_get_messages_no_conversation": ("GET", "/messages?user=u", None),
        "chat_delete_conversation": ("DELETE", f"/conversations/{talk}", user),
    }
    for name, (method, path, sent) in asked.items():
        status, headers, real = read_capture(FOLDER / "1.16.0" / f"{name}.http")
        mine = await fetched(method, calls + path, json=sent)
        theirs = orjson.loads(real) if real else None
        assert mine[:2] == (status, headers["Content-Type"]), name
        assert shape(mine[2]) == shape(theirs), name
        if status >= 400:
            assert mine[2]["message"][:30] == theirs["message"][:30], name


async def test_fastgpts_calls_have_the_form_of_4_12_2(demo):
    served = await demo("fastgpt")
    body = {"chatId": "c", "messages": [{"role": "user", "content": "短"}]}
    await fetched("POST", f"{served.url}/api/v1/chat/completions", json=body)
    about = {"appId": APP, "chatId": "c"}
    asked = {
        "records": ("POST", "/core/chat/getPaginationRecords", {**about, "pageSize": 10}),
        "update_history": ("POST", "/core/chat/updateHistory", {**about, "customTitle": "新"}),
        "feedback_like": ("POST", "/core/chat/feedback/updateUserFeedback", about),
        "del_history": ("DELETE", f"/core/chat/delHistory?appId={APP}&chatId=c", None),
        "question_guide_v2": ("POST", "/core/ai/agent/v2/createQuestionGuide", about),
    }
    for name, (method, path, sent) in asked.items():
        real = capture("4.12.2", name)
        status, _, mine = await fetched(method, f"{served.url}/api{path}", json=sent)
        assert status == real.status, name
        if name != "records":
            assert shape(mine) == shape(real.json), name
            continue
        ours, theirs = mine["data"]["list"], real.json["data"]["list"]
        assert list(mine["data"]) == list(real.json["data"])
        for one, other in zip(ours, theirs[:2], strict=True):
            assert {**shape(one), "durationSeconds": 0} == {**shape(other), "durationSeconds": 0}


async def test_a_page_of_turns_may_be_larger_than_other_replies(gateway, scripted):
    picture = {"type": "file", "file": {"type": "image", "url": "data:," + "A" * (5 << 20)}}
    item = {"_id": "1", "dataId": "h", "obj": "Human", "value": [picture]}
    body = {"code": 200, "data": {"list": [item], "total": 1}}
    headers = {"Content-Type": "application/json"}
    upstream = await scripted(Script([orjson.dumps(body)], headers=headers))
    gw = await gateway(agents={"bot": {**ALL_AGENTS["fastgpt"], "base_url": upstream.url}})
    target = gw.app[STATE].now.routing.targets["bot"]
    step = target.platform.past_turns("c", "u", "", 5)
    page = await resolve(gw.app[UPSTREAM], target, step)
    assert [file.url for file in page.turns[0].files] == [""]
