"""Speech and transcription: over every platform that has them, in both forms of the call."""

import asyncio
import io
from typing import Any

import aiohttp
import orjson
import pytest
from conftest import AGENTS, Script
from test_streaming import until
from wire import parts_of

from gateway.http.context import FORMS as FORMS_SPACE

FRAME = b"\xff\xfb\x90\xc4" + bytes(413)  # of MP3
BOTS: dict[str, dict[str, Any]] = {name: dict(agent) for name, agent in AGENTS.items()}
BOTS["fastgpt"]["app_id"] = "0" * 24
BOTS["coze"]["voice"] = "7426720361732915209"
BOTS["openai"]["model"] = "tts-1"
TRANSCRIBERS = [name for name in BOTS if name != "fastgpt"]
JSON = {"Content-Type": "application/json"}
MP3 = {"Content-Type": "audio/mpeg"}
FORMS = ["v1", "api"]


class Audio:
    """A gateway and the calls of both forms."""

    def __init__(self, gw: Any, demos: dict[str, Any]) -> None:
        self.gw, self.demos = gw, demos

    def speak(self, form: str, agent: str, text: str = "你好", key: str = "", **body: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if form == "v1":
            return self.gw.post(
                "/v1/audio/speech", {"model": agent, "input": text, **body}, headers=headers
            )
        body = {"input": text, **body}
        return self.gw.post("/api/v1/audio/speech", body, headers={"Agent": agent, **headers})

    def transcribe(
        self,
        form: str,
        agent: str,
        sound: bytes = b"RIFFxxxx",
        name: str = "声音.wav",
        kind: str = "audio/wav",
        key: str = "",
        **fields: str,
    ) -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        data = aiohttp.FormData({"model": agent, **fields} if form == "v1" else fields)
        data.add_field("file", io.BytesIO(sound), filename=name, content_type=kind)
        if form == "v1":
            return self.gw.client.post(
                f"{self.gw.url}/v1/audio/transcriptions", data=data, headers=headers
            )
        return self.gw.client.post(
            f"{self.gw.url}/api/v1/audio/transcriptions",
            data=data,
            headers={"Agent": agent, **headers},
        )


async def told(answer: Any) -> str:
    """The sentence of an error in either form."""
    body = await answer.json()
    return body["error"]["message"] if "error" in body else body["msg"]


async def text_of(answer: Any, form: str) -> str:
    assert answer.status == 200, await answer.text()
    body = await answer.json()
    if form == "v1":
        return body["text"]
    assert (body["code"], body["msg"]) == (0, "Success")
    return body["data"]["text"]


@pytest.fixture
async def audio(gateway, demo):
    """A gateway before one simulator of each kind, whose bots can speak."""
    served = {name: await demo(name, key=bot["api_key"]) for name, bot in BOTS.items()}
    agents = {name: {**bot, "base_url": served[name].url} for name, bot in BOTS.items()}
    return Audio(await gateway(agents=agents), {name: one.demo for name, one in served.items()})


@pytest.fixture
def scripts(gateway, scripted):
    """`await scripts("coze", Script(…), **options)`: calls of an agent `bot` that does as the
    scripts say, and the upstream."""

    async def start(platform: str, *given: Script, config: Any = None, **options: Any):
        upstream = await scripted(*given)
        agent = {**BOTS[platform], "base_url": upstream.url, "retries": 0, **options}
        return Audio(await gateway(agents={"bot": agent}, **(config or {})), {}), upstream

    return start


# What every platform does.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("agent", BOTS)
async def test_every_platform_speaks(audio, agent, form):
    answer = await audio.speak(form, agent, "你好", voice="own-voice")
    body = await answer.read()
    assert answer.status == 200
    assert answer.headers["x-gateway-agent"] == agent
    if agent == "zhipu":
        assert (answer.headers["Content-Type"], body[:4]) == ("audio/wav", b"RIFF")
    else:
        assert (answer.headers["Content-Type"], body) == ("audio/mpeg", 2 * FRAME)
    assert "x-gateway-ignored" not in answer.headers


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("agent", TRANSCRIBERS)
async def test_every_platform_transcribes(audio, agent, form):
    said = await text_of(await audio.transcribe(form, agent), form)
    assert "demo" in said
    assert "8 bytes" in said
    assert audio.demos[agent].uploads[-1].head == b"RIFFxxxx"


async def test_a_transcript_is_plain_text_if_that_is_asked_for(audio):
    for agent in TRANSCRIBERS:
        answer = await audio.transcribe("v1", agent, response_format="text")
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert "8 bytes" in await answer.text()


async def test_the_end_user_reaches_the_platform(audio):
    await audio.speak("v1", "dify", user="ada")
    assert audio.demos["dify"].requests[-1] == (
        "/v1/text-to-audio",
        {"text": "你好", "user": "ada"},
    )
    await audio.transcribe("api", "dify", user="ada")
    assert audio.demos["dify"].uploads[-1].fields == {"user": "ada"}


# What each platform is sent.


@pytest.mark.parametrize(
    ("name", "kind", "declared"),
    [
        ("a.mp3", "audio/mpeg", "audio/mp3"), ("A.MP3", "audio/mpeg", "audio/mp3"),
        ("a.m4a", "audio/x-m4a", "audio/m4a"), ("blob", "audio/wav", "audio/wav"),
        ("blob", "audio/mpeg", "audio/mp3"),
    ],
)  # fmt: skip
async def test_dify_gets_a_media_type_that_it_accepts(audio, name, kind, declared):
    answer = await audio.transcribe("v1", "dify", name=name, kind=kind)
    assert answer.status == 200
    upload = audio.demos["dify"].uploads[-1]
    assert (upload.mime, upload.name) == (declared, f"audio.{declared[6:]}")


async def test_zhipu_gets_its_models_and_a_prompt(audio):
    await audio.transcribe("v1", "zhipu", prompt="人名：小明", language="zh")
    fields = {"model": "glm-asr-2512", "stream": "false", "prompt": "人名：小明"}
    assert audio.demos["zhipu"].uploads[-1].fields == fields
    await audio.speak("v1", "zhipu", speed=1.5, response_format="pcm")
    assert audio.demos["zhipu"].requests[-1][1] == {
        "model": "glm-tts", "input": "你好", "voice": "tongtong", "response_format": "pcm",
        "stream": False, "speed": 1.5,
    }  # fmt: skip


async def test_fastgpt_is_asked_for_its_model_once(audio):
    for voice in ("nova", "own"):
        assert (await audio.speak("v1", "fastgpt", voice=voice, speed=2)).status == 200
    sent = [body for path, body in audio.demos["fastgpt"].requests if path.endswith("getSpeech")]
    config = {"type": "model", "model": "demo-tts", "voice": "alloy", "speed": 2}
    assert [body["ttsConfig"] for body in sent] == [config, {**config, "voice": "own"}]
    assert sent[0]["appId"] == sent[0]["sourceId"] == "0" * 24


async def test_the_newer_path_of_fastgpt_is_used_where_it_is(scripts):
    settings = {"type": "model", "model": "m", "modelId": "id", "voice": "v"}
    app = {"code": 200, "data": {"app": {"chatConfig": {"ttsConfig": settings}}}}
    gw, upstream = await scripts(
        "fastgpt",
        Script([orjson.dumps(app)], headers=JSON),
        Script([b'{"code":500,"message":"zod"}'], status="500 X", headers=JSON),
        Script([FRAME], headers={}),
    )
    assert await (await gw.speak("v1", "bot")).read() == FRAME
    paths = [line.split()[1] for line, _, _ in upstream.requests]
    assert paths[1:] == 2 * ["/api/core/chat/record/getSpeech"]
    assert upstream.bodies("getSpeech")[1]["ttsConfig"] == settings


async def test_a_text_is_divided_for_coze_and_its_parts_are_joined(audio):
    text = "今天天气很好。" * 100  # 2100 bytes
    answer = await audio.speak("v1", "coze", text)
    assert await answer.read() == len(text) * FRAME
    sent = [body["input"] for _, body in audio.demos["coze"].requests]
    assert "".join(sent) == text
    assert [len(part.encode()) <= 1024 and part.endswith("。") for part in sent] == 3 * [True]


async def test_parts_of_wav_are_one_file(audio):
    text = "好。" * 600
    body = await (await audio.speak("v1", "zhipu", text)).read()
    sent = [body["input"] for _, body in audio.demos["zhipu"].requests]
    assert [len(part) for part in sent] == [1024, 176]
    assert body.count(b"RIFF") == 1
    assert len(body) == 44 + 1200 * 4800  # a header, and the demo's samples for each character


async def test_cozes_bot_has_a_voice_for_callers_who_name_none(gateway, demo):
    coze = await demo("coze", key="pat_test-key")
    bot = {**AGENTS["coze"], "base_url": coze.url}
    audio = Audio(await gateway(agents={"bot": bot}), {})
    for _ in range(2):
        assert (await audio.speak("v1", "bot", voice="alloy")).status == 200
    path, body = coze.demo.requests[-1]
    assert (path, body["voice_id"]) == ("/v1/audio/speech", "7426720361733046281")


async def test_a_bot_of_coze_without_a_voice_needs_one(scripts):
    told_ = Script([b'{"code":0,"data":{"voice_info_list":[]}}'], headers=JSON)
    gw, _ = await scripts("coze", told_, voice=None)
    answer = await gw.speak("v1", "bot", voice="alloy")
    assert answer.status == 400
    assert "Coze needs a voice" in await told(answer)


# Options.


@pytest.mark.parametrize(
    ("asked", "sent", "ignored"),
    [
        ("alloy", "default", "voice"),
        ("Nova", "mapped", None),
        ("own-voice", "own-voice", None),
        ({"id": "own-voice"}, "own-voice", None),
        (None, "default", None),
    ],
)
async def test_voices_are_mapped_by_the_agents_options(gateway, demo, asked, sent, ignored):
    dify = await demo("dify", key="app-test-key")
    voices = {"voice": "default", "voices": {"nova": "mapped"}}
    bot = {**AGENTS["dify"], "base_url": dify.url, **voices}
    audio = Audio(await gateway(agents={"bot": bot}), {})
    answer = await audio.speak("v1", "bot", voice=asked)
    assert answer.status == 200
    assert dify.demo.requests[-1][1]["voice"] == sent
    assert answer.headers.get("x-gateway-ignored") == ignored


@pytest.mark.parametrize(
    ("agent", "options", "sent", "ignored"),
    [
        ("coze", {"response_format": "opus"}, {"response_format": "ogg_opus"}, None),
        ("coze", {"response_format": "flac"}, {"response_format": "mp3"}, "response_format"),
        ("coze", {"speed": 4.0}, {"speed": 3.0}, "speed"),
        ("zhipu", {"response_format": "mp3"}, {"response_format": "wav"}, "response_format"),
        ("zhipu", {"speed": 0.25, "instructions": "x"}, {"speed": 0.5}, "instructions, speed"),
        ("dify", {"response_format": "wav", "speed": 2}, {}, "response_format, speed"),
        ("dify", {"stream_format": "audio"}, {}, None),
    ],
)
async def test_options_that_are_not_followed_are_named(audio, agent, options, sent, ignored):
    answer = await audio.speak("v1", agent, **options)
    assert answer.status == 200
    body = audio.demos[agent].requests[-1][1]
    assert {name: body[name] for name in sent} == sent
    assert answer.headers.get("x-gateway-ignored") == ignored


async def test_fields_of_a_form_that_are_not_followed_are_named(audio):
    answer = await audio.transcribe("v1", "dify", language="zh", temperature="0", prompt="x")
    assert answer.headers["x-gateway-ignored"] == "language, prompt, temperature"
    answer = await audio.transcribe("api", "openai", language="zh", extra="1")
    assert answer.headers["x-gateway-ignored"] == "extra"
    assert audio.demos["openai"].uploads[-1].fields == {
        "model": "tts-1", "response_format": "json", "language": "zh",
    }  # fmt: skip


@pytest.mark.parametrize("fields", [{"response_format": "srt"}, {"stream": "true"}])
async def test_another_form_of_transcript_is_refused(audio, fields):
    answer = await audio.transcribe("v1", "dify", **fields)
    assert answer.status == 400
    assert (await answer.json())["error"]["code"] == "unsupported_parameter"
    assert (await audio.transcribe("v1", "openai", **fields)).status == 200


async def test_speech_as_events_is_refused(audio):
    answer = await audio.speak("v1", "coze", stream_format="sse")
    assert answer.status == 400
    assert "'stream_format'" in await told(answer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"), ({"input": "x" * 4097}, "input"), ({"input": 1}, "input"),
        ({"voice": 1}, "voice"), ({"voice": "v" * 1025}, "voice"), ({"user": "u" * 1025}, "user"),
        ({"response_format": "ogg"}, "response_format"),
        ({"speed": 5}, "speed"), ({"speed": "fast"}, "speed"), ({"speed": True}, "speed"),
    ],
)  # fmt: skip
async def test_what_cannot_be_spoken_is_400(audio, form, body, param):
    answer = await audio.speak(form, "dify", **{"text": "hi", **{"input": "hi", **body}})
    error = await answer.json()
    assert answer.status == 400
    assert (error["error"] if form == "v1" else error["detail"])["param"] == param
    assert audio.demos["dify"].requests == []


