"""The Dify simulator's uploads and file items against captures of the real server."""

import json
import time
import uuid
from pathlib import Path

import aiohttp
import demoforms as forms
import pytest
from test_dify_captures import events, read_capture, told_text
from test_dify_demo import ask

FOLDER = Path(__file__).parent.parent / "platforms" / "captures" / "dify"
RED = "http://127.0.0.1:18080/img/red.png"
USER = forms.value("user", "user-001")
NOBODYS = "00000000-0000-0000-0000-000000000007"
STRANGER = "14319813-f1ca-4ec2-8f49-a274b739f4aa"


def captured(name: str, version: str = "1.16.0") -> tuple[int, dict]:
    status, _, body = read_capture(FOLDER / version / f"{name}.http")
    return status, json.loads(body)


def upload(served, *parts: bytes, **kwargs):
    return forms.send(f"{served.url}/v1/files/upload", *parts, **kwargs)


async def uploaded(served, *parts: bytes) -> str:
    """The id of a new upload of user-001's."""
    status, answer = await upload(served, USER, *(parts or (forms.file(),)))
    assert status == 201, answer
    return answer["id"]


def local(id_: str, kind: str = "image") -> dict:
    return {"type": kind, "transfer_method": "local_file", "upload_file_id": id_}


def remote(url: str = RED, kind: str = "image") -> dict:
    return {"type": kind, "transfer_method": "remote_url", "url": url}


async def chat(served, *files, user: str = "user-001", mode: str = "streaming"):
    """(status, body) of a question with files."""
    body = {"inputs": {}, "query": "看图", "response_mode": mode, "user": user}
    status, _, raw = await ask(served.url, "/v1/chat-messages", {**body, "files": list(files)})
    return status, raw


async def run(served, file, mode: str = "streaming"):
    """(status, body) of a workflow with a file input."""
    inputs = {"query": "看图", "file": file}
    body = {"inputs": inputs, "response_mode": mode, "user": "user-001"}
    status, _, raw = await ask(served.url, "/v1/workflows/run", body)
    return status, raw


# Uploads.


@pytest.mark.parametrize(
    ("capture", "parts", "same"),
    [
        ("files_upload_ok", [USER, forms.file()], ["name", "size", "extension", "mime_type"]),
        ("files_upload_chatflow_ok", [USER, forms.file("b.png")], ["name", "extension"]),
        ("files_upload_exe", [USER, forms.file("a.exe", b"MZ123", "application/octet-stream")],
         ["name", "size", "extension", "mime_type"]),
        ("files_upload_no_user_txt", [forms.file("a.txt", "纯文本".encode(), "text/plain")],
         ["name", "size", "extension", "mime_type"]),
    ],
)  # fmt: skip
async def test_an_upload_is_answered_as_a_real_server_does(demo, capture, parts, same):
    served = await demo("dify")
    status, answer = await upload(served, *parts)
    real_status, real = captured(capture)
    assert status == real_status == 201
    assert list(answer) == list(real)
    assert [answer[name] for name in same] == [real[name] for name in same]
    assert [type(value) for value in answer.values()] == [type(value) for value in real.values()]
    assert [k for k, v in answer.items() if v is None] == [k for k, v in real.items() if v is None]
    assert uuid.UUID(answer["id"])
    assert abs(answer["created_at"] - time.time()) < 60
    assert answer["source_url"].startswith(f"{served.url}/files/{answer['id']}/file-preview?")


@pytest.mark.parametrize(
    ("capture", "parts"),
    [
        ("files_upload_no_file", [USER]),
        ("files_upload_two_files", [USER, forms.file("a.png"), forms.file("b.png", field="file2")]),
    ],
)
async def test_a_bad_upload_gets_a_real_servers_error(demo, capture, parts):
    served = await demo("dify")
    assert await upload(served, *parts) == captured(capture)
    assert served.demo.uploads == []


