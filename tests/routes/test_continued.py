"""POST /api/v1/conversations/{id}/continue: a person's reply to a bot that waits, and the rest."""

import json
from pathlib import Path

import pytest
from conftest import AGENTS, Script, streamed

KEY = "sk-app-key-000001"
AUTH = {"anonymous": False, "keys": [{"name": "app", "key": KEY, "permissions": ["chat"]}]}
SAMPLES = Path(__file__).parents[1] / "platforms" / "samples" / "dify"
PAUSED = (SAMPLES / "human-input-pause.sse").read_bytes()
RESUMED = (SAMPLES / "human-input-resume.sse").read_bytes()
CONVERSATION = "3f6a1c52-7b0e-4d1f-9a34-5c8e2b7d9f01"
TOKEN = "Qm7xInventedFormToken2f"
JSON = {"Content-Type": "application/json"}


def reply(status: str = "200 OK", **body: object) -> Script:
    return Script([json.dumps(body).encode()], status, headers=JSON, chunked=False)


INFO = reply(name="bot", mode="advanced-chat")


class Waiting:
    """A gateway in front of a Dify that waits for a form."""

    def __init__(self, gateway, upstream):
        self.gateway, self.upstream = gateway, upstream

    async def ask(self, query="hi", **body):
        status, answer = await self.gateway.ask(KEY, "bot", query=query, user="alice", **body)
        assert status == 200, answer
        return answer

    async def reply(self, user="alice", **body):
        path = f"/conversations/{CONVERSATION}/continue?user={user}"
        return await self.gateway.api("POST", path, KEY, body)

    async def waits_for(self):
        path = f"/conversations/{CONVERSATION}?user=alice"
        return (await self.gateway.api("GET", path, KEY))[1]["data"]["waits_for"]


@pytest.fixture
async def waiting(gateway, scripted, tmp_path):
    async def start(*scripts):
        upstream = await scripted(INFO, Script([PAUSED]), *scripts)
        gw = await gateway(
            agents={"bot": {**AGENTS["dify"], "base_url": upstream.url, "retries": 0}},
            auth=AUTH,
            database=f"sqlite:///{tmp_path}/gateway.db",
            record={"spool": str(tmp_path / "spool")},
        )
        it = Waiting(gw, upstream)
        answer = await it.ask()
        assert answer["id"] == CONVERSATION
        assert TOKEN not in json.dumps(answer)
        return it

    return start


async def test_what_the_bot_waits_for_is_shown_without_its_token(waiting):
    it = await waiting()
    shown = await it.waits_for()
    [form] = shown["forms"]
    assert [action["id"] for action in form["actions"]] == ["approve", "reject"]
    assert TOKEN not in json.dumps(shown)


@pytest.mark.parametrize("action", ["approve", "同意"])
async def test_a_reply_continues_the_run(waiting, action):
    it = await waiting(reply(), Script([RESUMED]))
    status, answer = await it.reply(action=action, inputs={"comment": "没问题"})
    assert (status, answer["id"]) == (200, CONVERSATION)
    assert answer["choices"][0]["message"]["content"] == "审批通过，假期已登记 🎊。"
    [form] = it.upstream.bodies(f"/v1/form/human_input/{TOKEN}")
    assert form == {"inputs": {"comment": "没问题"}, "action": "approve", "user": "alice"}
    assert await it.waits_for() is None
    status, answer = await it.reply(action="approve")
    assert (status, answer["detail"]["error"]) == (409, "conflict")


async def test_the_rest_can_be_streamed(waiting):
    it = await waiting(reply(), Script([RESUMED]))
    headers = {"Authorization": f"Bearer {KEY}"}
    path = f"/api/v1/conversations/{CONVERSATION}/continue?user=alice"
    body = {"action": "approve", "stream": True}
    async with it.gateway.post(path, body, headers=headers) as answer:
        assert answer.status == 200
        assert streamed(await answer.read())["text"] == "审批通过，假期已登记 🎊。"


async def test_a_wrong_button_is_named_before_the_platform_is_asked(waiting):
    it = await waiting()
    status, answer = await it.reply(action="maybe")
    assert (status, answer["detail"]["param"]) == (400, "action")
    assert "approve, reject" in answer["msg"]
    for body in ({}, {"text": " "}, {"action": 5}, {"form": 1}, {"inputs": []}):
        assert (await it.reply(**body))[0] == 400
    assert not it.upstream.bodies(f"/v1/form/human_input/{TOKEN}")


