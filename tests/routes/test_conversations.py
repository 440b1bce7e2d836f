"""/api/v1/conversations, and who may reach a conversation, over HTTP."""

import asyncio
from urllib.parse import quote

import pytest
from aiohttp import FormData
from conftest import AGENTS

from gateway.conversations import register
from gateway.http.context import CONVERSATIONS, SERVICES
from gateway.routes import conversations as routes
from gateway.routes import userdata

KEYS = [
    {"name": "app", "key": "sk-app-key-000001", "permissions": ["chat", "upload"]},
    {"name": "shop", "key": "sk-shop-key-00002", "permissions": ["chat"], "agents": ["gpt"]},
]
APP, SHOP = KEYS[0]["key"], KEYS[1]["key"]
PATH = "/conversations"


class House:
    """A gateway with a database, in front of simulators."""

    def __init__(self, gateway, demos):
        self.gateway, self.demos, self.api = gateway, demos, gateway.api

    async def ask(self, agent="gpt", query="hi", *, key=APP, user="alice", **body):
        """The whole answer."""
        status, answer = await self.gateway.ask(key, agent, query=query, user=user, **body)
        assert status == 200, answer
        return answer

    async def begin(self, agent="gpt", query="hi", **body):
        """The id of a new conversation."""
        return (await self.ask(agent, query, **body))["id"]

    async def get(self, path="", *, key=APP, user="alice", **query):
        """The data of a page."""
        query = {"user": user, **query} if user else query
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        status, answer = await self.api("GET", f"{PATH}{path}?{asked}", key)
        assert status == 200, answer
        return answer["data"]

    async def error(self, method, path, *, key=APP, user="alice", body=None):
        """(status, code) of a call that fails."""
        status, answer = await self.api(method, f"{PATH}{path}?user={user}", key, body)
        assert status >= 400, answer
        return status, answer["detail"]["error"]

    def sent(self, agent):
        """The messages of the latest question that reached the simulator."""
        return self.demos[agent].requests[-1][1]["messages"]

    async def token(self, user, key=APP):
        body = {"user": user, "permissions": ["chat", "upload"]}
        return (await self.api("POST", "/tokens", key, body))[1]["data"]["token"]

    async def titles(self, **query):
        return [one["title"] for one in (await self.get(**query))["conversations"]]


@pytest.fixture
async def house(gateway, demo, tmp_path):
    async def start(**config):
        demos, agents = {}, {}
        for name in AGENTS:
            served = await demo(name, key=AGENTS[name]["api_key"])
            demos[name] = served.demo
            agents["gpt" if name == "openai" else name] = {**AGENTS[name], "base_url": served.url}
        settings = {
            "agents": agents,
            "routes": {"both": ["gpt", "dify"]},
            "database": f"sqlite:///{tmp_path}/gateway.db",
            "record": {"spool": str(tmp_path / "spool")},
            **config,
        }
        auth = {"anonymous": False, "keys": KEYS, "jwt_secret": "0123456789abcdef" * 2}
        settings["auth"] = auth | config.get("auth", {})
        return House(await gateway(**settings), demos)

    return start


# Models behind /api/v1/chat have conversations of their own.


@pytest.mark.parametrize("agent", ["gpt", "zhipu"])
async def test_a_model_knows_what_was_said_before(house, agent):
    house = await house()
    first = await house.ask(agent, "my name is Ann")
    assert first["gateway"]["conversation_id"] == first["id"]
    again = await house.ask(agent, "who am I?", conversation_id=first["id"])
    assert again["id"] == first["id"]
    turns = house.sent("openai" if agent == "gpt" else agent)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[0]["content"] == "my name is Ann"


async def test_a_stream_is_kept_as_well(house):
    house = await house()
    id_ = await house.begin(query="one")
    headers = {"Agent": "gpt", "Authorization": f"Bearer {APP}"}
    body = {"query": "two", "user": "alice", "conversation_id": id_, "stream": True}
    async with house.gateway.post("/api/v1/chat", body, headers=headers) as answer:
        assert answer.headers["x-conversation-id"] == id_
        assert f'"id":"{id_}"' in (await answer.text())
    page = await house.get(f"/{id_}/messages")
    assert [(turn["question"], turn["status"]) for turn in page["messages"]] == [
        ("one", "completed"),
        ("two", "completed"),
    ]
    assert "two" in page["messages"][1]["answer"]


