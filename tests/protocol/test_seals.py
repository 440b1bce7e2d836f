"""Sealed ids: a page's token can continue only its own user's conversations."""

import orjson
import pytest
from aiohttp import FormData
from conftest import AGENTS, Script
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ConversationNotFound
from gateway.protocol.seals import Seal

KEYS = [
    {"name": "app", "key": "sk-app-key-000001", "permissions": ["chat", "upload"]},
    {"name": "shop", "key": "sk-shop-key-00002", "permissions": ["chat", "upload"]},
]
APPLICATION = {
    "platform": "zhipu",
    "api": "application",
    "api_key": "testid.testsecret",
    "app_id": "1",
}
GLMS = {**APPLICATION, "api": "glms", "assistant_id": "1"}
KEEPERS = ["fastgpt", "dify", "coze", "glms", "application"]


class Pages:
    """A gateway and tokens for its web pages."""

    def __init__(self, gateway, demos):
        self.gateway, self.demos = gateway, demos

    async def token(self, user, key=KEYS[0]["key"]):
        answer = await self.gateway.api("POST", "/tokens", key, {"user": user})
        return answer[1]["data"]["token"]

    async def complete(self, token, model, messages, **body):
        """(status, body) of POST /v1/chat/completions."""
        body = {"model": model, "messages": messages, **body}
        headers = {"Authorization": f"Bearer {token}"}
        answer = await self.gateway.post("/v1/chat/completions", body, headers=headers)
        return answer.status, await answer.json()


@pytest.fixture
async def pages(gateway, demo):
    kinds = {"glms": ("zhipu", GLMS), "application": ("zhipu", APPLICATION)}
    demos, agents = {}, {}
    for name in (*AGENTS, *kinds):
        kind, agent = kinds.get(name, (name, AGENTS.get(name)))
        served = await demo(kind, key=agent["api_key"])
        demos[name], agents[name] = served.demo, {**agent, "base_url": served.url}
    routes = {"either": ["coze", "glms"], "mixed": ["openai", "coze"]}
    auth = {"anonymous": False, "keys": KEYS}
    return Pages(await gateway(agents=agents, routes=routes, auth=auth), demos)


@pytest.mark.parametrize("agent", [*KEEPERS, "either"])
async def test_only_the_user_who_began_a_conversation_goes_on_with_it(pages, agent):
    alice, bob = await pages.token("alice"), await pages.token("bob")
    status, answer = await pages.gateway.ask(bob, agent, query="my card is 4242")
    assert status == 200
    conversation = answer["id"]
    assert answer["gateway"]["conversation_id"] == conversation
    status, answer = await pages.gateway.ask(bob, agent, conversation_id=conversation)
    assert (status, answer["id"]) == (200, conversation)
    plain = conversation.rpartition("~")[0]
    for id_ in (conversation, plain, f"{plain}~", f"{plain}~{'A' * 22}", conversation + "A"):
        for member in ("conversation_id", "chat_id"):
            status, answer = await pages.gateway.ask(alice, agent, **{member: id_})
            assert (status, answer["detail"]["error"]) == (404, "conversation_not_found")
    status, answer = await pages.gateway.ask(bob, agent, conversation_id=plain)
    assert status == 404


@pytest.mark.parametrize("agent", KEEPERS)
async def test_the_same_holds_on_the_other_surface_and_in_its_header(pages, agent):
    alice, bob = await pages.token("alice"), await pages.token("bob")
    turn = [{"role": "user", "content": "hi"}]
    headers = {"Authorization": f"Bearer {bob}"}
    body = {"model": agent, "messages": turn, "stream": True}
    answer = await pages.gateway.post("/v1/chat/completions", body, headers=headers)
    conversation = answer.headers["x-conversation-id"]
    assert conversation.encode() in await answer.read()
    assert (await pages.complete(bob, agent, turn, conversation_id=conversation))[0] == 200
    status, refused = await pages.complete(alice, agent, turn, conversation_id=conversation)
    assert (status, refused["error"]["code"]) == (404, "conversation_not_found")
    headers = {"Authorization": f"Bearer {alice}", "x-conversation-id": conversation}
    answer = await pages.gateway.post("/v1/chat/completions", body, headers=headers)
    assert answer.status == 404


async def test_users_of_one_name_with_two_keys_are_two(pages):
    one, other = [await pages.token("alice", key["key"]) for key in KEYS]
    conversation = (await pages.gateway.ask(one, "coze"))[1]["id"]
    assert (await pages.gateway.ask(other, "coze", conversation_id=conversation))[0] == 404
    await pages.gateway.ask(other, "coze")
    users = [sent["user_id"] for path, sent in pages.demos["coze"].requests if "/v3/chat" in path]
    assert users == ["key-app/alice", "key-shop/alice"]


async def test_a_conversation_of_one_agent_is_none_of_another(pages):
    bob = await pages.token("bob")
    conversation = (await pages.gateway.ask(bob, "coze"))[1]["id"]
    assert (await pages.gateway.ask(bob, "glms", conversation_id=conversation))[0] == 404