async def test_another_user_cannot_reply(waiting):
    it = await waiting()
    status, answer = await it.reply(user="bob", action="approve")
    assert (status, answer["detail"]["error"]) == (404, "conversation_not_found")


async def test_a_form_that_was_sent_before_is_followed(waiting):
    """A retry, or a second click."""
    sent = reply("412 Precondition Failed", code="human_input_form_submitted", message="x")
    it = await waiting(sent, Script([RESUMED]))
    status, answer = await it.reply(action="approve")
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "审批通过，假期已登记 🎊。"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (reply("412 Precondition Failed", code="human_input_form_expired", message="x"), 409),
        (reply("400 Bad Request", code="invalid_param", message="comment is required"), 400),
        (reply("404 Not Found", code="not_found", message="Form not found"), 409),
        (reply("500 Oops", code="internal", message="on fire"), 502),
    ],
)
async def test_a_refused_form_is_explained(waiting, answer, status):
    it = await waiting(answer)
    assert (await it.reply(action="approve"))[0] == status
    if status != 409:
        assert await it.waits_for()


@pytest.mark.parametrize("text", ["同意", "1", "approve", "**同意**\ncomment: 没问题"])
async def test_a_message_of_an_openai_client_is_a_reply_too(waiting, text):
    it = await waiting(reply(), Script([RESUMED]))
    answer = await it.ask(text if text != "approve" else "同意", conversation_id=CONVERSATION)
    assert answer["choices"][0]["message"]["content"] == "审批通过，假期已登记 🎊。"
    [form] = it.upstream.bodies(f"/v1/form/human_input/{TOKEN}")
    assert form["action"] == "approve"
    assert form["inputs"] == ({"comment": "没问题"} if "comment" in text else {})


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        ("404 Not Found", "text/html", f"<html>Not Found /v1/form/human_input/{TOKEN}</html>"),
        ("500 Oops", "application/json", json.dumps({"code": "x", "message": f"at {TOKEN}"})),
        ("400 Bad", "application/json", json.dumps({"code": "bad", "message": f"{TOKEN} is"})),
    ],
)
async def test_a_refusal_does_not_show_the_token(waiting, caplog, status, kind, body):
    caplog.set_level("INFO")
    headers = {"Content-Type": kind}
    it = await waiting(Script([body.encode()], status, headers=headers, chunked=False))
    code, answer = await it.reply(action="approve")
    assert (code >= 400, TOKEN in json.dumps(answer)) == (True, False)
    assert not [line for line in caplog.messages if TOKEN in line]


async def test_a_message_that_was_a_reply_ends_the_wait(waiting):
    it = await waiting(reply(), Script([RESUMED]))
    await it.ask("1", conversation_id=CONVERSATION)
    assert await it.waits_for() is None