async def test_a_history_that_the_client_sends_is_its_own(house):
    house = await house()
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    answer = await house.ask(query="", messages=turns)
    assert "conversation_id" not in answer["gateway"]
    assert await house.titles() == []


async def test_a_history_with_an_id_is_the_clients_as_well(house):
    house = await house()
    id_ = await house.begin(query="one")
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "shorter"},
        {"role": "user", "content": "two"},
    ]
    answer = await house.ask(query="", conversation_id=id_, messages=turns)
    assert answer["id"] == id_
    assert [turn["content"] for turn in house.sent("openai")] == ["one", "shorter", "two"]
    page = await house.get(f"/{id_}/messages")
    assert [turn["question"] for turn in page["messages"]] == ["one", "two"]


DEAD = {"base_url": "http://127.0.0.1:9", "retries": 0}


@pytest.mark.parametrize("fallback", ["openai", "dify"])
async def test_a_conversation_goes_on_where_the_route_began_it(house, demo, fallback):
    """The first agent of the route is down: whoever answers decides who keeps the conversation."""
    served = await demo(fallback, key=AGENTS[fallback]["api_key"])
    first = "dify" if fallback == "openai" else "openai"
    agents = {
        "gpt": {**AGENTS[first], **DEAD},
        "other": {**AGENTS[fallback], "base_url": served.url},
    }
    house = await house(agents=agents, routes={"both": ["gpt", "other"]})
    id_ = await house.begin("both", "one")
    assert (await house.ask("both", "two", conversation_id=id_))["id"] == id_
    page = await house.get(f"/{id_}/messages")
    assert [turn["question"] for turn in page["messages"]] == ["one", "two"]
    kept_by = "gateway" if fallback == "openai" else "platform"
    assert (await house.get(f"/{id_}"))["kept_by"] == kept_by


async def test_off_keeps_no_words(house):
    house = await house(conversations="off")
    answer = await house.ask("gpt", "a secret")
    assert "conversation_id" not in answer["gateway"]
    await house.ask("dify", "another secret")
    assert await house.titles() == [""]


async def test_a_cleared_conversation_goes_on_without_its_past(house):
    house = await house()
    id_ = await house.begin(query="before")
    status, _ = await house.api("POST", f"{PATH}/{id_}/clear?user=alice", APP)
    assert status == 200
    await house.ask(query="after", conversation_id=id_)
    assert [turn["content"] for turn in house.sent("openai")] == ["after"]
    page = await house.get(f"/{id_}/messages")
    assert [turn["question"] for turn in page["messages"]] == ["before", "after"]


@pytest.mark.parametrize("agent", ["dify", "fastgpt"])
async def test_a_context_at_the_platform_is_not_cleared_here(house, agent):
    """The turns that the gateway keeps are a copy: the bot still knows them."""
    house = await house(conversations="gateway")
    id_ = await house.begin(agent)
    assert await house.error("POST", f"/{id_}/clear") == (501, "not_offered")


async def test_a_question_that_failed_is_shown_and_not_sent_again(house):
    house = await house()
    id_ = await house.begin(query="one")
    status, _ = await house.gateway.ask(
        APP, "gpt", query="#fail", user="alice", conversation_id=id_
    )
    assert status >= 500
    turns = (await house.get(f"/{id_}/messages"))["messages"]
    assert [turn["status"] for turn in turns] == ["completed", "failed"]
    assert turns[1]["error"]
    await house.ask(query="two", conversation_id=id_)
    sent = house.sent("openai")
    assert [turn["content"] for turn in sent if turn["role"] == "user"] == ["one", "two"]


# Whose conversation is whose.


@pytest.mark.parametrize("agent", ["gpt", "dify", "fastgpt", "coze", "zhipu", "both"])
async def test_only_its_owner_finds_a_conversation(house, agent):
    house = await house()
    id_ = await house.begin(agent)
    for key, user in ((APP, "bob"), (APP, ""), (SHOP, "alice")):
        if key == SHOP and agent != "gpt":
            continue
        body = {"conversation_id": id_, **({"user": user} if user else {})}
        status, answer = await house.gateway.ask(key, agent, **body)
        assert (status, answer["detail"]["error"]) == (404, "conversation_not_found")
        for method, path, body in (
            ("GET", "", None),
            ("GET", "/messages", None),
            ("PUT", "", {"title": "x"}),
            ("POST", "/title", None),
            ("POST", "/clear", None),
            ("POST", "/messages/m/feedback", {"rating": "like"}),
            ("GET", "/messages/m/suggestions", None),
            ("DELETE", "", None),
        ):
            found = await house.error(method, f"/{id_}{path}", key=key, user=user, body=body)
            assert found == (404, "conversation_not_found")
        assert await house.titles(key=key, user=user) == []
    assert (await house.ask(agent, conversation_id=id_))["id"] == id_
    assert await house.titles() == ["hi"]