async def test_an_upload_with_a_wrong_key_is_refused(demo):
    served = await demo("dify", key="app-right")
    assert await upload(served, USER, forms.file(), key="app-bad") == captured(
        "files_upload_bad_key"
    )
    assert (await upload(served, USER, forms.file(), key="app-right"))[0] == 201


@pytest.mark.parametrize(
    "data", [b"", b"no form", forms.body(forms.file())[:-40]], ids=["empty", "text", "cut"]
)
async def test_a_body_that_is_no_form_holds_no_file(demo, data):
    served = await demo("dify")
    assert await upload(served, data=data) == captured("files_upload_no_file")
    assert served.demo.uploads == []


async def test_a_part_named_otherwise_is_not_the_file(demo):
    served = await demo("dify")
    answer = await upload(served, forms.file(field="files[]"))
    assert answer == captured("files_upload_no_file")


@pytest.mark.parametrize(
    ("file", "status", "code"),
    [
        (forms.file(name=""), 400, "filename_not_exists_error"),
        (forms.file(name=None), 400, "no_file_uploaded"),
        (forms.file(mime=None), 415, "unsupported_file_type"),
        (forms.file(name="a/../b.png"), 400, "invalid_param"),
    ],
)
async def test_a_file_needs_a_plain_name_and_a_media_type(demo, file, status, code):
    served = await demo("dify")
    got, answer = await upload(served, USER, file)
    assert (got, answer["code"], answer["status"]) == (status, code, status)


@pytest.mark.parametrize(
    ("name", "kind", "size_mb", "capture"),
    [
        ("a.png", "image", 10, "files_upload_image_too_large"),
        ("a.pdf", "other", 15, "files_upload_doc_too_large"),
    ],
)
async def test_a_file_over_its_limit_is_413_as_a_real_server_has_it(
    demo, name, kind, size_mb, capture
):
    served = await demo("dify")
    assert served.demo.settings.limits_mb[kind] == size_mb
    most = bytes(size_mb << 20)
    assert await upload(served, USER, forms.file(name, most + b".")) == captured(capture, "0.15.3")
    assert served.demo.uploads == []
    assert (await upload(served, USER, forms.file(name, most)))[0] == 201


async def test_the_limits_go_by_the_extension_and_can_be_set(demo):
    served = await demo("dify", limits_mb={"video": 2, "audio": 1, "other": 1})
    content = bytes(3 << 19)  # 1.5 MB
    names = ["a.MP4", "a.mp3", "a.png", "a.unknown", "png"]
    statuses = [(await upload(served, forms.file(name, content)))[0] for name in names]
    assert statuses == [201, 413, 201, 413, 413]


# Files in a question.


async def test_an_uploaded_file_reaches_the_answer_and_its_end(demo):
    served = await demo("dify")
    id_ = await uploaded(served)
    status, raw = await chat(served, local(id_))
    _, _, real = read_capture(FOLDER / "1.16.0" / "chat_streaming_image_local_file.http")
    (mine,), (theirs,) = (events(body)[-1]["files"] for body in (raw, real))
    assert status == 200
    assert list(mine) == list(theirs)
    same = ("extension", "filename", "size", "mime_type", "transfer_method", "type", "remote_url")
    assert {name: mine[name] for name in same} == {name: theirs[name] for name in same}
    assert mine["upload_file_id"] == id_
    assert f"/files/{id_}/file-preview?" in mine["url"]


async def test_a_remote_file_is_listed_at_the_end_by_its_url(demo):
    served = await demo("dify")
    _, raw = await chat(served, remote())
    _, _, real = read_capture(FOLDER / "1.16.0" / "chat_streaming_image_remote_url.http")
    (mine,), (theirs,) = (events(body)[-1]["files"] for body in (raw, real))
    ids = ("related_id", "upload_file_id")
    assert list(mine) == list(theirs)
    assert {**mine, **dict.fromkeys(ids)} == {**theirs, **dict.fromkeys(ids)}


