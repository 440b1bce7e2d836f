"""The memory from outside: a client that sends its whole history talks in one conversation."""

import asyncio
import json
from typing import Any

import pytest
from conftest import AGENTS, Script, run_gateway
from redis.asyncio import Redis
from test_streaming import until

from gateway.database import connect
from gateway.http.context import BUCKETS, UPSTREAM

KEEPERS = ["dify", "fastgpt", "coze", "ragflow", "glms"]
Turns = list[dict[str, str]]


class Client:
    """A client without ids: it sends everything that it shows."""

    def __init__(self, gw: Any, model: str, headers: Any = None, **members: Any) -> None:
        self.gw, self.model, self.members = gw, model, members
        self.headers = headers or {}
        self.shown: Turns = []
        self.verdicts: list[str] = []

    async def ask(self, question: str) -> str:
        self.shown.append({"role": "user", "content": question})
        body = {"model": self.model, "messages": self.shown, **self.members}
        answer = await self.gw.post("/v1/chat/completions", body, headers=self.headers)
        text = await answer.text()
        assert answer.status == 200, text
        self.verdicts.append(answer.headers.get("x-gateway-memory", "none").partition(";")[0])
        if body.get("stream"):
            lines = [line[6:] for line in text.split("\n") if line.startswith("data: {")]
            deltas = [c["delta"] for line in lines for c in json.loads(line)["choices"]]
            said = "".join(delta.get("content") or "" for delta in deltas)
        else:
            said = json.loads(text)["choices"][0]["message"]["content"]
        self.shown.append({"role": "assistant", "content": said})
        return said

    async def regenerate(self) -> str:
        self.shown.pop()
        return await self.ask(self.shown.pop()["content"])

    async def edit(self, place: int, question: str) -> str:
        """Ask another question in place of the one at `place`."""
        del self.shown[2 * place :]
        return await self.ask(question)


@pytest.fixture
def keeper(gateway, demo):
    """`await keeper("dify", **config)`: (a gateway before one simulator, the simulator)."""

    async def start(name: str, **config: Any):
        kind = "zhipu" if name == "glms" else name
        served = await demo(kind)
        agent = {
            "ragflow": {"platform": "ragflow", "api_key": "ragflow-key", "chat_id": "c1"},
            "glms": {**AGENTS["zhipu"], "api": "glms", "assistant_id": "a1"},
        }.get(name) or AGENTS[name]
        agent = {key: value for key, value in agent.items() if name != "glms" or key != "model"}
        gw = await gateway(agents={"bot": {**agent, "base_url": served.url}}, **config)
        return gw, served.demo

    return start


def conversations(demo: Any) -> list[list[str]]:
    """What the platform has seen, oldest conversation first."""
    return [list(questions) for questions in demo._conversations.values()]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["dify", "fastgpt", "coze", "glms"])
async def test_a_resent_history_stays_in_one_conversation(keeper, name, stream):
    gw, demo = await keeper(name)
    client = Client(gw, "bot", stream=stream)
    for question in ("第一个问题", "second question", "third"):
        await client.ask(question)
    assert client.verdicts == ["new", "continue", "continue"]
    if name != "fastgpt":  # its simulator keeps no conversations
        assert conversations(demo) == [["第一个问题", "second question", "third"]]


async def test_only_the_question_goes_out(keeper):
    gw, demo = await keeper("fastgpt")
    client = Client(gw, "bot")
    await client.ask("one")
    await client.ask("two")
    sent = [body for path, body in demo.requests if "completions" in path]
    assert [turn["content"] for turn in sent[1]["messages"]] == ["two"]
    assert sent[0]["chatId"] == sent[1]["chatId"]


@pytest.mark.parametrize("name", ["dify", "coze", "glms"])
async def test_regeneration_and_edit_are_branches(keeper, name):
    gw, demo = await keeper(name)
    client = Client(gw, "bot")
    await client.ask("one")
    await client.ask("two")
    await client.regenerate()
    await client.ask("three")
    await client.edit(1, "another two")
    await client.edit(0, "another one")
    assert client.verdicts == ["new", "continue", "branch", "continue", "branch", "new"]
    assert len(conversations(demo)) == 4
    assert conversations(demo)[0] == ["one", "two"]