async def test_the_upstream_judges_what_passes_through(audio):
    """The body goes on as it is, also one that the gateway would refuse elsewhere."""
    await audio.speak("v1", "openai", voice="v", speed=9, more={"a": 1})
    path, body = audio.demos["openai"].requests[-1]
    sent = {"model": "tts-1", "input": "你好", "voice": "v", "speed": 9, "more": {"a": 1}}
    assert (path, body) == ("/v1/audio/speech", sent)


async def test_the_gateways_own_api_knows_its_members_only(audio):
    answer = await audio.speak("api", "openai", voice="v", more=1, model="tts-1-hd")
    assert answer.headers["x-gateway-ignored"] == "more"
    sent = {"model": "tts-1-hd", "input": "你好", "voice": "v"}
    assert audio.demos["openai"].requests[-1][1] == sent


# Refusals.


@pytest.fixture
async def without_audio(gateway):
    """Agents that offer no audio, and nothing that could be asked: a refusal asks nobody."""
    base = {"base_url": "http://127.0.0.1:1"}
    glms = {"platform": "zhipu", "api_key": "id.secret", "api": "glms", "assistant_id": "a"}
    app = {"platform": "zhipu", "api_key": "id.secret", "api": "application", "app_id": "a"}
    agents = {
        "n8n": {"platform": "n8n", "base_url": "http://127.0.0.1:1/webhook/x/chat"},
        "ragflow": {"platform": "ragflow", "api_key": "ragflow-key", "chat_id": "c", **base},
        "glms": {**glms, **base},
        "app": {**app, **base},
        "fastgpt": {**BOTS["fastgpt"], **base},
        "dify": {**BOTS["dify"], **base},
    }
    routes = {"mixed": ["n8n", "ragflow"]}
    return Audio(await gateway(agents=agents, routes=routes), {})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ("n8n", "n8n has no API for it"),
        ("ragflow", "RAGFlow has no API for it"),
        ("glms", "of Zhipu only agents with api: models can"),
        ("app", "of Zhipu only agents with api: models can"),
        ("mixed", "none of the route's agents has it"),
    ],
)
async def test_other_platforms_are_refused_by_name(without_audio, form, agent, reason):
    for answer, able in (
        (await without_audio.speak(form, agent), "fastgpt, dify"),
        (await without_audio.transcribe(form, agent), "dify"),
    ):
        assert answer.status == 501
        message = await told(answer)
        assert f"Agent {agent!r}" in message
        assert f"{reason}. Ask one of these: {able}." in message