CUT = Script([RESUMED[: len(RESUMED) // 3]], end="reset")


async def test_a_rest_that_was_cut_can_be_asked_for_again(waiting):
    sent = reply("412 Precondition Failed", code="human_input_form_submitted")
    it = await waiting(reply(), CUT, sent, Script([RESUMED]))
    status, _ = await it.reply(action="approve")
    assert status == 502
    status, answer = await it.reply(action="approve")
    assert (status, bool(answer["choices"][0]["message"]["content"])) == (200, True)
    assert await it.waits_for() is None


async def test_another_message_is_a_question(waiting):
    it = await waiting(Script([PAUSED]))
    await it.ask("what is this about?", conversation_id=CONVERSATION)
    assert it.upstream.bodies("/v1/chat-messages")[-1]["query"] == "what is this about?"


async def test_a_workflow_without_a_conversation_is_continued_too(gateway, scripted, tmp_path):
    info = reply(name="bot", mode="workflow")
    paused = PAUSED.replace(f'"conversation_id":"{CONVERSATION}",'.encode(), b"")
    resumed = RESUMED.replace(f'"conversation_id":"{CONVERSATION}",'.encode(), b"")
    upstream = await scripted(info, Script([paused]), reply(), Script([resumed]))
    gw = await gateway(
        agents={"bot": {**AGENTS["dify"], "base_url": upstream.url, "input_variable": "q"}},
        auth=AUTH,
        database=f"sqlite:///{tmp_path}/gateway.db",
        record={"spool": str(tmp_path / "spool")},
    )
    status, answer = await gw.ask(KEY, "bot", user="alice")
    assert status == 200, answer
    id_ = answer["gateway"]["conversation_id"]
    path = f"/conversations/{id_}/continue"
    assert (await gw.api("POST", f"{path}?user=bob", KEY, {"action": "approve"}))[0] == 404
    status, answer = await gw.api("POST", f"{path}?user=alice", KEY, {"action": "approve"})
    assert (status, answer["gateway"]["conversation_id"]) == (200, id_), answer
    assert upstream.bodies(f"/v1/form/human_input/{TOKEN}")
    status, answer = await gw.api("POST", f"{path}?user=alice", KEY, {"action": "approve"})
    assert status == 409


async def test_a_reply_needs_no_variables(gateway, scripted, tmp_path):
    """The run of a workflow has no conversation, and its first question had what is required."""
    city = {"text-input": {"variable": "city", "label": "City", "required": True}}
    form = [reply(name="bot"), reply(user_input_form=[city]), reply("404 Not Found")]
    paused = PAUSED.replace(f'"conversation_id":"{CONVERSATION}",'.encode(), b"")
    upstream = await scripted(*form, Script([paused]), reply(), Script([RESUMED]))
    options = {"mode": "workflow", "input_variable": "q", "base_url": upstream.url}
    gw = await gateway(
        agents={"bot": {**AGENTS["dify"], **options}},
        auth=AUTH,
        database=f"sqlite:///{tmp_path}/gateway.db",
        record={"spool": str(tmp_path / "spool")},
    )
    asked = {"user": "alice", "variables": {"city": "x"}}
    status, answer = await gw.ask(KEY, "bot", **asked)
    assert status == 200, answer
    assert (await gw.ask(KEY, "bot", user="alice"))[0] == 400  # the form is known
    path = f"/conversations/{answer['gateway']['conversation_id']}/continue?user=alice"
    status, answer = await gw.api("POST", path, KEY, {"action": "approve"})
    assert status == 200, answer


async def test_the_simulator_waits_like_a_real_dify(gateway, demo, tmp_path):
    served = await demo("dify", key=AGENTS["dify"]["api_key"])
    gw = await gateway(
        agents={"bot": {**AGENTS["dify"], "base_url": served.url}},
        auth=AUTH,
        database=f"sqlite:///{tmp_path}/gateway.db",
        record={"spool": str(tmp_path / "spool")},
    )
    status, answer = await gw.ask(KEY, "bot", query="a refund #form", user="alice")
    assert (status, "interaction" in answer["gateway"]) == (200, True)
    path = f"/conversations/{answer['id']}/continue?user=alice"
    status, answer = await gw.api("POST", path, KEY, {"acton": "驳回"})
    assert (status, answer["msg"]) == (400, "'acton' is not known here; did you mean 'action'?")
    body = {"action": "驳回", "inputs": {"comment": "too late"}}
    status, answer = await gw.api("POST", path, KEY, body)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "“驳回”已收到 🎊。too late"
    path = path.replace("/continue", "/messages")
    status, page = await gw.api("GET", path, KEY)
    assert [turn["status"] for turn in page["data"]["messages"]] == ["completed"]


async def test_a_coze_workflow_is_continued_by_its_event(gateway, scripted, tmp_path):
    interrupted = (SAMPLES.parent / "coze" / "workflow-stream-run-interrupt.sse").read_bytes()
    rest = (
        b'id: 0\nevent: Message\ndata: {"content":"\xe6\x99\xb4","node_title":"End"}\n\n'
        b"id: 1\nevent: Done\ndata: {}\n\n"
    )
    upstream = await scripted(Script([interrupted]), Script([rest]))
    agent = {"platform": "coze", "api_key": "pat_k", "mode": "workflow", "workflow_id": "w1"}
    gw = await gateway(
        agents={"bot": {**agent, "base_url": upstream.url}},
        auth=AUTH,
        database=f"sqlite:///{tmp_path}/gateway.db",
        record={"spool": str(tmp_path / "spool")},
    )
    status, answer = await gw.ask(KEY, "bot", user="alice")
    assert status == 200, answer
    id_ = answer["gateway"]["conversation_id"]
    path = f"/conversations/{id_}/continue?user=alice"
    status, answer = await gw.api("POST", path, KEY, {"text": "杭州"})
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "晴"), answer
    assert upstream.bodies("/v1/workflow/stream_resume") == [
        {
            "workflow_id": "w1",
            "event_id": "7553299955667788901/4821000000000000077",
            "interrupt_type": 2,
            "resume_data": "杭州",
        }
    ]
