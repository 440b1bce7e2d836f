"""The Coze simulator's uploads, and its requirements for an `object_string`."""

import json
import time

import aiohttp
import demoforms as forms
import pytest
from cozepy import (
    AsyncCoze,
    AsyncHTTPClient,
    AsyncTokenAuth,
    ChatEventType,
    CozeAPIError,
    Message,
    MessageObjectString,
)
from test_dify_demo import ask

TEXT = {"type": "text", "text": "图里有什么？"}
IMAGE = {"type": "image", "file_url": "https://x.test/img/red.png?size=1"}
QUESTION = {"role": "user", "content_type": "text", "content": "看图"}


def upload(served, *parts: bytes, **kwargs):
    return forms.send(f"{served.url}/v1/files/upload", *parts, **kwargs)


async def retrieve(served, file_id: str) -> dict:
    url = f"{served.url}/v1/files/retrieve"
    async with (
        aiohttp.ClientSession() as client,
        client.get(url, params={"file_id": file_id}) as answer,
    ):
        return await answer.json()


def message(*items: dict, content: str | None = None) -> dict:
    content = json.dumps(items) if content is None else content
    return {"role": "user", "content_type": "object_string", "content": content}


async def chat(served, *messages: dict) -> str:
    """The stream of a chat, or the envelope that refuses it."""
    body = {"bot_id": "1", "user_id": "u", "stream": True, "additional_messages": list(messages)}
    status, _, raw = await ask(served.url, "/v3/chat", body)
    assert status == 200
    return raw.decode()


async def code(served, *messages: dict) -> int:
    """The code of a chat; 0 if it was answered."""
    answer = await chat(served, *messages)
    return 0 if answer.startswith("event:") else json.loads(answer)["code"]


@pytest.fixture
async def sdk(demo):
    """Coze's own SDK in front of a simulator, and the simulator."""
    served = await demo("coze", key="pat_x")
    http = AsyncHTTPClient()
    yield AsyncCoze(auth=AsyncTokenAuth("pat_x"), base_url=served.url, http_client=http), served
    await http.aclose()


# Uploads.


async def test_an_upload_is_answered_with_an_id_and_no_url(demo):
    served = await demo("coze")
    status, answer = await upload(served, forms.file("小猫.png"))
    data = answer["data"]
    assert (status, answer["code"], answer["msg"]) == (200, 0, "")
    assert list(data) == ["id", "bytes", "created_at", "file_name"]
    assert (data["bytes"], data["file_name"]) == (74, "小猫.png")
    assert data["id"].isdigit()
    assert abs(data["created_at"] - time.time()) < 60


async def test_an_uploaded_file_can_be_looked_up(demo):
    served = await demo("coze")
    _, answer = await upload(served, forms.file())
    assert (await retrieve(served, answer["data"]["id"]))["data"] == answer["data"]
    assert (await retrieve(served, "7000"))["code"] == 4000


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], 4300),
        ([forms.file(content=b"")], 4300),
        ([forms.file(field="upload")], 4300),
        ([forms.file(), forms.file()], 4301),
        ([forms.file(content=bytes((1 << 20) + 1))], 4302),
        ([forms.file("a.EXE")], 4303),
    ],
    ids=["none", "empty", "misnamed", "several", "too big", "type"],
)
async def test_a_bad_upload_is_a_code_under_200(demo, parts, expected):
    served = await demo("coze", max_file_mb=1)
    status, answer = await upload(served, *parts)
    assert (status, answer["code"]) == (200, expected)
    assert answer["msg"]
    assert served.demo.uploads == []


async def test_an_upload_that_is_no_form_is_broken(demo):
    served = await demo("coze")
    status, answer = await upload(served, data=forms.body(forms.file())[:-40])
    assert (status, answer["code"]) == (200, 4304)


async def test_files_need_the_right_token(demo):
    served = await demo("coze", key="pat_x")
    status, answer = await upload(served, forms.file(), key="pat_bad")
    assert (status, answer["code"]) == (401, 4100)
    assert (await retrieve(served, "7000"))["code"] == 4100


