"""The official SDKs against the gateway, and against the simulators themselves."""

import openai
import orjson
import pytest
from conftest import AGENTS, Script
from cozepy import (
    AsyncCoze,
    AsyncHTTPClient,
    AsyncTokenAuth,
    ChatEventType,
    ChatStatus,
    Message,
    MessageType,
)

KEY = "sk-caller-12345678"
QUESTION = [{"role": "user", "content": "用一句话介绍 AI Gateway"}]


@pytest.fixture
async def sdk(gateway, demo):
    """An openai client whose base_url is a gateway that requires a key."""
    agents = {}
    for name, agent in AGENTS.items():
        served = await demo(name, key=agent["api_key"])
        agents[name] = {**agent, "base_url": served.url}
    auth = {"anonymous": False, "keys": [{"name": "sdk", "key": KEY}]}
    gw = await gateway(agents=agents, auth=auth)
    async with openai.AsyncOpenAI(base_url=f"{gw.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("agent", AGENTS)
async def test_openai_whole(sdk, agent):
    answer = await sdk.chat.completions.create(model=agent, messages=QUESTION)
    assert "demo" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens > 0


@pytest.mark.parametrize("agent", AGENTS)
async def test_openai_stream_with_usage(sdk, agent):
    stream = await sdk.chat.completions.create(
        model=agent, messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    text, finish, usage = "", [], []
    async for chunk in stream:
        usage += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish += [choice.finish_reason] if choice.finish_reason else []
    assert "demo" in text
    assert finish == ["stop"]
    assert len(usage) == 1


SPEAKERS = [name for name in AGENTS if name != "fastgpt"]  # whose agent here has no app_id


@pytest.mark.parametrize("agent", SPEAKERS)
async def test_openai_speaks(sdk, agent):
    format_ = "wav" if agent == "zhipu" else "mp3"
    async with sdk.audio.speech.with_streaming_response.create(
        model=agent, voice="alloy", input="你好", response_format=format_, speed=1.2
    ) as answer:
        pieces = [piece async for piece in answer.iter_bytes()]
    assert answer.headers["content-type"] == {"wav": "audio/wav", "mp3": "audio/mpeg"}[format_]
    assert b"".join(pieces).startswith(b"RIFF" if format_ == "wav" else b"\xff\xfb")


@pytest.mark.parametrize("agent", SPEAKERS)
async def test_openai_transcribes(sdk, agent):
    sound = ("speech.wav", b"RIFF" + bytes(2_000_000))
    answer = await sdk.audio.transcriptions.create(model=agent, file=sound, language="zh")
    assert "2000004 bytes" in answer.text
    text = await sdk.audio.transcriptions.create(model=agent, file=sound, response_format="text")
    assert "2000004 bytes" in text


async def test_openai_hears_why_there_is_no_audio(sdk):
    with pytest.raises(
        openai.InternalServerError, match="FastGPT transcribes for its own pages only"
    ):
        await sdk.audio.transcriptions.create(model="fastgpt", file=("a.wav", b"RIFF"))


async def test_openai_reads_a_stream_with_ids_that_is_kept_alive(gateway, scripted):
    """The SDK takes a blank line without data for an event, once an event has had an id."""
    choices = ({"delta": {"content": text}, "index": 0} for text in ("你", "好"))
    chunks = [
        b"id: 1\ndata: " + orjson.dumps({"id": "c", "choices": [c]}) + b"\n\n" for c in choices
    ]
    upstream = await scripted(Script([0.2, chunks[0], 0.3, chunks[1], 0.2, b"data: [DONE]\n\n"]))
    agent = {**AGENTS["openai"], "base_url": upstream.url}
    gw = await gateway(agents={"bot": agent}, server={"keepalive": "50ms"})
    text = ""
    async with openai.AsyncOpenAI(base_url=f"{gw.url}/v1", api_key="x", max_retries=0) as client:
        stream = await client.chat.completions.create(model="bot", messages=QUESTION, stream=True)
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == "你好"


@pytest.mark.parametrize("agent", AGENTS)
async def test_openai_stream_that_breaks_raises(sdk, agent):
    stream = await sdk.chat.completions.create(
        model=agent, messages=[{"role": "user", "content": "#break"}], stream=True
    )
    text = ""
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text
    assert agent in caught.value.message


async def test_openai_stream_helper(sdk):
    async with sdk.chat.completions.stream(model="dify", messages=QUESTION) as stream:
        completion = await stream.get_final_completion()
    assert "demo" in completion.choices[0].message.content


async def test_openai_models(sdk):
    names = [model.id async for model in sdk.models.list()]
    assert names == list(AGENTS)
    assert (await sdk.models.retrieve("dify")).owned_by == "dify"
    assert (await sdk.models.retrieve("openai/any-model")).id == "openai/any-model"


async def test_openai_embeddings(sdk):
    answer = await sdk.embeddings.create(
        model="openai/text-embedding-3-small", input=["a", "b"], encoding_format="float"
    )
    assert len(answer.data) == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (502, openai.InternalServerError),
    ],
)
async def test_openai_exceptions(sdk, status, error):
    model, content = {
        400: ("dify", ""),
        404: ("nobody", "x"),
        429: ("dify", "#limit"),
        502: ("coze", "#fail"),
    }[status]
    with pytest.raises(error) as caught:
        await sdk.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}]
        )
    assert caught.value.status_code == status
    assert caught.value.request_id
    assert caught.value.body["message"]