async def test_fastgpt_gets_the_seed_with_every_turn(keeper):
    """It uses earlier messages that are sent, but stores only the last pair."""
    gw, demo = await keeper("fastgpt")
    client = Client(gw, "bot")
    for question in ("one", "two"):
        await client.ask(question)
    await client.regenerate()
    for question in ("three", "four"):
        await client.ask(question)
    sent = [body for path, body in demo.requests if "completions" in path]
    asked = [
        [turn["content"] for turn in body["messages"] if turn["role"] == "user"] for body in sent
    ]
    assert asked == [["one"], ["two"], ["one", "two"], ["one", "three"], ["one", "four"]]
    assert len({body["chatId"] for body in sent[2:]}) == 1


@pytest.mark.parametrize("name", ["dify", "coze", "glms"])
async def test_a_forgotten_conversation_is_seeded_within_the_call(keeper, name):
    gw, demo = await keeper(name)
    client = Client(gw, "bot", stream=True)
    await client.ask("one")
    demo._conversations.clear()
    await client.ask("two")
    await client.ask("three")
    assert client.verdicts == ["new", "seed", "continue"]
    assert len(conversations(demo)) == 1


async def test_other_callers_and_users_have_other_conversations(keeper):
    keys = [{"name": name, "key": f"sk-{name}-0123456789abcdef"} for name in ("ann", "ben")]
    gw, demo = await keeper("dify", auth={"anonymous": False, "keys": keys})
    clients = [
        Client(gw, "bot", {"Authorization": f"Bearer {key['key']}"}, user=user)
        for key in keys
        for user in ("one", "two")
    ]
    for question in ("hi", "and then?", "thanks"):
        for client in clients:
            await client.ask(question)
    assert [client.verdicts for client in clients] == [["new", "continue", "continue"]] * 4
    assert conversations(demo) == [["hi", "and then?", "thanks"]] * 4


@pytest.mark.parametrize("trusted", [True, False])
async def test_headers_name_user_and_chat_for_a_key_that_trusts_them(keeper, trusted):
    key = {"name": "webui", "key": "sk-webui-0123456789", "trust_client_headers": trusted}
    gw, demo = await keeper("dify", auth={"anonymous": False, "keys": [key]})
    bearer = {"Authorization": "Bearer sk-webui-0123456789"}
    clients = [
        Client(gw, "bot", {**bearer, "X-OpenWebUI-User-Id": user, "X-OpenWebUI-Chat-Id": chat})
        for user, chat in (("ann", "1"), ("ann", "2"), ("ben", "3"))
    ]
    for question in ("hi", "and then?"):
        for client in clients:
            await client.ask(question)
    second = "continue" if trusted else "seed"
    assert [client.verdicts for client in clients] == [["new", second]] * 3
    users = {body["user"] for path, body in demo.requests if path == "/v1/chat-messages"}
    assert users == ({"ann", "ben"} if trusted else {"key-webui"})


async def test_two_people_behind_one_key_are_kept_apart(keeper):
    """With the same questions and answers no one can tell whose conversation it is, until they
    differ."""
    gw, demo = await keeper("dify")
    ann, ben = Client(gw, "bot"), Client(gw, "bot")
    for client in (ann, ben):
        await client.ask("hi")
    assert ann.shown == ben.shown
    await ann.ask("what does Ann like?")
    await ben.ask("what does Ben like?")
    await ann.ask("and more of Ann?")
    await ben.ask("and more of Ben?")
    assert ann.verdicts == ben.verdicts == ["new", "seed", "continue"]
    assert not any("Ann" in str(each) and "Ben" in str(each) for each in conversations(demo))


@pytest.mark.parametrize("how", ["config", "agent", "header", "id"])
async def test_it_can_be_switched_off(keeper, gateway, demo, how):
    served = await demo("dify")
    agent = {**AGENTS["dify"], "base_url": served.url}
    config = {"memory": False} if how == "config" else {}
    agent |= {"memory": "off"} if how == "agent" else {}
    gw = await gateway(agents={"bot": agent}, **config)
    client = Client(gw, "bot", {"x-gateway-memory": "off"} if how == "header" else None)
    if how == "id":
        first = await gw.post(
            "/v1/chat/completions", {"model": "bot", "messages": [{"role": "user", "content": "a"}]}
        )
        client.members["conversation_id"] = first.headers["x-conversation-id"]
    await client.ask("one")
    await client.ask("two")
    assert client.verdicts == ["none", "none"]