async def test_the_sdk_uploads_and_finds_a_file(sdk):
    coze, served = sdk
    file = await coze.files.upload(file=("小猫.png", forms.PNG))
    assert (file.bytes, file.file_name) == (74, "小猫.png")
    assert served.demo.uploads[0].id == file.id
    found = await coze.files.retrieve(file_id=file.id)
    assert (found.id, found.bytes, found.file_name) == (file.id, 74, "小猫.png")


async def test_the_sdk_raises_what_an_upload_is_refused_with(sdk):
    coze, _ = sdk
    with pytest.raises(CozeAPIError) as caught:
        await coze.files.upload(file=("a.exe", b"MZ"))
    assert caught.value.code == 4303


async def test_the_sdk_asks_about_a_file_that_it_uploaded(sdk):
    coze, _ = sdk
    file = await coze.files.upload(file=("小猫.png", forms.PNG))
    items = [
        MessageObjectString.build_text("图里有什么？"),
        MessageObjectString.build_image(file_id=file.id),
    ]
    asked = [Message.build_user_question_objects(items)]
    stream = coze.chat.stream(bot_id="1", user_id="u", additional_messages=asked)
    deltas = ChatEventType.CONVERSATION_MESSAGE_DELTA
    text = "".join([e.message.content async for e in stream if e.event == deltas])
    assert "图里有什么？" in text
    assert "我收到了 1 个文件：小猫.png。" in text


# Files in a question.


async def test_a_file_by_url_is_named_by_its_last_segment(demo):
    served = await demo("coze")
    assert "我收到了 1 个文件：red.png。" in await whole(served, message(TEXT, IMAGE))


async def whole(served, *messages: dict) -> str:
    """The answer as its last message repeats it."""
    completed = "event:conversation.message.completed\ndata:"
    answer = (await chat(served, *messages)).partition(completed)[2].partition("\n")[0]
    return json.loads(answer)["content"]


@pytest.mark.parametrize(
    "items",
    [
        [TEXT, {"type": "image", "file_id": "7000"}],
        [TEXT, {"type": "image"}],
        [TEXT, {"type": "image", "file_url": "data:image/png;base64,iVBORw0KGgo="}],
        [TEXT, {"type": "image", "file_url": "ftp://x.test/a.png"}],
        [TEXT, {"type": "video", "file_url": "https://x.test/a.mp4"}],
        [TEXT, TEXT, IMAGE],
        [{"type": "text", "text": ""}, IMAGE],
        [TEXT],
        [],
        ["看图"],
    ],
    ids=["unknown id", "no file", "data", "ftp", "unknown type", "two texts", "empty text",
         "text alone", "nothing", "no object"],
)  # fmt: skip
async def test_a_bad_object_string_is_4000(demo, items):
    served = await demo("coze")
    assert await code(served, message(*items)) == 4000


@pytest.mark.parametrize("content", ["", "看图", '{"type":"text"}'])
async def test_an_object_string_is_the_text_of_an_array(demo, content):
    served = await demo("coze")
    assert await code(served, message(content=content)) == 4000


@pytest.mark.parametrize("kind", ["image", "file", "audio"])
async def test_a_text_may_come_with_any_kind_of_file(demo, kind):
    served = await demo("coze")
    assert await code(served, message(TEXT, {**IMAGE, "type": kind})) == 0


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([message(IMAGE), QUESTION], 0),
        ([QUESTION, message(IMAGE)], 0),
        ([message(IMAGE)], 4000),
        ([QUESTION, {**QUESTION, "role": "assistant"}, message(IMAGE)], 4000),
        ([QUESTION, message(TEXT, IMAGE), message(IMAGE)], 4000),
    ],
    ids=["before text", "after text", "alone", "after an answer", "after text with a file"],
)
async def test_a_file_without_text_needs_an_adjacent_text_message(demo, messages, expected):
    served = await demo("coze")
    assert await code(served, *messages) == expected


async def test_a_refused_question_is_not_remembered(demo):
    served = await demo("coze")
    await code(served, message(TEXT))
    assert served.demo._conversations == {}


async def test_a_chatflow_checks_files_as_a_bot_does(demo):
    served = await demo("coze")
    unknown = message(TEXT, {"type": "image", "file_id": "7000"})
    body = {"workflow_id": "1", "parameters": {}, "additional_messages": [unknown]}
    _, _, raw = await ask(served.url, "/v1/workflows/chat", body)
    assert json.loads(raw)["code"] == 4000