async def test_a_chatflow_does_not_repeat_its_callers_files(demo):
    served = await demo("dify", mode="advanced-chat")
    _, raw = await chat(served, remote())
    assert events(raw)[-1]["files"] == []


@pytest.mark.parametrize("mode", ["streaming", "blocking"])
@pytest.mark.parametrize(
    ("capture", "file"),
    [
        ("chat_streaming_image_bad_upload_id", local(NOBODYS)),
        ("chat_streaming_file_bad_transfer_method", {**remote(), "transfer_method": "bogus"}),
        ("chat_streaming_file_dataurl", remote("data:image/png;base64,iVBORw0KGgo=")),
    ],
)
async def test_a_bad_file_gets_a_real_servers_error(demo, capture, file, mode):
    served = await demo("dify")
    status, raw = await chat(served, file, mode=mode)
    assert (status, json.loads(raw)) == captured(capture)


async def test_a_file_of_another_user_is_refused(demo):
    served = await demo("dify")
    id_ = await uploaded(served)
    status, raw = await chat(served, local(id_), user="user-999")
    assert (status, json.loads(raw)) == captured("chat_streaming_image_other_user")
    assert (await chat(served, local(id_)))[0] == 200


async def test_a_file_without_a_user_belongs_to_the_default_user(demo):
    served = await demo("dify")
    _, answer = await upload(served, forms.file())
    assert (await chat(served, local(answer["id"])))[0] == 400
    assert (await chat(served, local(answer["id"]), user="DEFAULT-USER"))[0] == 200


async def test_a_type_that_the_app_does_not_take_is_refused(demo):
    served = await demo("dify", file_types=["image", "document"])
    status, raw = await chat(served, remote(kind="audio"))
    assert (status, json.loads(raw)) == captured("chat_streaming_file_type_not_allowed")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (local(""), "Invalid upload file id"),
        (local("no uuid"), "Invalid upload file id format"),
        (remote("ftp://x.test/a.png"), "Reached maximum retries (3) for URL ftp://x.test/a.png"),
        (remote(kind="file"), "'file' is not a valid FileType"),
        (remote(kind="custom"), "File validation failed for file: red.png"),
        ({"transfer_method": "remote_url", "url": RED}, "File validation failed for file: red.png"),
    ],
)
async def test_a_malformed_file_item_is_refused(demo, file, words):
    served = await demo("dify")
    status, raw = await chat(served, file)
    assert (status, json.loads(raw)["message"]) == (400, words)


async def test_an_item_that_says_nothing_is_dropped(demo):
    served = await demo("dify")
    status, raw = await chat(served, {}, {"type": "image"}, remote(""))
    assert (status, events(raw)[-1]["files"]) == (200, [])


async def test_more_files_than_the_app_takes_are_refused(demo):
    served = await demo("dify")
    assert (await chat(served, *[remote()] * 3))[0] == 200
    for file, noun in ((remote(), "image files"), (remote(kind="document"), "files")):
        status, raw = await chat(served, *[file] * 4)
        words = f"Number of {noun} exceeds the maximum limit 3"
        assert (status, json.loads(raw)["message"]) == (400, words)


async def test_a_refused_question_is_not_remembered(demo):
    served = await demo("dify")
    _, raw = await chat(served)
    conversation = events(raw)[0]["conversation_id"]
    body = {"inputs": {}, "user": "user-001", "conversation_id": conversation}
    bad = {**body, "query": "refused", "files": [local(NOBODYS)]}
    assert (await ask(served.url, "/v1/chat-messages", bad))[0] == 400
    _, _, raw = await ask(served.url, "/v1/chat-messages", {**body, "query": "next"})
    assert "refused" not in json.loads(raw)["answer"]
    assert "看图" in json.loads(raw)["answer"]


async def test_an_app_without_uploads_drops_files_in_silence(demo):
    served = await demo("dify", file_types=[])
    status, raw = await chat(served, local(NOBODYS))
    assert (status, events(raw)[-1]["files"]) == (200, [])
    assert "文件" not in told_text(raw)