@pytest.mark.parametrize("form", FORMS)
async def test_fastgpt_transcribes_for_nobody(without_audio, form):
    answer = await without_audio.transcribe(form, "fastgpt")
    assert answer.status == 501
    assert "for its own pages only" in await told(answer)


async def test_a_refusal_is_in_the_callers_language(without_audio):
    url = f"{without_audio.gw.url}/v1/audio/speech"
    body = {"model": "n8n", "input": "hi"}
    answer = await without_audio.gw.client.post(url, json=body, headers={"Accept-Language": "zh"})
    message = await told(answer)
    assert message == "智能体 'n8n' 不能合成语音：n8n 没有这样的 API。可以改用：fastgpt, dify。"


async def test_without_any_agent_for_it_the_operator_hears_what_to_add(gateway):
    gw = await gateway(agents={"n8n": {"platform": "n8n", "base_url": "http://127.0.0.1:1/w/x"}})
    answer = await Audio(gw, {}).speak("v1", "n8n")
    assert "OpenAI-compatible services can" in await told(answer)


async def test_an_agent_must_be_named(audio):
    for answer in (await audio.speak("v1", ""), await audio.transcribe("v1", "")):
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "model")
    for answer in (await audio.speak("api", ""), await audio.transcribe("api", "")):
        assert (answer.status, (await answer.json())["detail"]["param"]) == (400, "Agent")