async def test_who_forgets_the_user_reads_what_to_add(house):
    house = await house()
    id_ = await house.begin()
    status, answer = await house.api("GET", f"{PATH}/{id_}", APP)
    assert (status, answer["detail"]["param"]) == (404, "id")
    assert "?user=" in answer["msg"]


async def test_an_id_of_another_agent_is_not_found(house):
    house = await house()
    id_ = await house.begin("gpt")
    status, _ = await house.gateway.ask(APP, "zhipu", user="alice", conversation_id=id_)
    assert status == 404


async def test_the_other_surface_checks_the_owner_too(house):
    house = await house()
    id_ = await house.begin("coze")
    for user, expected in (("bob", 404), ("alice", 200)):
        body = {
            "model": "coze",
            "messages": [{"role": "user", "content": "hi"}],
            "user": user,
            "conversation_id": id_,
        }
        headers = {"Authorization": f"Bearer {APP}"}
        async with house.gateway.post("/v1/chat/completions", body, headers=headers) as answer:
            assert answer.status == expected


async def test_two_agents_of_one_account_are_kept_apart(house, demo):
    coze = await demo("coze", key=AGENTS["coze"]["api_key"])
    agent = {**AGENTS["coze"], "base_url": coze.url}
    agents = {"gpt": {**AGENTS["openai"], "base_url": "http://127.0.0.1:9"}}
    house = await house(agents={**agents, "one": agent, "two": {**agent, "bot_id": "2"}}, routes={})
    id_ = await house.begin("one")
    for user in ("bob", "alice"):
        status, _ = await house.gateway.ask(APP, "two", user=user, conversation_id=id_)
        assert status == 404