@pytest.mark.parametrize("mode", ["chat", "agent-chat", "advanced-chat"])
async def test_each_chat_app_names_the_uploaded_file(demo, mode):
    served = await demo("dify", mode=mode)
    _, raw = await chat(served, local(await uploaded(served)))
    assert "我收到了 1 个文件：红色方块.png。" in told_text(raw)


async def test_a_completion_app_takes_files_next_to_its_inputs(demo):
    served = await demo("dify", mode="completion")
    body = {"inputs": {"query": "看图"}, "response_mode": "streaming", "user": "user-001"}
    good, bad = (
        {**body, "files": [file]} for file in (local(await uploaded(served)), local(NOBODYS))
    )
    _, _, raw = await ask(served.url, "/v1/completion-messages", good)
    assert "我收到了 1 个文件：红色方块.png。" in told_text(raw)
    assert (await ask(served.url, "/v1/completion-messages", bad))[0] == 400


# A chatflow or workflow that streams refuses inside its stream.


def without_ids(body: bytes) -> list[dict]:
    """Events, with an empty text for values that differ between runs."""
    unlike = ("workflow_run_id", "task_id", "id", "workflow_id", "created_at", "finished_at")
    return [
        {
            key: {k: "" if k in unlike else v for k, v in value.items()} if key == "data"
            else "" if key in unlike else value
            for key, value in event.items()
        }
        for event in events(body)
    ]  # fmt: skip


@pytest.mark.parametrize(("mode", "ask_it"), [("advanced-chat", chat), ("workflow", run)])
async def test_a_streaming_graph_fails_in_a_real_servers_events(demo, mode, ask_it):
    served = await demo("dify", mode=mode)
    status, raw = await ask_it(served, local(STRANGER))
    capture = FOLDER / "1.16.0" / "chatflow_streaming_image_local_file.http"
    real_status, _, real = read_capture(capture)
    assert status == real_status == 200
    assert raw.startswith(b"event: ping\n\n")
    assert [list(event) for event in events(raw)] == [list(event) for event in events(real)]
    assert without_ids(raw) == without_ids(real)


@pytest.mark.parametrize(("mode", "ask_it"), [("advanced-chat", chat), ("workflow", run)])
async def test_a_blocking_graph_refuses_with_400(demo, mode, ask_it):
    served = await demo("dify", mode=mode)
    status, raw = await ask_it(served, local(STRANGER), mode="blocking")
    assert (status, json.loads(raw)) == captured("chat_streaming_image_bad_upload_id")


@pytest.mark.parametrize(
    ("mime", "name", "kind"),
    [
        ("image/png", "a.png", "image"),
        ("application/pdf", "a.pdf", "document"),
        ("audio/mpeg", "a.mp3", "audio"),
        ("video/mp4", "a.mp4", "video"),
        ("text/x-python", "a.py", "document"),
        ("image/png", "no extension", "image"),
    ],
)
async def test_a_workflow_takes_a_file_as_an_input_of_its_own(demo, mime, name, kind):
    served = await demo("dify", mode="workflow")
    id_ = await uploaded(served, forms.file(name, mime=mime))
    _, raw = await run(served, local(id_, kind))
    assert f"我收到了 1 个文件：{name}。" in told_text(raw)


@pytest.mark.parametrize(
    "file", [remote(kind="document"), remote("http://x.test/a.pdf", "image")], ids=["png", "pdf"]
)
async def test_a_workflow_demands_the_type_that_it_detects(demo, file):
    served = await demo("dify", mode="workflow")
    status, raw = await run(served, file, mode="blocking")
    words = "Detected file type does not match the specified type. Please verify the file."
    assert (status, json.loads(raw)["message"]) == (400, words)