@pytest.mark.parametrize("form", FORMS)
async def test_a_form_without_a_sound_is_400(audio, form):
    for sound, expected in ((b"", "empty"), (None, "no part named 'file'")):
        if sound is not None:
            answer = await audio.transcribe(form, "dify", sound)
        else:
            data = aiohttp.FormData({"model": "dify", "language": "zh"}, default_to_multipart=True)
            path = "/v1" if form == "v1" else "/api/v1"
            url = f"{audio.gw.url}{path}/audio/transcriptions"
            answer = await audio.gw.client.post(url, data=data, headers={"Agent": "dify"})
        assert answer.status == 400
        assert expected in await told(answer)


async def test_two_sounds_are_400(audio):
    data = aiohttp.FormData({"model": "dify"})
    for name in ("a.wav", "b.wav"):
        data.add_field("file", b"RIFF", filename=name)
    url = f"{audio.gw.url}/v1/audio/transcriptions"
    assert (await audio.gw.client.post(url, data=data)).status == 400


async def test_a_sound_as_json_is_400(audio):
    answer = await audio.gw.post("/v1/audio/transcriptions", {"model": "dify", "file": "x"})
    assert answer.status == 400
    assert "multipart/form-data" in await told(answer)


@pytest.mark.parametrize(("agent", "most"), [("coze", 10), ("zhipu", 25), ("dify", 30)])
async def test_a_sound_over_the_platforms_limit_is_413(audio, agent, most):
    for form in FORMS:
        answer = await audio.transcribe(form, agent, bytes((most << 20) + 1))
        assert answer.status == 413
        assert f"larger than {most} MB" in await told(answer)
    assert audio.demos[agent].uploads == []