async def test_another_user_cannot_answer_a_run_that_waits(house):
    house = await house()
    headers = {"Authorization": f"Bearer {APP}"}
    turns = [{"role": "user", "content": "weather? #tool"}]

    async def complete(user, messages):
        body = {"model": "coze", "user": user, "messages": messages}
        async with house.gateway.post("/v1/chat/completions", body, headers=headers) as answer:
            return answer.status, await answer.json()

    status, answer = await complete("alice", turns)
    asked = answer["choices"][0]["message"]
    [call] = asked["tool_calls"]
    results = [*turns, asked, {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    status, answer = await complete("bob", results)
    assert (status, answer["error"]["code"]) == (404, "conversation_not_found")
    results[-1]["tool_call_id"] = call["id"].partition("~")[0]
    assert (await complete("alice", results))[0] == 404
    results[-1]["tool_call_id"] = call["id"]
    assert (await complete("alice", results))[0] == 200


async def test_an_id_made_up_for_n8n_belongs_to_one_user(house, demo):
    n8n = await demo("n8n")
    agents = {"n8n": {"platform": "n8n", "base_url": n8n.url + "/webhook/demo/chat"}}
    house = await house(agents=agents, routes={}, auth={"anonymous": False, "keys": KEYS[:1]})
    id_ = (await house.ask("n8n", "a secret", conversation_id="session-1"))["id"]
    assert id_ == "session-1"
    status, _ = await house.gateway.ask(APP, "n8n", user="bob", conversation_id="session-1")
    assert status == 404
    [turn] = (await house.get(f"/{id_}/messages"))["messages"]
    assert turn["question"] == "a secret"


async def test_a_pages_token_reaches_its_own_users_conversations(house):
    house = await house()
    alice, bob = await house.token("alice"), await house.token("bob")
    for agent in ("gpt", "coze"):
        status, answer = await house.gateway.ask(alice, agent)
        assert status == 200
        id_ = answer["id"]
        [one] = (await house.get(key=alice, user="", agent=agent))["conversations"]
        assert one["id"] == id_
        await house.get(f"/{id_}", key=alice, user="")
        assert (await house.error("GET", f"/{id_}", key=bob, user=""))[0] == 404
        status, answer = await house.gateway.ask(alice, agent, conversation_id=id_)
        assert (status, answer["id"]) == (200, id_)
    status, answer = await house.api("GET", f"{PATH}?user=bob", alice)
    assert status == 403


# The list.


async def test_a_list_has_pages_and_agents(house):
    house = await house()
    for number in range(5):
        await house.begin("gpt", f"q{number}")
    await house.begin("dify", "d")
    assert await house.titles() == ["d", "q4", "q3", "q2", "q1", "q0"]
    assert await house.titles(agent="DIFY") == ["d"]
    page = await house.get(limit=4)
    assert [one["title"] for one in page["conversations"]] == ["d", "q4", "q3", "q2"]
    page = await house.get(limit=4, before=page["next"])
    assert ([one["title"] for one in page["conversations"]], page["next"]) == (["q1", "q0"], None)


async def test_a_route_shows_its_own_name(house):
    house = await house()
    id_ = await house.begin("both")
    [one] = (await house.get())["conversations"]
    assert (one["id"], one["agent"], id_.partition(":")[0]) == (id_, "both", "gpt")
    assert (await house.get(f"/{id_}"))["id"] == id_
    assert await house.titles(agent="both") == ["hi"]


@pytest.mark.parametrize(
    "query", ["before=xyz", "before=5b5d", "limit=0", "agnt=x", "agent=nobody"]
)
async def test_a_bad_query_is_refused(house, query):
    house = await house()
    status, _ = await house.api("GET", f"{PATH}?{query}", APP)
    assert status in (400, 404)


async def test_without_a_database_there_is_no_list(house):
    house = await house(database="none")
    status, answer = await house.api("GET", PATH, APP)
    assert status == 404
    assert "database" in answer["msg"]


# Changes.


async def test_a_title_can_be_given(house):
    house = await house()
    id_ = await house.begin()
    status, answer = await house.api("PUT", f"{PATH}/{id_}?user=alice", APP, {"title": " 新 标题 "})
    assert (status, answer["data"]["title"]) == (200, "新 标题")
    await house.ask(conversation_id=id_)
    assert await house.titles() == ["新 标题"]
    for body in ({"title": ""}, {"title": "x" * 101}, {"title": "a", "pinned": True}, {}):
        assert (await house.error("PUT", f"/{id_}", body=body))[0] == 400


async def test_a_title_may_have_joined_emoji(house):
    house = await house()
    id_ = await house.begin(query="👩\u200d💻 code")
    assert await house.titles() == ["👩\u200d💻 code"]
    title = "می\u200cخواهم 👩\u200d💻"
    status, _ = await house.api("PUT", f"{PATH}/{id_}?user=alice", APP, {"title": title})
    assert (status, await house.titles()) == (200, [title])
    status, _ = await house.api("PUT", f"{PATH}/{id_}?user=alice", APP, {"title": "a\x1bb"})
    assert status == 400


async def test_an_agents_name_may_have_a_colon(house, demo):
    served = await demo("openai", key=AGENTS["openai"]["api_key"])
    ours = {**AGENTS["openai"], "base_url": served.url}
    house = await house(agents={"gpt": ours, "a:b": ours}, routes={"both": ["a:b", "gpt"]})
    id_ = await house.begin("both")
    assert id_.startswith("a:b:")
    assert (await house.get(f"/{quote(id_)}"))["id"] == id_


@pytest.mark.parametrize("agent", ["gpt", "dify", "coze", "fastgpt"])
async def test_feedback_is_shown_with_its_message(house, agent):
    house = await house()
    answer = await house.ask(agent)
    id_, message = answer["id"], answer["gateway"]["message_id"]
    path = f"{PATH}/{id_}/messages/{message}/feedback?user=alice"
    for rating in ("like", "dislike"):
        body = {"rating": rating, "text": "because", "reasons": ["wrong"]}
        assert (await house.api("POST", path, APP, body))[0] == 200
        [turn] = (await house.get(f"/{id_}/messages"))["messages"]
        assert turn["feedback"] == body
    assert (await house.api("POST", path, APP, {"rating": None}))[0] == 200
    [turn] = (await house.get(f"/{id_}/messages"))["messages"]
    assert turn["feedback"] is None


@pytest.mark.parametrize("agent", ["gpt", "dify", "fastgpt", "coze", "zhipu"])
async def test_a_turn_is_rated_by_the_id_that_its_answer_had(house, agent):
    house = await house()
    answer = await house.ask(agent)
    path = f"{PATH}/{answer['id']}/messages/{answer['gateway']['message_id']}/feedback?user=alice"
    for rating in ("like", "dislike"):
        body = {"rating": rating, "text": "because", "reasons": ["wrong"]}
        assert (await house.api("POST", path, APP, body))[0] == 200
        [turn] = (await house.get(f"/{answer['id']}/messages"))["messages"]
        assert turn["id"] == answer["gateway"]["message_id"]
        assert turn["feedback"] == body


async def test_feedback_needs_a_message_and_a_rating(house):
    house = await house()
    answer = await house.ask()
    path = f"/{answer['id']}/messages"
    assert await house.error("POST", f"{path}/other/feedback", body={"rating": "like"}) == (
        404,
        "message_not_found",
    )
    own = f"{path}/{answer['gateway']['message_id']}/feedback"
    for body in ({}, {"rating": "great"}, {"rating": "like", "text": "x" * 2001}):
        assert (await house.error("POST", own, body=body))[0] == 400


async def test_a_model_suggests_nothing(house):
    house = await house()
    answer = await house.ask()
    path = f"/{answer['id']}/messages/{answer['gateway']['message_id']}/suggestions"
    assert await house.error("GET", path) == (501, "not_offered")


async def test_a_deleted_conversation_is_gone(house):
    house = await house()
    id_ = await house.begin()
    status, answer = await house.api("DELETE", f"{PATH}/{id_}?user=alice", APP)
    assert (status, answer["data"]["platform"]) == (200, "not_offered")
    assert await house.error("GET", f"/{id_}") == (404, "conversation_not_found")
    status, _ = await house.gateway.ask(APP, "gpt", user="alice", conversation_id=id_)
    assert status == 404


async def test_what_is_deleted_while_it_is_answered_stays_deleted(house):
    house = await house()
    id_ = await house.begin()
    house.demos["openai"].pace_s = 0.02
    headers = {"Agent": "gpt", "Authorization": f"Bearer {APP}"}
    body = {"query": "two", "user": "alice", "stream": True}
    for named in ({"conversation_id": id_}, {}):
        async with house.gateway.post("/api/v1/chat", {**body, **named}, headers=headers) as answer:
            await answer.content.readany()
            path = f"{PATH}/{id_}" if named else "/users/alice/data"
            status, _ = await house.api("DELETE", f"{path}?user=alice" if named else path, APP)
            assert status == 200
            assert "[DONE]" in await answer.text()
        assert await house.titles() == []


async def test_an_empty_id_deletes_nothing(house):
    house = await house()
    await house.begin()
    for path in (f"{PATH}/?user=alice", f"{PATH}?user=alice", f"{PATH}?user=alice&all=1"):
        status, answer = await house.api("DELETE", path, APP)
        assert (status, answer["detail"]["param"]) == (400, "all")
    assert await house.titles() == ["hi"]


async def test_all_of_a_user_are_deleted_and_no_others(house):
    house = await house()
    for agent in ("gpt", "zhipu", "dify"):
        await house.begin(agent)
    await house.begin(user="bob")
    status, answer = await house.api("DELETE", f"{PATH}?all=true&user=alice&agent=dify", APP)
    assert (status, len(answer["data"]["conversations"])) == (200, 1)
    status, answer = await house.api("DELETE", f"{PATH}?all=true&user=alice", APP)
    assert (len(answer["data"]["conversations"]), answer["data"]["is_complete"]) == (2, True)
    assert await house.titles() == []
    assert await house.titles(user="bob") == ["hi"]


async def test_those_of_an_agent_that_is_gone_are_not_shown(house):
    first = await house()
    await first.begin("zhipu", "of zhipu")
    await first.begin("gpt", "of gpt")
    await first.gateway.app[CONVERSATIONS].flush()
    agents = {"gpt": {**AGENTS["openai"], "base_url": "http://127.0.0.1:9"}}
    second = await house(agents=agents, routes={})
    assert await second.titles() == ["of gpt"]


async def test_what_came_of_a_stream_that_broke_is_kept(house):
    house = await house()
    headers = {"Agent": "gpt", "Authorization": f"Bearer {APP}"}
    body = {"query": "hello #cut", "user": "alice", "stream": True}
    async with house.gateway.post("/api/v1/chat", body, headers=headers) as answer:
        id_ = answer.headers["x-conversation-id"]
        text = await answer.text()
    assert '"error"' in text
    [turn] = (await house.get(f"/{id_}/messages"))["messages"]
    assert (turn["status"], bool(turn["answer"]), bool(turn["error"])) == ("failed", True, True)


async def test_a_turn_whose_reader_left_is_kept(house):
    house = await house()
    house.demos["openai"].pace_s = 0.05
    headers = {"Agent": "gpt", "Authorization": f"Bearer {APP}"}
    body = {"query": "hello #long", "user": "alice", "stream": True}
    async with house.gateway.post("/api/v1/chat", body, headers=headers) as answer:
        id_ = answer.headers["x-conversation-id"]
        await answer.content.readany()
    async with asyncio.timeout(5):
        while not await house.titles():
            await asyncio.sleep(0.05)
    turns = (await house.get(f"/{id_}/messages"))["messages"]
    assert (turns[0]["status"], bool(turns[0]["answer"])) == ("stopped", True)


# All that is kept of one person.


async def upload(house, key, user=""):
    form = FormData()
    form.add_field("file", b"words", filename="note.txt", content_type="text/plain")
    if user:
        form.add_field("created_by", user)
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{house.gateway.url}/api/v1/upload"
    async with house.gateway.client.post(url, data=form, headers=headers) as answer:
        assert answer.status == 200, await answer.text()


async def calls_of(house, user):
    services = house.gateway.app[SERVICES]
    await services.recorder.flush()
    return await services.calls.of_user("key-app", user, 100)


async def test_all_of_a_person_is_shown_and_then_deleted(house):
    house = await house()
    token = await house.token("alice")
    await house.begin("gpt", "a secret")
    await house.begin("gpt", "of bob", user="bob")
    await house.gateway.ask(token, "zhipu", query="from a page")
    await upload(house, APP, "alice")
    await upload(house, APP, "bob")
    await upload(house, token)
    assert len(await calls_of(house, "alice")) == 2

    status, data = await house.api("GET", "/users/alice/data", APP)
    assert (status, data["user"], len(data["files"]), len(data["calls"])) == (200, "alice", 2, 2)
    asked = {one["messages"][0]["question"] for one in data["conversations"]}
    assert asked == {"a secret", "from a page"}

    status, answer = await house.api("DELETE", "/users/alice/data", APP)
    report = answer["data"]
    assert (status, len(report["conversations"]), report["files"], report["calls"]) == (
        200,
        2,
        2,
        2,
    )
    assert report["is_complete"] is True
    status, data = await house.api("GET", "/users/alice/data", APP)
    assert (data["conversations"], data["files"], data["calls"]) == ([], [], [])

    status, data = await house.api("GET", "/users/bob/data", APP)
    assert (len(data["conversations"]), len(data["files"]), len(data["calls"])) == (1, 1, 1)


async def test_usage_still_counts_the_calls(house):
    house = await house()
    await house.begin()
    services = house.gateway.app[SERVICES]
    await services.recorder.flush()
    before = await services.calls.usage_by("2000-01-01", "2999-01-01", ["agent"])
    await house.api("DELETE", "/users/alice/data", APP)
    assert await services.calls.usage_by("2000-01-01", "2999-01-01", ["agent"]) == before


async def test_a_page_reaches_its_own_user_alone(house):
    house = await house()
    await house.begin()
    alice, bob = await house.token("alice"), await house.token("bob")
    for method in ("GET", "DELETE"):
        assert (await house.api(method, "/users/alice/data", bob))[0] == 403
    status, data = await house.api("GET", "/users/alice/data", alice)
    assert (status, len(data["conversations"])) == (200, 1)
    status, answer = await house.api("DELETE", "/users/alice/data", alice)
    assert (status, answer["data"]["is_complete"]) == (200, True)


async def test_another_key_has_other_users(house):
    house = await house()
    await house.begin()
    status, data = await house.api("GET", "/users/alice/data", SHOP)
    assert (status, data["conversations"], data["calls"]) == (200, [], [])
    await house.api("DELETE", "/users/alice/data", SHOP)
    assert await house.titles() == ["hi"]


async def test_a_misspelt_wish_deletes_nothing(house):
    house = await house()
    await house.begin()
    status, _ = await house.api("DELETE", "/users/alice/data?dry_run=1", APP)
    assert (status, await house.titles()) == (400, ["hi"])


async def test_two_long_names_are_two_users(house):
    house = await house()
    long = "x" * 1000
    await house.begin(user=f"{long}-alice")
    await house.gateway.app[SERVICES].recorder.flush()
    for name, count in ((f"{long}-bob", 0), (f"{long}-alice", 1)):
        status, data = await house.api("GET", f"/users/{name}/data", APP)
        assert (status, len(data["calls"])) == (200, count)
        status, answer = await house.api("DELETE", f"/users/{name}/data", APP)
        assert (status, answer["data"]["calls"]) == (200, count)


@pytest.mark.parametrize("user", ["王\u3000小明", "👩\u200d💻", "a\nb", "a\0b", "a/b", "%00"])
async def test_who_may_ask_has_a_list_and_can_be_deleted(house, user):
    house = await house()
    await house.begin(user=user)
    named = quote(user, safe="")
    assert len((await house.get(user=named))["conversations"]) == 1
    await house.gateway.app[SERVICES].recorder.flush()
    status, data = await house.api("GET", f"/users/{named}/data", APP)
    assert (status, len(data["conversations"]), len(data["calls"])) == (200, 1, 1)
    status, answer = await house.api("DELETE", f"/users/{named}/data", APP)
    assert (status, len(answer["data"]["conversations"]), answer["data"]["calls"]) == (200, 1, 1)


@pytest.mark.parametrize("user", ["%FF", "%ED%A0%80", "x" * 1100])
async def test_a_name_that_no_chat_has_finds_nothing(house, user):
    house = await house()
    for path in (f"/users/{user}/data", f"{PATH}?user={user}"):
        status, answer = await house.api("GET", path, APP)
        assert status in (200, 400), answer


async def test_those_of_an_agent_that_is_gone_are_exported_and_deleted(house):
    first = await house()
    await first.begin("zhipu", "kept here")
    await first.begin("dify", "kept there")
    await first.gateway.app[CONVERSATIONS].flush()
    second = await house(
        agents={"gpt": {**AGENTS["openai"], "base_url": "http://127.0.0.1:9"}}, routes={}
    )
    status, data = await second.api("GET", "/users/alice/data", APP)
    there, here = data["conversations"]
    assert (here["messages"][0]["question"], there["messages"]) == ("kept here", [])
    assert "no longer in config.yaml" in there["problem"]
    status, answer = await second.api("DELETE", "/users/alice/data", APP)
    assert [one["deleted"] for one in answer["data"]["conversations"]] == [True, True]
    assert answer["data"]["is_complete"] is True
    status, data = await second.api("GET", "/users/alice/data", APP)
    assert data["conversations"] == []


async def test_a_page_of_few_agents_can_be_complete(house):
    house = await house()
    await house.begin("gpt")
    body = {"user": "alice", "permissions": ["chat"], "agents": ["dify"]}
    token = (await house.api("POST", "/tokens", APP, body))[1]["data"]["token"]
    await house.gateway.ask(token, "dify")
    status, answer = await house.api("DELETE", f"{PATH}?all=true", token)
    assert (len(answer["data"]["conversations"]), answer["data"]["is_complete"]) == (1, True)
    assert await house.titles() == ["hi"]


async def test_a_platform_that_hangs_ends_a_deletion_in_time(house, monkeypatch):
    monkeypatch.setattr(routes, "_DELETE_S", -1.0)
    house = await house()
    await house.begin("gpt")
    status, answer = await house.api("DELETE", f"{PATH}?all=true&user=alice", APP)
    [one] = answer["data"]["conversations"]
    assert (one["deleted"], answer["data"]["is_complete"]) == (False, False)
    assert "again" in one["problem"]
    assert await house.titles() == ["hi"]


async def test_an_export_says_what_it_leaves_out(house, monkeypatch):
    monkeypatch.setattr(userdata, "_MOST_CHARACTERS", 2000)
    monkeypatch.setattr(register, "MAX_READ", 1000)
    house = await house()
    id_ = await house.begin(query="q0" + "q" * 500)
    for number in range(1, 14):
        await house.ask(query=f"q{number}" + "q" * 500, conversation_id=id_)
    status, data = await house.api("GET", "/users/alice/data", APP)
    [one] = data["conversations"]
    assert (len(one["messages"]), "before=" in one["problem"]) == (10, True)
    assert one["messages"][-1]["question"].startswith("q13")