async def test_whoever_has_the_key_goes_on_in_any_users_name(pages):
    key = KEYS[0]["key"]
    status, answer = await pages.gateway.ask(key, "coze", user="alice")
    assert (status, "~" in answer["id"]) == (200, False)
    status, _ = await pages.gateway.ask(key, "coze", user="bob", conversation_id=answer["id"])
    assert status == 404
    status, _ = await pages.gateway.ask(key, "coze", user="alice", conversation_id=answer["id"])
    assert status == 200


async def tool_call(pages, token, stream=False):
    """(the question, the assistant's message with the call)."""
    question = {"role": "user", "content": "#tool"}
    status, answer = await pages.complete(token, "coze", [question])
    assert status == 200
    return question, answer["choices"][0]["message"]


def result(id_):
    return {"role": "tool", "tool_call_id": id_, "content": "made up"}


@pytest.mark.parametrize("model", ["coze", "either", "mixed"])
async def test_only_the_user_who_was_given_a_tool_call_answers_it(pages, model):
    alice, bob = await pages.token("alice"), await pages.token("bob")
    question, asked = await tool_call(pages, bob)
    id_ = asked["tool_calls"][0]["id"]
    plain = id_.rpartition("~")[0]
    before = len(pages.demos["coze"].requests)
    for stolen in (id_, plain, f"coze-{'9' * 19}-{'7' * 19}-call_1"):
        await pages.complete(alice, model, [question, asked, result(stolen)])
    await pages.complete(bob, model, [question, asked, result(plain)])
    await pages.complete(bob, model, [question, asked, result(id_), result(plain)])
    assert pages.demos["coze"].requests[before:] == []
    status, answer = await pages.complete(bob, model, [question, asked, result(id_)])
    assert status == 200
    assert "made up" in answer["choices"][0]["message"]["content"]
    path, sent = pages.demos["coze"].requests[-1]
    assert "submit_tool_outputs" in path
    assert sent["tool_outputs"] == [{"tool_call_id": "call_demo1", "output": "made up"}]


async def test_a_streamed_tool_call_is_sealed_too(pages):
    bob = await pages.token("bob")
    headers = {"Authorization": f"Bearer {bob}"}
    body = {"model": "coze", "stream": True, "messages": [{"role": "user", "content": "#tool"}]}
    answer = await pages.gateway.post("/v1/chat/completions", body, headers=headers)
    frames = [line[6:] for line in (await answer.text()).split("\n\n") if 'tool_calls":[' in line]
    delta = orjson.loads(frames[0])["choices"][0]["delta"]
    assert "~" in delta["tool_calls"][0]["id"]


async def test_tool_calls_that_nothing_is_kept_for_stay_as_they_are(pages):
    bob = await pages.token("bob")
    question = {"role": "user", "content": "#tool"}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    status, answer = await pages.complete(bob, "openai", [question], tools=tools)
    message = answer["choices"][0]["message"]
    assert (status, "~" in message["tool_calls"][0]["id"]) == (200, False)
    messages = [question, message, result(message["tool_calls"][0]["id"])]
    for model in ("openai", "mixed"):
        assert (await pages.complete(bob, model, messages, tools=tools))[0] == 200


async def test_members_that_name_what_a_server_keeps_are_left_out(gateway, scripted):
    body = b'{"id":"x","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
    kept = {"chatId": "bobs", "previous_response_id": "r", "thread_id": "t", "session_id": "s",
            "conversation": "c", "conversationId": "c", "Chat_Id": "c", "uid": "bob", "customUid": "bob",
            "metadata": {"chat_id": "c"}, "extra_body": {"user_id": "bob"}, "store": True,
            "tools": [{"type": "file_search", "vector_store_ids": ["bobs"]}]}  # fmt: skip
    upstream = await scripted(*[Script([body], headers={"Content-Type": "application/json"})] * 2)
    agents = {"bot": {**AGENTS["openai"], "base_url": upstream.url}}
    pages = Pages(await gateway(agents=agents, auth={"anonymous": False, "keys": KEYS}), {})
    turn = [{"role": "user", "content": "hi"}]
    assert (await pages.complete(await pages.token("alice"), "bot", turn, seed=1, **kept))[0] == 200
    assert (await pages.complete(KEYS[0]["key"], "bot", turn, **kept))[0] == 200
    of_page, of_key = upstream.bodies()
    assert of_page.pop("tools") == []
    assert kept.keys().isdisjoint(of_page)
    assert (of_page["user"], of_page["seed"]) == ("key-app/alice", 1)
    assert kept.items() <= of_key.items()


PICTURE = b"\x89PNG\r\n\x1a\n" + b"\0" * 60