async def test_what_no_agent_would_take_is_not_read(audio):
    """The agents of `/api/v1` are known before the form: the refusal comes before its first byte."""
    host, port = audio.gw.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /api/v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nAgent: coze\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 12000000\r\n\r\n"
    )
    async with asyncio.timeout(20):
        assert b" 413 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(("agent", "name"), [("zhipu", "a.ogg"), ("dify", "a.flac"), ("coze", "a")])
async def test_a_type_that_the_platform_does_not_transcribe_is_415(audio, agent, name):
    answer = await audio.transcribe("v1", agent, name=name, kind="application/octet-stream")
    assert answer.status == 415
    assert "send one of these:" in await told(answer)
    assert audio.demos[agent].uploads == []


DIFY = '{{"code":"{}","message":"{}","status":{}}}'


@pytest.mark.parametrize(
    ("call", "status", "body", "expected", "said"),
    [
        ("t", 400, DIFY.format("speech_to_text_disabled", "off", 400), 502, "speech to text on"),
        ("t", 400, DIFY.format("provider_not_support_speech_to_text", "x", 400), 502, "default"),
        ("t", 400, DIFY.format("no_audio_uploaded", "Please upload", 400), 400, "Please upload"),
        ("t", 413, DIFY.format("audio_too_large", "Audio size", 413), 413, "too large"),
        ("t", 415, DIFY.format("unsupported_audio_type", "not allowed", 415), 415, "this type"),
        ("s", 400, DIFY.format("invalid_param", "TTS is not enabled", 400), 502, "to speech on"),
        ("s", 500, DIFY.format("internal_server_error", "x", 500), 502, "x"),
        ("s", 401, DIFY.format("unauthorized", "Access token", 401), 502, "api_key"),
    ],
)
async def test_difys_errors_say_what_to_do(scripts, call, status, body, expected, said):
    gw, _ = await scripts("dify", Script([body.encode()], status=f"{status} X", headers=JSON))
    answer = await (gw.speak("v1", "bot") if call == "s" else gw.transcribe("v1", "bot"))
    assert answer.status == expected
    assert said in await told(answer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("platform", "body", "status", "expected"),
    [
        ("coze", b'{"code":4100,"msg":"token invalid"}', 200, 502),
        ("coze", b'{"code":4000,"msg":"bad input"}', 200, 400),
        ("zhipu", b'{"error":{"code":"1214","message":"input"}}', 400, 400),
        ("zhipu", b'{"error":{"code":"1302","message":"busy"}}', 429, 429),
        ("fastgpt", b'{"code":514,"message":"unAuthApiKey"}', 500, 502),
        ("openai", b'{"error":{"message":"no such voice"}}', 400, 400),
    ],
)
async def test_a_platforms_refusal_keeps_its_meaning(
    scripts, platform, body, status, expected, form
):
    gw, _ = await scripts(platform, Script([body], status=f"{status} X", headers=JSON))
    answers = [await gw.speak(form, "bot")]
    if platform != "fastgpt":
        answers.append(await gw.transcribe(form, "bot"))
    for answer in answers:
        assert answer.status == expected
        assert "bot" in await told(answer)


async def test_fastgpt_needs_its_app_and_a_model_that_speaks(scripts):
    off = {"code": 200, "data": {"app": {"chatConfig": {"ttsConfig": {"type": "web"}}}}}
    for app_id, said in ((None, "app_id"), ("0" * 24, "voice playback")):
        gw, _ = await scripts("fastgpt", Script([orjson.dumps(off)], headers=JSON), app_id=app_id)
        answer = await gw.speak("v1", "bot")
        assert answer.status == 400
        assert said in await told(answer)


async def test_an_error_does_not_repeat_the_agents_key(scripts):
    body = DIFY.format("invalid_param", "bad key app-test-key here", 400).encode()
    gw, _ = await scripts("dify", Script([body], status="400 X", headers=JSON))
    for answer in (await gw.speak("v1", "bot"), await gw.transcribe("api", "bot")):
        assert "app-test-key" not in await answer.text()