async def test_a_workflow_demands_an_uploaded_files_type(demo):
    served = await demo("dify", mode="workflow")
    id_ = await uploaded(served)
    assert (await run(served, local(id_, "document"), mode="blocking"))[0] == 400
    assert (await run(served, local(id_, "image"), mode="blocking"))[0] == 200


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ([local(NOBODYS)], "file in input form must be a file"),
        ("a.png", "file in input form must be a file"),
        ({"type": "image"}, "transfer_method is required in file mapping"),
        (remote(""), "Invalid file url"),
    ],
)
async def test_a_workflows_file_input_is_one_file_item(demo, file, words):
    served = await demo("dify", mode="workflow")
    status, raw = await run(served, file, mode="blocking")
    assert (status, json.loads(raw)["message"]) == (400, words)


@pytest.mark.parametrize("mode", ["streaming", "blocking"])
async def test_a_workflows_file_input_may_be_left_out(demo, mode):
    served = await demo("dify", mode="workflow")
    status, raw = await run(served, None, mode=mode)
    assert status == 200
    assert "文件" not in raw.decode()


async def test_a_streamed_workflow_without_input_fails_in_its_stream(demo):
    served = await demo("dify", mode="workflow")
    body = {"inputs": {}, "response_mode": "streaming", "user": "user-001"}
    status, _, raw = await ask(served.url, "/v1/workflows/run", body)
    capture = FOLDER / "1.16.0" / "param_workflow_required_missing.http"
    real_status, _, real = read_capture(capture)
    assert (status, without_ids(raw)) == (real_status, without_ids(real))


# The app's own description.


async def parameters(served) -> dict:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"{served.url}/v1/parameters") as answer,
    ):
        return await answer.json()


@pytest.mark.parametrize(
    ("mode", "capture"),
    [
        ("chat", "chat_inputs_get_parameters"),
        ("agent-chat", "agent-chat_get_parameters"),
        ("completion", "completion_get_parameters"),
        ("advanced-chat", "chatflow_get_parameters"),
        ("workflow", "workflow_get_parameters"),
    ],
)
async def test_parameters_are_a_real_servers(demo, mode, capture):
    served = await demo("dify", mode=mode, file_types=["image", "document"])
    mine, (_, real) = await parameters(served), captured(capture)
    assert list(mine) == list(real)
    for name in ("file_upload", "system_parameters", "sensitive_word_avoidance"):
        assert mine[name] == real[name]
        assert list(mine[name]) == list(real[name])


async def test_a_workflow_has_a_file_variable_next_to_its_text(demo):
    served = await demo("dify", mode="workflow")
    mine, (_, real) = await parameters(served), captured("workflow_get_parameters")
    text, _, file = real["user_input_form"]
    assert [list(entry) for entry in mine["user_input_form"]] == [["paragraph"], ["file"]]
    assert list(mine["user_input_form"][0]["paragraph"]) == list(text["paragraph"])
    assert mine["user_input_form"][0]["paragraph"]["variable"] == "query"
    types = ["image", "document", "audio", "video"]
    more = {"label": mine["user_input_form"][1]["file"]["label"], "allowed_file_types": types}
    assert mine["user_input_form"][1]["file"] == {**file["file"], **more}
    assert list(mine["user_input_form"][1]["file"]) == list(file["file"])


@pytest.mark.parametrize("mode", ["chat", "workflow"])
async def test_an_app_can_have_uploads_switched_off(demo, mode):
    served = await demo("dify", mode=mode, file_types=[])
    mine = await parameters(served)
    assert mine["file_upload"]["enabled"] is False
    assert not any("file" in entry for entry in mine["user_input_form"])


async def test_configured_limits_are_reported(demo):
    served = await demo("dify", limits_mb={"image": 1, "other": 2}, file_limit=5)
    mine = await parameters(served)
    system = mine["system_parameters"]
    assert (system["image_file_size_limit"], system["file_size_limit"]) == (1, 2)
    assert system["video_file_size_limit"] == 100
    assert mine["file_upload"]["number_limits"] == 5