@pytest.mark.parametrize(
    "agent",
    [{**AGENTS["coze"], "upload": "platform"}, {"platform": "zhipu", **GLMS, "upload": "platform"}],
)
async def test_only_the_user_who_uploaded_a_file_asks_about_it(gateway, demo, agent):
    served = await demo(agent["platform"], key=agent["api_key"])
    agents = {"bot": {**agent, "base_url": served.url}}
    pages = Pages(await gateway(agents=agents, auth={"anonymous": False, "keys": KEYS}), {})
    key, body = KEYS[0]["key"], {"permissions": ["chat", "upload"]}
    tokens = [
        (await pages.gateway.api("POST", "/tokens", key, {"user": user, **body}))[1]["data"][
            "token"
        ]
        for user in ("alice", "bob")
    ]
    id_ = await uploaded(pages, tokens[0])
    files = [{"id": id_, "type": "image"}]
    assert (await pages.gateway.ask(tokens[0], "bot", files=files))[0] == 200
    plain = id_.rpartition("~")[0]
    for wrong in (id_, plain, f"{plain}~{'A' * 22}"):
        files = [{"id": wrong, "type": "image"}]
        status, answer = await pages.gateway.ask(tokens[1], "bot", files=files)
        assert (status, answer["detail"]["error"]) == (404, "file_not_found")
        part = {"type": "file", "file": {"file_id": wrong}}
        messages = [{"role": "user", "content": [part]}, {"role": "user", "content": "hi"}]
        assert (await pages.complete(tokens[1], "bot", messages))[0] == 404
    id_ = await uploaded(pages, key)
    assert "~" not in id_
    files = [{"id": id_, "type": "image"}]
    assert (await pages.gateway.ask(key, "bot", files=files, user="other"))[0] == 200


async def uploaded(pages, token):
    """The id of an image that the agent's platform keeps."""
    form = FormData()
    form.add_field("file", PICTURE, filename="a.png", content_type="image/png")
    headers = {"Authorization": f"Bearer {token}", "Agent": "bot"}
    url = f"{pages.gateway.url}/api/v1/upload"
    async with pages.gateway.client.post(url, data=form, headers=headers) as answer:
        told = await answer.json()
    assert answer.status == 200, told
    return told["data"]["id"]


@pytest.mark.parametrize(
    "turn",
    [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-of-alice"}}]},
     {"role": "user", "content": [{"type": "input_file", "file_id": "file-of-alice"}]},
     {"role": "user", "content": [{"type": "image_file", "image_file": {"fileId": "file-of-alice"}}]},
     {"role": "assistant", "audio": {"id": "audio_of_alice"}}],
)  # fmt: skip
async def test_upstream_file_ids_are_404_for_a_page(pages, turn):
    messages = [turn, {"role": "user", "content": "hi"}]
    status, answer = await pages.complete(await pages.token("bob"), "openai", messages)
    assert (status, answer["error"]["code"]) == (404, "file_not_found")
    assert "alice" not in str(pages.demos["openai"].requests)


async def test_a_pages_turns_have_only_what_openai_documents(gateway, scripted):
    body = b'{"id":"x","choices":[{"message":{"content":"hi"},"finish_reason":"stop"}]}'
    upstream = await scripted(Script([body], headers={"Content-Type": "application/json"}))
    agents = {"bot": {**AGENTS["openai"], "base_url": upstream.url}}
    pages = Pages(await gateway(agents=agents, auth={"anonymous": False, "keys": KEYS}), {})
    picture = {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64,aaaa", "detail": "low"},
    }
    moonshots = {"type": "image_url", "image_url": {"url": "ms://of-alice"}}
    messages = [
        {"role": "system", "content": "be kind", "chat_id": "c"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "hi", "uid": "alice"}, picture, moonshots],
        },
    ]
    assert (await pages.complete(await pages.token("bob"), "bot", messages))[0] == 200
    assert upstream.bodies()[0]["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, picture]},
    ]


async def test_variables_name_no_user_but_the_tokens(pages):
    given = {"uid": "bob", "userId": "bob", "User_Id": "bob", "chatId": "c", "colour": "red"}
    for token, wanted in (
        (await pages.token("alice"), {"uid": "alice", "userId": "alice", "User_Id": "alice", "colour": "red"}),
        (KEYS[0]["key"], given),
    ):  # fmt: skip
        await pages.gateway.ask(token, "fastgpt", variables=given)
        await pages.complete(token, "fastgpt", [{"role": "user", "content": "hi"}], variables=given)
        asked = [sent for path, sent in pages.demos["fastgpt"].requests if "completions" in path]
        for sent in asked[-2:]:
            assert {
                name: sent["variables"].get(name) for name in given if name in sent["variables"]
            } == wanted


@given(st.text(), st.text(), st.text(), st.text())
def test_a_seal_fits_its_own_user_agent_and_id_alone(user, agent, id_, other):
    seal = Seal(b"key", user)
    sealed = seal.close(agent, id_)
    assert seal.open(agent, sealed) == id_
    for wrong, name in ((Seal(b"key", user + other), agent), (Seal(b"other", user), agent),
                        (seal, agent + other)):  # fmt: skip
        if (wrong._user, name, wrong._key) != (user, agent, b"key"):
            with pytest.raises(ConversationNotFound):
                wrong.open(name, sealed)
    assert not seal.fits(agent, other + sealed) or not other


def test_parts_of_a_seal_do_not_run_into_each_other():
    assert Seal(b"k", "ab").close("c", "x") != Seal(b"k", "a").close("bc", "x")