@pytest.mark.parametrize("platform", ["dify", "coze", "zhipu"])
async def test_a_page_in_place_of_an_answer_is_an_error(scripts, platform):
    page = Script([b"<html>sign in</html>"], headers={"Content-Type": "text/html"})
    gw, _ = await scripts(platform, page)
    for answer in (await gw.speak("v1", "bot"), await gw.transcribe("v1", "bot")):
        assert answer.status == 502


# Bytes on their way.


@pytest.mark.parametrize(
    ("platform", "declared", "first", "kind"),
    [
        ("dify", "audio/x-own; rate=8000", b"abcd", "audio/x-own; rate=8000"),
        ("dify", "application/octet-stream", b"ID3\x04", "audio/mpeg"),
        ("dify", "text/plain", b"OggS", "audio/ogg"),
        ("dify", "", b"abcd", "application/octet-stream"),
        ("coze", "", b"abcd", "audio/mpeg"),
    ],
)
async def test_the_media_type_is_one_of_sounds(scripts, platform, declared, first, kind):
    gw, _ = await scripts(platform, Script([first], headers={"Content-Type": declared}))
    answer = await gw.speak("v1", "bot")
    assert (answer.headers["Content-Type"], await answer.read()) == (kind, first)


@pytest.mark.parametrize("platform", ["dify", "openai"])
async def test_sound_is_sent_on_as_it_comes(scripts, platform):
    more = asyncio.Event()
    gw, _ = await scripts(platform, Script([FRAME, more, FRAME], headers=MP3))
    answer = await gw.speak("v1", "bot")
    assert await answer.content.readexactly(len(FRAME)) == FRAME
    more.set()
    assert await answer.content.read() == FRAME


@pytest.mark.parametrize("platform", ["dify", "coze", "zhipu", "openai"])
async def test_a_cut_sound_breaks_the_connection(scripts, platform):
    gw, _ = await scripts(platform, Script([FRAME, 0.05], headers=MP3, end="reset"))
    answer = await gw.speak("v1", "bot")
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.read()


SENTENCES = "今天天气很好。" * 60  # two requests to Coze


@pytest.mark.parametrize(
    "second",
    [
        Script([b'{"code":4009,"msg":"busy"}'], headers=JSON),
        Script([b"no"], status="500 X"),
        Script([FRAME], headers=MP3, end="reset"),
        Script([], headers=MP3),
        Script(end="reset", status="never", before_headers_s=0.1),
    ],
    ids=["refused", "broken", "cut", "empty", "no answer"],
)
async def test_a_part_that_fails_breaks_the_connection(scripts, second):
    """The second one: a text that is spoken in part must not look complete."""
    gw, upstream = await scripts("coze", Script([FRAME], headers=MP3), second)
    answer = await gw.speak("v1", "bot", SENTENCES)
    assert answer.status == 200
    assert await answer.content.readexactly(len(FRAME)) == FRAME
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer.content.read()
    answer.close()
    assert len(upstream.requests) >= 2


async def test_a_part_that_does_not_come_in_time_breaks_the_connection(scripts):
    silent = Script(before_headers_s=3600)
    limits = {"first_delta": "300ms", "idle": "300ms"}
    gw, _ = await scripts("coze", Script([FRAME], headers=MP3), silent, timeouts=limits)
    answer = await gw.speak("v1", "bot", SENTENCES)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with asyncio.timeout(20):
            await answer.read()
    answer.close()


async def test_an_empty_sound_is_an_error(scripts):
    gw, _ = await scripts("dify", Script([], headers=MP3))
    answer = await gw.speak("v1", "bot")
    assert answer.status == 502
    assert "empty answer" in await told(answer)


async def test_a_caller_who_leaves_ends_the_upstreams_work(scripts):
    gw, upstream = await scripts("dify", Script([FRAME], headers=MP3, end="hang"))
    answer = await gw.speak("v1", "bot")
    await answer.content.readexactly(len(FRAME))
    answer.close()
    async with asyncio.timeout(20):
        await upstream.gone.wait()


async def test_a_transcript_that_is_cut_is_an_error(scripts):
    cut = Script([b'{"text": "hal'], headers=JSON, end="reset")
    gw, _ = await scripts("dify", cut)
    answer = await gw.transcribe("v1", "bot")
    assert answer.status == 502


async def test_a_transcript_of_silence_is_empty(scripts):
    gw, _ = await scripts("dify", Script([b'{"text": ""}'], headers=JSON))
    assert await text_of(await gw.transcribe("v1", "bot"), "v1") == ""