async def test_a_model_without_conversations_gets_the_whole_list(all_five):
    gw, _ = all_five
    client = Client(gw, "openai")
    await client.ask("one")
    await client.ask("two")
    assert client.verdicts == ["none", "none"]


async def test_a_window_of_the_history_is_enough_if_its_answers_are(keeper):
    gw, demo = await keeper("dify")
    client = Client(gw, "bot")
    for question in ("the first question", "the second one", "the third one", "the last"):
        await client.ask(question)
        client.shown = client.shown[-4:]
    assert client.verdicts == ["new", "continue", "continue", "continue"]
    assert len(conversations(demo)) == 1


async def test_a_client_that_leaves_halfway_goes_on_with_what_it_has(gateway, demo):
    served = await demo("dify", pace_s=0.02)
    gw = await gateway(agents={"bot": {**AGENTS["dify"], "base_url": served.url}})
    body = {"model": "bot", "stream": True, "messages": [{"role": "user", "content": "讲个故事"}]}
    answer = await gw.post("/v1/chat/completions", body)
    said = ""
    async for line in answer.content:
        if line.startswith(b"data: {"):
            said += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        if len(said) > 10:
            break
    answer.close()
    client = Client(gw, "bot")
    client.shown = [{"role": "user", "content": "讲个故事"}, {"role": "assistant", "content": said}]
    await until(lambda: served.demo.stopped and not gw.app[UPSTREAM]._background)
    await client.ask("继续")
    assert client.verdicts == ["continue"]


async def test_questions_at_the_same_time_do_not_share_a_conversation(gateway, demo):
    served = await demo("dify", pace_s=0.02)
    gw = await gateway(agents={"bot": {**AGENTS["dify"], "base_url": served.url}})
    client = Client(gw, "bot")
    await client.ask("one")
    columns = [Client(gw, "bot") for _ in range(3)]
    for column in columns:
        column.shown = list(client.shown)
    await asyncio.gather(*(column.ask("two") for column in columns))
    assert sorted(column.verdicts[0] for column in columns) == ["branch", "branch", "continue"]


async def test_another_agent_of_the_route_is_given_the_history(gateway, demo):
    served = await demo("coze")
    dify = await demo("dify")
    agents = {
        "first": {**AGENTS["dify"], "base_url": dify.url, "retries": 0},
        "second": {**AGENTS["coze"], "base_url": served.url},
    }
    gw = await gateway(agents=agents, routes={"bot": ["first", "second"]})
    client = Client(gw, "bot")
    await client.ask("one")
    dify.demo.key = "changed"  # every call fails from now on
    await client.ask("two")
    await client.ask("three")
    assert client.verdicts == ["new", "seed", "continue"]
    assert len(conversations(served.demo)) == 1


async def test_replicas_share_redis_and_survive_its_end(gateway, demo, redis_server):
    served = await demo("dify")
    config = {
        "agents": {"bot": {**AGENTS["dify"], "base_url": served.url}},
        "redis": {"url": redis_server.url},
        "auth": {"jwt_secret": "0123456789abcdef0123456789abcdef"},
    }
    one, two = await gateway(**config), await gateway(**config)
    client = Client(one, "bot")
    for turn, gw in enumerate((one, two, one)):
        client.gw = gw
        await client.ask(f"question {turn}")
    assert client.verdicts == ["new", "continue", "continue"]
    redis_server.stop()
    await client.ask("and now?")
    client.gw = two
    await client.ask("and now again?")
    assert client.verdicts[3:] == ["seed", "seed"]


async def test_a_restart_forgets_nothing(demo, database_url):
    served = await demo("dify")
    config = {
        "agents": {"bot": {**AGENTS["dify"], "base_url": served.url}},
        "database": database_url,
        "auth": {"jwt_secret": "0123456789abcdef0123456789abcdef", "anonymous": True},
    }
    client = Client(None, "bot")
    for question in ("one", "two", "three"):
        async with run_gateway(config) as client.gw:
            await client.ask(question)
    assert client.verdicts == ["new", "continue", "continue"]
    assert conversations(served.demo) == [["one", "two", "three"]]