async def test_openai_wrong_key_raises_authentication_error(sdk):
    with pytest.raises(openai.AuthenticationError):
        await sdk.with_options(api_key="sk-wrong-12345678").models.list()


async def test_openai_tools_and_several_answers(sdk):
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    asked = [{"role": "user", "content": "#tool"}]
    answer = await sdk.chat.completions.create(model="openai", messages=asked, tools=tools)
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"
    several = await sdk.chat.completions.create(model="openai", messages=QUESTION, n=3)
    assert len(several.choices) == 3


async def test_openai_retries_what_may_be_retried_and_nothing_else(gateway, scripted):
    """A call that Dify had accepted fails with 502; without `x-should-retry` it would run three
    times."""
    upstream = await scripted(Script([b'data: {"event":"error","message":"x"}\n\n']))
    bot = {**AGENTS["dify"], "base_url": upstream.url, "mode": "chat"}
    gw = await gateway(agents={"bot": bot})
    async with openai.AsyncOpenAI(base_url=gw.url, api_key="any", max_retries=2) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="bot", messages=QUESTION)
    assert len(upstream.requests) == 1


# The simulators, with the SDK of each one's platform.


async def test_the_openai_simulator_is_what_openais_sdk_expects(demo):
    served = await demo("openai", key="k")
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k") as client:
        whole = await client.chat.completions.create(model="m", messages=QUESTION)
        async with client.chat.completions.stream(model="m", messages=QUESTION) as stream:
            streamed = await stream.get_final_completion()
    assert streamed.choices[0].message.content == whole.choices[0].message.content


async def test_openais_sdk_reads_the_fastgpt_simulator(demo):
    served = await demo("fastgpt", key="k")
    async with openai.AsyncOpenAI(base_url=f"{served.url}/api/v1", api_key="k") as client:
        whole = await client.chat.completions.create(model="", messages=QUESTION)
        stream = await client.chat.completions.create(model="", messages=QUESTION, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


async def test_the_coze_simulator_is_what_cozes_sdk_expects(demo):
    served = await demo("coze", key="pat_x")
    http = AsyncHTTPClient()
    coze = AsyncCoze(auth=AsyncTokenAuth(token="pat_x"), base_url=served.url, http_client=http)
    conversation = await coze.conversations.create()
    question = [Message.build_user_question_text("你好 #think")]
    text, reasoning, events = "", "", []
    stream = coze.chat.stream(
        bot_id="1", user_id="u", additional_messages=question, conversation_id=conversation.id
    )
    async for event in stream:
        events.append(event.event)
        if event.event == ChatEventType.CONVERSATION_MESSAGE_DELTA:
            text += event.message.content
            reasoning += event.message.reasoning_content or ""
        if event.event == ChatEventType.CONVERSATION_CHAT_COMPLETED:
            assert event.chat.usage.token_count > 0
            assert event.chat.conversation_id == conversation.id
    assert "demo" in text
    assert reasoning
    assert events[0] == ChatEventType.CONVERSATION_CHAT_CREATED
    assert events[-1] == ChatEventType.CONVERSATION_CHAT_COMPLETED
    polled = await coze.chat.create(
        bot_id="1", user_id="u", additional_messages=question, conversation_id=conversation.id
    )
    chat = await coze.chat.retrieve(conversation_id=conversation.id, chat_id=polled.id)
    assert chat.status == ChatStatus.COMPLETED
    listed = await coze.chat.messages.list(conversation_id=conversation.id, chat_id=polled.id)
    assert "你上一个问题" in next(m.content for m in listed if m.type == MessageType.ANSWER)
    bot = await coze.bots.retrieve(bot_id="1")
    assert bot.name
    await http.aclose()