async def test_a_transcript_may_be_declared_as_anything(scripts):
    gw, _ = await scripts("dify", Script([b'{"text": "ok"}'], headers={"Content-Type": "x/y"}))
    assert await text_of(await gw.transcribe("v1", "bot"), "v1") == "ok"


# Routes, limits, permissions, the record.


@pytest.fixture
def routed(gateway, scripted):
    """`await routed(("dify", Script(…)), …)`: a route `all` to agents that do as they say."""

    async def start(*given: tuple[str, Script], **config: Any):
        upstreams = [await scripted(script) for _, script in given]
        agents = {
            f"bot{i}": {**BOTS[platform], "base_url": upstream.url, "retries": 0}
            for i, ((platform, _), upstream) in enumerate(zip(given, upstreams, strict=True))
        }
        config = {"routes": {"all": list(agents)}, **config}
        return Audio(await gateway(agents=agents, **config), {}), upstreams

    return start


SOUND = Script([FRAME], headers=MP3)
TEXT = Script([b'{"text": "hello"}'], headers=JSON)


async def test_the_next_agent_of_the_route_speaks(routed):
    gw, (first, _) = await routed(("dify", Script(status="500 X")), ("coze", SOUND))
    answer = await gw.speak("v1", "all")
    assert (answer.status, await answer.read()) == (200, FRAME)
    assert answer.headers["x-gateway-agent"] == "bot1"
    assert answer.headers["x-gateway-attempts"] == "2"
    assert [body["text"] for body in first.bodies("/text-to-audio")] == ["你好"]


@pytest.mark.parametrize("form", FORMS)
async def test_a_recording_goes_whole_to_the_next_agent(routed, form):
    gw, upstreams = await routed(("dify", Script(status="500 X")), ("openai", TEXT))
    sound = b"RIFF" * 500_000  # on disk
    assert await text_of(await gw.transcribe(form, "all", sound), form) == "hello"
    for upstream in upstreams:
        ((_, headers, body),) = upstream.requests
        assert parts_of(headers, body)[-1][2] == sound


@pytest.mark.parametrize(
    ("call", "settings"),
    [("large", {"sound": bytes((10 << 20) + 1)}), ("flac", {"name": "a.flac"}),
     ("srt", {"response_format": "srt"})],
)  # fmt: skip
async def test_what_one_agent_cannot_take_another_may(routed, call, settings):
    gw, (coze, openai) = await routed(("coze", TEXT), ("openai", TEXT))
    answer = await gw.transcribe("v1", "all", **settings)
    assert answer.status == 200, call
    assert (len(coze.requests), len(openai.requests)) == (0, 1)


async def test_agents_of_a_route_without_audio_are_passed_over(gateway, scripted):
    upstream = await scripted(SOUND)
    agents = {
        "n8n": {"platform": "n8n", "base_url": "http://127.0.0.1:1/webhook/x/chat"},
        "dify": {**BOTS["dify"], "base_url": upstream.url},
    }
    gw = await gateway(agents=agents, routes={"all": ["n8n", "dify"]})
    answer = await Audio(gw, {}).speak("v1", "all")
    assert (answer.status, answer.headers["x-gateway-attempts"]) == (200, "1")


async def test_a_route_is_named_to_who_may_not_ask_its_agents(routed):
    keys = [{"name": "k", "key": "secret-key-1", "agents": ["all"]}]
    auth = {"anonymous": False, "keys": keys}
    gw, _ = await routed(("dify", Script(status="500 X")), auth=auth)
    answer = await gw.speak("v1", "all", key="secret-key-1")
    assert answer.status == 502
    assert "'all'" in await told(answer)
    assert "bot0" not in await answer.text() + str(answer.headers)
    answer = await gw.transcribe("v1", "bot0", key="secret-key-1")
    assert answer.status == 403


@pytest.mark.parametrize("form", FORMS)
async def test_a_call_needs_a_key(routed, form):
    auth = {"anonymous": False, "keys": [{"name": "k", "key": "secret-key-1"}]}
    gw, _ = await routed(("dify", SOUND), auth=auth)
    assert (await gw.speak(form, "bot0")).status == 401
    assert (await gw.transcribe(form, "bot0")).status == 401


async def test_calls_count_as_chats(routed):
    gw, _ = await routed(("dify", SOUND), rate_limits={"chat": "2/min"})
    statuses = [(await gw.speak(form, "bot0")).status for form in ("v1", "api", "v1")]
    assert statuses == [200, 200, 429]
    assert (await gw.transcribe("api", "bot0")).status == 429