async def test_a_call_left_before_any_letter_is_a_branch_next_time(gateway, demo):
    """The platform knows its question, and the client does not show it."""
    served = await demo("dify", pace_s=0.02)
    gw = await gateway(agents={"bot": {**AGENTS["dify"], "base_url": served.url}})
    client = Client(gw, "bot")
    await client.ask("hi")
    body = {"model": "bot", "messages": [*client.shown, {"role": "user", "content": "left"}]}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await gw.post("/v1/chat/completions", body)
    await until(lambda: served.demo.stopped and not gw.app[UPSTREAM]._background)
    await client.ask("another question")
    assert client.verdicts == ["new", "branch"]


async def test_what_is_odd_in_redis_does_not_end_shared_limits(gateway, demo, redis_server):
    served = await demo("dify")
    gw = await gateway(
        agents={"bot": {**AGENTS["dify"], "base_url": served.url}},
        redis={"url": redis_server.url, "prefix": "odd"},
    )
    client = Client(gw, "bot")
    await client.ask("hi")
    async with Redis.from_url(redis_server.url) as redis:
        for key in await redis.keys("odd:memory:*:k:*"):
            await redis.delete(key)
            await redis.set(key, "a string")
    await client.ask("and now?")
    assert client.verdicts == ["new", "seed"]
    assert gw.app[BUCKETS].is_shared


async def test_two_users_of_web_pages_have_other_conversations(keeper):
    key = "sk-app-0123456789abcdef"
    auth = {"anonymous": False, "keys": [{"name": "app", "key": key}]}
    gw, demo = await keeper("dify", auth=auth)
    clients = []
    for user in ("ann", "ben"):
        _, answer = await gw.api("POST", "/tokens", key, {"user": user})
        clients.append(Client(gw, "bot", {"Authorization": f"Bearer {answer['data']['token']}"}))
    for question in ("hi", "and then?"):
        for client in clients:
            await client.ask(question)
    assert [client.verdicts for client in clients] == [["new", "continue"]] * 2
    assert conversations(demo) == [["hi", "and then?"]] * 2


@pytest.mark.parametrize(("system", "second"), [("ignore", "continue"), ("strict", "seed")])
async def test_another_system_text_is_another_conversation_if_strict(keeper, system, second):
    gw, _ = await keeper("dify", memory={"system": system})
    client = Client(gw, "bot")
    client.shown = [{"role": "system", "content": "Speak French."}]
    await client.ask("hi")
    client.shown[0] = {"role": "system", "content": "Speak German."}
    await client.ask("and then?")
    assert client.verdicts == ["new", second]


async def test_rows_that_cannot_be_read_cost_a_seed_only(demo, database_url):
    served = await demo("dify")
    config = {
        "agents": {"bot": {**AGENTS["dify"], "base_url": served.url}},
        "database": database_url,
        "auth": {"jwt_secret": "0123456789abcdef0123456789abcdef", "anonymous": True},
    }
    client = Client(None, "bot")
    async with run_gateway(config) as client.gw:
        await client.ask("one")
    database = connect(database_url)
    async with database.transaction() as conn:
        await conn.execute("UPDATE memory_threads SET body = '[1, 2'")
    await database.close()
    async with run_gateway(config) as client.gw:
        await client.ask("two")
        await client.ask("three")
    assert client.verdicts == ["new", "seed", "continue"]


async def test_a_long_answer_is_no_proof_and_no_burden(gateway, scripted):
    """Its text is not kept beyond a megabyte, so the next question brings the whole history."""
    text = b"word " * 50_000
    chunk = b'data: {"event":"message","conversation_id":"c","answer":"%b"}\n\n' % text
    end = b'data: {"event":"message_end","conversation_id":"c","metadata":{}}\n\n'
    info = Script([b'{"mode":"chat"}'], headers={"Content-Type": "application/json"})
    upstream = await scripted(info, Script([chunk] * 6 + [end]), Script([chunk, end]))
    gw = await gateway(agents={"bot": {**AGENTS["dify"], "base_url": upstream.url}})
    client = Client(gw, "bot", stream=True)
    assert len(await client.ask("tell me all")) == 6 * len(text)
    await client.ask("and more")
    assert client.verdicts == ["new", "seed"]
