"""Forms that are passed to OpenAI-compatible agents: speech, images to edit."""

import asyncio
import tempfile
from contextlib import suppress

import orjson
import pytest
from conftest import AGENTS, Script
from test_streaming import until
from wire import parts_of

from gateway.http import formcopy
from gateway.http.context import FORMS

TEXT = Script([b'{"text": "hello"}'], headers={"Content-Type": "application/json"})
WAV = b'Content-Disposition: form-data; name="file"; filename="\xe5\xa3\xb0.wav"\r\nContent-Type: audio/wav\r\n\r\n'
FIELD = b'Content-Disposition: form-data; name="%b"\r\n\r\n%b'
MODEL = FIELD % (b"model", b"bot")


def form(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


@pytest.fixture
async def pass_on(gateway, scripted):
    """`await pass_on(body, path)`: (answer, the upstream)."""

    async def post(body, path="/v1/audio/transcriptions", *scripts, config=None, **headers):
        upstream = await scripted(*(scripts or (TEXT,)))
        agents = {"bot": {**AGENTS["openai"], "base_url": upstream.url, "model": "whisper-1"}}
        gw = await gateway(agents=agents, **(config or {}))
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        return await gw.post(path, body, headers={**kind, **headers}), upstream

    return post


@pytest.mark.parametrize("order", ["the model first", "the file first"])
@pytest.mark.parametrize("size", [4, formcopy.IN_MEMORY - 300, formcopy.IN_MEMORY + 3_000_000])
async def test_a_form_arrives_whole_with_the_agents_model(pass_on, order, size):
    file = WAV + b"RIFF" * (size // 4)
    parts = [MODEL, file] if order == "the model first" else [file, MODEL]
    answer, upstream = await pass_on(form(FIELD % (b"language", b"zh"), *parts))
    assert (answer.status, await answer.json()) == (200, {"text": "hello"})
    ((line, headers, body),) = upstream.requests
    assert line == "POST /v1/audio/transcriptions HTTP/1.1"
    assert headers["authorization"] == "Bearer sk-upstream-key"
    model, language, sound = parts_of(headers, body)
    assert model == ("model", None, b"whisper-1")
    assert language == ("language", None, b"zh")
    assert (sound[0], sound[2]) == ("file", b"RIFF" * (size // 4))
    assert "声.wav".encode() in body


async def test_several_pictures_to_be_edited_go_along(pass_on):
    picture = b'Content-Disposition: form-data; name="image[]"; filename="%b.png"\r\n\r\nPNG'
    body = form(picture % b"a", picture % b"b", FIELD % (b"prompt", b"a hat"), MODEL)
    answer, upstream = await pass_on(body, "/v1/images/edits")
    assert answer.status == 200
    names = [name for name, _, _ in parts_of(*upstream.requests[0][1:])]
    assert names == ["model", "image[]", "image[]", "prompt"]


async def test_the_upstreams_refusal_keeps_its_message(pass_on):
    refusal = Script([b'{"error": {"message": "no such language"}}'], status="400 Bad Request")
    answer, _ = await pass_on(form(WAV + b"RIFF", MODEL), "/v1/audio/transcriptions", refusal)
    assert answer.status == 400
    assert "no such language" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (form(WAV + b"RIFF"), 400),  # without a model
        (form(WAV + b"RIFF", FIELD % (b"model", b"nobody")), 404),
        (form(WAV + b"RIFF", FIELD % (b"model", b"x" * 70_000)), 400),
        (form(*[FIELD % (b"a", b"b")] * 30, MODEL), 400),
        (form(WAV + b"RIFF", MODEL)[:-20], 400), (b"no form at all", 400), (b"", 400),
        (b"x" * 5000, 400),
    ],
)  # fmt: skip
async def test_a_form_that_cannot_be_passed_on_is_refused(pass_on, body, status):
    answer, upstream = await pass_on(body)
    assert (answer.status, upstream.requests) == (status, [])
    assert (await answer.json())["error"]["message"]


async def test_a_form_over_the_limit_is_413(pass_on):
    body = form(WAV + b"x" * 200_000, MODEL)
    answer, upstream = await pass_on(body, config={"storage": {"max_size": "100KiB"}})
    assert (answer.status, upstream.requests) == (413, [])


async def test_a_packed_form_is_415(pass_on):
    answer, _ = await pass_on(form(MODEL), **{"Content-Encoding": "gzip"})
    assert answer.status in (400, 415)


async def test_a_full_disk_is_507(pass_on, monkeypatch):
    class Full(tempfile.SpooledTemporaryFile):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Full)
    answer, upstream = await pass_on(form(WAV + b"RIFF", MODEL))
    assert (answer.status, upstream.requests) == (507, [])


async def test_who_may_not_ask_the_agent_may_not_pass_a_form_on(pass_on):
    keys = [{"name": "k", "key": "secret-key-1", "permissions": ["chat"]}]
    auth = {"anonymous": False, "keys": keys}
    answer, _ = await pass_on(form(WAV + b"RIFF", MODEL), config={"auth": auth})
    assert answer.status == 401


async def test_an_early_refusal_reaches_the_caller_immediately(pass_on, tmp_path):
    refusal = Script(
        [orjson.dumps({"error": {"message": "the file is too long"}})], status="413 Too Large"
    )
    async with asyncio.timeout(20):
        answer, _ = await pass_on(
            form(WAV + b"x" * 5_000_000, MODEL), "/v1/audio/transcriptions", refusal
        )
        assert answer.status == 413


async def test_forms_on_disk_are_bounded_for_each_caller(gateway):
    keys = [
        {"name": name, "key": f"sk-{name}-key-0001", "permissions": ["chat", "upload"]}
        for name in ("evil", "good")
    ]
    gw = await gateway(
        agents={"bot": AGENTS["openai"]}, auth={"keys": keys}, server={"max_forms": "12MiB"}
    )
    host, port = gw.url.removeprefix("http://").split(":")

    lines = []

    async def begin(name: str, framing: bytes):
        """A form that does not end."""
        reader, writer = await asyncio.open_connection(host, int(port))
        lines.append(writer)
        writer.write(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
            b"Authorization: Bearer sk-%b-key-0001\r\n%b\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" % (name.encode(), framing)
        )
        return reader, writer

    length = b"Content-Length: 4000000"
    await begin("evil", length)
    await until(lambda: gw.app[FORMS].total == 4_000_000)
    refused, _ = await begin("evil", length)  # 429 before any of its bytes
    told = await refused.readuntil(b"}}")
    assert b" 429 " in told.split(b"\r\n")[0]
    assert b"max_forms" in told

    chunked, growing = await begin("evil", b"Transfer-Encoding: chunked")
    part = b"--b\r\n" + WAV + b"a" * 3_000_000
    growing.write(b"%x\r\n%b\r\n" % (len(part), part))
    assert b" 429 " in await chunked.readline()

    await begin("good", length)
    await until(lambda: gw.app[FORMS].total == 8_000_000)
    for line in lines:
        line.close()
        with suppress(ConnectionError):
            await line.wait_closed()
    await until(lambda: gw.app[FORMS].total == 0)