async def test_the_breaker_counts_audio(gateway):
    breaker = {"failures": 2, "cooldown": "1h"}
    bot = {**BOTS["dify"], "base_url": "http://127.0.0.1:1", "retries": 0, "breaker": breaker}
    gw = Audio(await gateway(agents={"bot": bot}), {})
    codes = []
    for answer in (
        await gw.speak("v1", "bot"),
        await gw.transcribe("v1", "bot"),
        await gw.speak("v1", "bot"),
    ):
        codes.append((await answer.json())["error"]["code"])
    assert codes == ["upstream_unreachable", "upstream_unreachable", "circuit_open"]


@pytest.fixture
async def page(gateway, demo, tmp_path, quick_passwords):
    """Calls of a web page's token for the user `ada`."""
    served = {name: await demo(name, key=BOTS[name]["api_key"]) for name in ("dify", "openai")}
    agents = {name: {**BOTS[name], "base_url": one.url} for name, one in served.items()}
    auth = {"anonymous": False, "keys": [{"name": "web", "key": "secret-key-1"}]}
    auth["jwt_secret"] = "0123456789abcdef0123456789abcdef"
    gw = await gateway(agents=agents, auth=auth, database="none")
    _, body = await gw.api("POST", "/tokens", "secret-key-1", {"user": "ada"})
    audio = Audio(gw, {name: one.demo for name, one in served.items()})
    return audio, body["data"]["token"]


async def test_a_pages_token_acts_for_its_own_user(page):
    audio, token = page
    assert (await audio.speak("v1", "dify", key=token)).status == 200
    assert audio.demos["dify"].requests[-1][1]["user"].endswith("/ada")
    assert (await audio.transcribe("api", "dify", key=token)).status == 200
    assert audio.demos["dify"].uploads[-1].fields["user"].endswith("/ada")
    assert (await audio.speak("api", "dify", key=token, user="bob")).status == 403
    assert (await audio.transcribe("api", "dify", key=token, user="bob")).status == 403


async def test_a_pages_token_sends_openais_own_members_only(page):
    audio, token = page
    answer = await audio.speak("v1", "openai", key=token, voice="v", account="boss")
    assert answer.headers["x-gateway-ignored"] == "account"
    assert "account" not in audio.demos["openai"].requests[-1][1]
    body = {"model": "openai", "input": "hi", "voice": "v"}
    headers = {"Authorization": f"Bearer {token}"}
    answer = await audio.gw.post("/v1/audio/speech?account=boss", body, headers=headers)
    assert audio.demos["openai"].requests[-1][0] == "/v1/audio/speech"
    answer = await audio.transcribe("v1", "openai", key=token, account="boss", language="zh")
    assert answer.status == 200
    assert audio.demos["openai"].uploads[-1].fields == {"model": "tts-1", "language": "zh"}


async def test_a_call_is_recorded_with_unknown_usage(with_accounts, tmp_path):
    gw = await with_accounts(f"sqlite:///{tmp_path}/gateway.db")
    admin = await gw.login()
    _, key = await gw.key(admin)
    audio = Audio(gw, {})
    assert (await audio.speak("v1", "dify", key=key, user="ada")).status == 200
    assert (await audio.transcribe("api", "dify", key=key)).status == 200

    async def rows():
        return (await gw.api("GET", "/calls?surface=audio", admin))[1]["data"]["calls"]

    async with asyncio.timeout(20):
        while len(await rows()) < 2:
            await asyncio.sleep(0.05)
    later, first = await rows()
    assert (first["agent"], first["end_user"], first["usage"]) == ("dify", "ada", "unknown")
    assert (later["agent"], later["total_tokens"], later["status"]) == ("dify", 0, 200)


async def test_agents_say_whether_they_offer_audio(audio):
    body = (await audio.gw.api("GET", "/agents"))[1]["data"]["agents"]
    offers = {
        each["name"]: (each["capabilities"]["speech"], each["capabilities"]["transcription"])
        for each in body
    }
    assert offers == {name: (True, name != "fastgpt") for name in BOTS}


async def test_forms_give_back_their_space(audio):
    assert (await audio.transcribe("v1", "dify", bytes(2_000_000), "a.wav")).status == 200
    await until(lambda: audio.gw.app[FORMS_SPACE].total == 0)


async def test_an_app_of_dify_without_audio_says_so(gateway, demo):
    dify = await demo("dify", key="app-test-key", has_audio=False)
    bot = {**BOTS["dify"], "base_url": dify.url}
    audio = Audio(await gateway(agents={"bot": bot}), {})
    for answer in (await audio.speak("v1", "bot"), await audio.transcribe("api", "bot")):
        assert answer.status == 502
        assert "in the app's features" in await told(answer)
