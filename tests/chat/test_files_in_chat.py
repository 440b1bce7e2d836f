"""Files of a question, in the form that each platform accepts."""

import asyncio
import base64
import gc
import io
import json
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from conftest import AGENTS, Script, streamed

from gateway.demo import serve_demo

CAPTURES = Path(__file__).parent.parent / "platforms" / "captures" / "dify"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
DATA = "data:image/png;base64," + base64.b64encode(PNG).decode()
LINK = "https://x.test/a.png"
GLMS = {**AGENTS["zhipu"], "api": "glms", "assistant_id": "a"}
KINDS = {**AGENTS, "glms": GLMS}


@pytest.fixture
async def many(gateway, demo):
    """A gateway in front of one simulator of each kind; (gateway, simulators by name)."""
    served = {name: await demo(agent["platform"]) for name, agent in KINDS.items()}
    agents = {name: {**agent, "base_url": served[name].url} for name, agent in KINDS.items()}
    return await gateway(agents=agents), {name: one.demo for name, one in served.items()}


async def put(gw, name="图 1.png", content=PNG, agent="", **fields):
    """The `data` of an upload."""
    import aiohttp

    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file", io.BytesIO(content), filename=name)
    for field, value in fields.items():
        form.add_field(field, value)
    headers = {"Agent": agent} if agent else {}
    async with gw.client.post(f"{gw.url}/api/v1/upload", data=form, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return (await answer.json())["data"]


async def ask(gw, agent, *files, status=200, **body):
    async with gw.chat(agent, "看图", files=list(files), **body) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json()


def asked(demo):
    """The body of the latest question at a simulator."""
    questions = ("chat-messages", "chat/completions", "v3/chat", "workflows/run", "stream")
    return [body for path, body in demo.requests if any(q in path for q in questions)][-1]


def object_string(body):
    return json.loads(body["additional_messages"][0]["content"])


# A link that everyone can open is sent unchanged.


async def test_a_public_link_goes_as_each_platform_writes_it(many):
    gw, demos = many
    for agent in AGENTS:
        await ask(gw, agent, LINK)
    assert asked(demos["dify"])["files"] == [
        {"type": "image", "transfer_method": "remote_url", "url": LINK}
    ]
    assert object_string(asked(demos["coze"])) == [
        {"type": "text", "text": "看图"}, {"type": "image", "file_url": LINK},
    ]  # fmt: skip
    image = {"type": "image_url", "image_url": {"url": LINK}}
    for agent in ("fastgpt", "zhipu", "openai"):
        assert asked(demos[agent])["messages"][0]["content"][1] == image
    assert all(not demo.uploads for demo in demos.values())


# Stored files that others could not fetch.


@pytest.mark.parametrize("by", ["id", "file_id", "data", "object"])
async def test_an_upload_reaches_every_platform_however_it_is_named(many, by):
    gw, demos = many
    data = await put(gw)
    file = {
        "id": data["id"], "file_id": data["file_id"], "data": data,
        "object": {"url": data["id"], "type": "image"},
    }[by]  # fmt: skip
    for agent in KINDS:
        answer = await ask(gw, agent, file, user="u1")
        assert "1 个文件" in answer["choices"][0]["message"]["content"]
    for agent in ("dify", "coze", "glms"):
        (upload,) = demos[agent].uploads
        assert (upload.name, upload.mime, upload.size) == ("图 1.png", "image/png", len(PNG))
    assert demos["dify"].uploads[0].fields == {"user": "u1"}
    assert asked(demos["dify"])["files"] == [
        {
            "type": "image",
            "transfer_method": "local_file",
            "upload_file_id": demos["dify"].uploads[0].id,
        }
    ]
    assert object_string(asked(demos["coze"]))[1] == {
        "type": "image", "file_id": demos["coze"].uploads[0].id,
    }  # fmt: skip
    assert asked(demos["glms"])["file_list"][0]["file_id"] == demos["glms"].uploads[0].id
    for agent in ("fastgpt", "zhipu", "openai"):
        part = asked(demos[agent])["messages"][0]["content"][1]
        assert part == {"type": "image_url", "image_url": {"url": DATA}}


async def test_with_a_public_address_files_are_sent_as_links(gateway, demo, tmp_path):
    base = "https://files.example.com"
    served = {name: await demo(agent["platform"]) for name, agent in AGENTS.items()}
    agents = {name: {**agent, "base_url": served[name].url} for name, agent in AGENTS.items()}
    gw = await gateway(
        agents=agents,
        storage={"url": f"file:{tmp_path}", "public_base_url": base},
        auth={"anonymous": True},  # required next to a public address
    )
    data = await put(gw)
    assert data["id"].startswith(base)
    for agent in AGENTS:
        await ask(gw, agent, data["file_id"])
        assert data["id"] in orjson.dumps(asked(served[agent].demo)).decode().replace('\\"', '"')
        assert not served[agent].demo.uploads


async def test_data_is_uploaded_where_it_cannot_go_inside(many):
    gw, demos = many
    for agent in KINDS:
        await ask(gw, agent, DATA)
    for agent in ("dify", "coze", "glms"):
        (upload,) = demos[agent].uploads
        assert (upload.name, upload.mime, upload.size) == ("image.png", "image/png", len(PNG))
    for agent in ("fastgpt", "zhipu", "openai"):
        assert asked(demos[agent])["messages"][0]["content"][1]["image_url"]["url"] == DATA


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_parts_reach_every_platform(many, stream):
    gw, demos = many
    file = await put(gw, "报告.txt", "内容".encode())
    parts = [
        {"type": "text", "text": "看"},
        {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}},
        {"type": "file", "file": {"file_id": file["file_id"]}},
    ]
    for agent in ("dify", "coze", "glms", "openai"):
        body = {"messages": [{"role": "user", "content": parts}], "stream": stream}
        async with gw.complete(agent, **body) as answer:
            raw = await answer.read()
            assert answer.status == 200, raw
        text = (
            streamed(raw)["text"]
            if stream
            else orjson.loads(raw)["choices"][0]["message"]["content"]
        )
        assert "2 个文件" in text
    for agent in ("dify", "coze", "glms"):
        assert [upload.name for upload in demos[agent].uploads] == ["image.png", "报告.txt"]
    content = "data:text/plain;base64," + base64.b64encode("内容".encode()).decode()
    assert asked(demos["openai"])["messages"][0]["content"] == [
        *parts[:2], {"type": "file", "file": {"filename": "报告.txt", "file_data": content}},
    ]  # fmt: skip


async def test_audio_reaches_who_hears(many):
    gw, demos = many
    sound = base64.b64encode(b"RIFF\0\0\0\0WAVEfmt ").decode()
    part = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    for agent in ("dify", "coze", "openai", "zhipu"):
        async with gw.complete(agent, messages=[{"role": "user", "content": [part]}]) as answer:
            assert answer.status == 200, await answer.text()
    assert asked(demos["dify"])["files"][0]["type"] == "audio"
    assert object_string(asked(demos["coze"]))[0]["type"] == "audio"
    assert asked(demos["openai"])["messages"][0]["content"] == [part]
    for agent in ("fastgpt", "glms"):
        async with gw.complete(agent, messages=[{"role": "user", "content": [part]}]) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (400, "unsupported_file_kind")
            assert "'audio'" in error["message"]


async def test_files_by_link_go_inside_where_links_are_not_followed(gateway, demo):
    """OpenAI fetches links to images only, so the gateway fetches other files through its safe
    fetcher."""
    served, pages = await demo("openai"), await page(b"%PDF-1.7 hello", "application/pdf")
    agents = {"bot": {**AGENTS["openai"], "base_url": served.url}}
    async with pages as url:
        closed = await gateway(agents=agents)
        answer = await ask(closed, "bot", f"{url}/a.pdf", status=400)
        assert "fetch.allow" in answer["msg"]
        gw = await gateway(agents=agents, fetch={"allow": ["127.0.0.0/8"]})
        await ask(gw, "bot", f"{url}/a.pdf")
    data = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.7 hello").decode()
    assert asked(served.demo)["messages"][0]["content"][1] == {
        "type": "file", "file": {"filename": "a.pdf", "file_data": data},
    }  # fmt: skip


async def test_glms_are_given_what_a_link_leads_to_through_the_guard(gateway, demo):
    served, pages = await demo("zhipu"), await page(PNG, "image/png")
    agents = {"glms": {**GLMS, "base_url": served.url}}
    async with pages as url:
        closed = await gateway(agents=agents)
        answer = await ask(closed, "glms", f"{url}/a.png", status=400)
        assert "fetch.allow" in answer["msg"]
        gw = await gateway(agents=agents, fetch={"allow": ["127.0.0.0/8"]})
        await ask(gw, "glms", f"{url}/a.png")
        await ask(gw, "glms", f"{url}/missing", status=400)
    (upload,) = served.demo.uploads
    assert (upload.name, upload.size) == ("a.png", len(PNG))


async def page(content: bytes, kind: str):
    """A web server with one file, and nothing at /missing."""

    class Page:
        def app(self):
            async def get(request):
                if request.path == "/missing":
                    raise web.HTTPNotFound
                return web.Response(body=content, content_type=kind)

            app = web.Application()
            app.router.add_get("/{path:.*}", get)
            return app

    return serve_demo(Page())


# Files that FastGPT and Zhipu's models cannot reach.


@pytest.mark.parametrize("agent", ["fastgpt", "zhipu"])
async def test_an_unreachable_document_is_400_and_says_what_to_do(many, agent):
    gw, _ = many
    data = await put(gw, "报告.pdf", b"%PDF-1.7")
    answer = await ask(gw, agent, data["file_id"], status=400)
    assert "storage.public_base_url" in answer["msg"]
    assert answer["detail"]["error"] == "unsupported_file_kind"


async def test_zhipus_models_get_files_in_their_own_form(many):
    gw, demos = many
    await ask(gw, "zhipu", "https://x.test/a.pdf", "https://x.test/b.mp4")
    assert asked(demos["zhipu"])["messages"][0]["content"][1:] == [
        {"type": "file_url", "file_url": {"url": "https://x.test/a.pdf"}},
        {"type": "video_url", "video_url": {"url": "https://x.test/b.mp4"}},
    ]


async def test_an_application_takes_no_files_and_says_so(gateway, demo):
    served = await demo("zhipu")
    agent = {**AGENTS["zhipu"], "api": "application", "app_id": "a", "base_url": served.url}
    gw = await gateway(agents={"app": agent})
    answer = await ask(gw, "app", LINK, status=400)
    assert "'image'" in answer["msg"]
    assert served.demo.requests == []


async def test_a_file_goes_to_the_next_agent_that_takes_it(gateway, demo):
    deaf, hearing = await demo("fastgpt"), await demo("coze")
    gw = await gateway(
        agents={"deaf": {**AGENTS["fastgpt"], "base_url": deaf.url},
                "hearing": {**AGENTS["coze"], "base_url": hearing.url}},
        routes={"any": ["deaf", "hearing"]},
    )  # fmt: skip
    await ask(gw, "any", {"url": "https://x.test/a.mp3"})
    assert deaf.demo.requests == []
    assert len(hearing.demo.requests) == 1


# `upload: platform`.


@pytest.fixture
async def handed_on(gateway, demo):
    """A gateway whose agents keep their own files; (gateway, simulators by name)."""
    names = ("dify", "coze", "glms")
    served = {name: await demo(KINDS[name]["platform"]) for name in names}
    agents = {
        name: {**KINDS[name], "base_url": served[name].url, "upload": "platform"} for name in names
    }
    gw = await gateway(agents=agents, storage={"url": "file:/dev/null/nowhere"})
    return gw, {name: one.demo for name, one in served.items()}


async def test_an_upload_is_handed_on_and_its_id_works_in_a_chat(handed_on):
    gw, demos = handed_on
    content = PNG + bytes(3_000_000)
    for agent, simulator in demos.items():
        data = await put(gw, "红.png", content, agent, created_by="小明")
        (upload,) = simulator.uploads
        assert (upload.name, upload.size, upload.mime) == ("红.png", len(content), "image/png")
        assert data.items() >= {
            "name": "红.png", "size": len(content), "extension": "png",
            "mime_type": "image/png", "created_by": "小明",
        }.items()  # fmt: skip
        for file in (data["id"], data, {"id": data["id"], "type": "image"}):
            answer = await ask(gw, agent, file, user="小明")
            assert "红.png" in answer["choices"][0]["message"]["content"]
    assert demos["dify"].uploads[0].fields == {"user": "小明"}
    assert demos["dify"].uploads[0].id == asked(demos["dify"])["files"][0]["upload_file_id"]


async def test_another_user_of_dify_cannot_use_the_file(handed_on):
    gw, _ = handed_on
    data = await put(gw, agent="dify", created_by="小明")
    answer = await ask(gw, "dify", data, user="小红", status=400)
    assert "Invalid upload file" in answer["msg"]


async def test_an_id_of_unknown_kind_has_to_say_it(handed_on):
    gw, _ = handed_on
    answer = await ask(gw, "dify", "4f54b927-d986-49c7-8583-29708e393d63", status=400)
    assert "'type'" in answer["msg"]


async def test_a_platform_file_id_is_refused_by_other_agents(many):
    gw, _ = many
    for agent in ("fastgpt", "zhipu"):
        answer = await ask(gw, agent, {"id": "4f54b927", "type": "image"}, status=404)
        assert answer["detail"]["error"] == "file_not_found"


@pytest.mark.parametrize(
    "id_", ["glms-", "glms-!!!", "glms-e30=x", "glms-" + "A" * 4000, "nonsense"]
)
async def test_an_id_that_no_upload_gave_is_400(handed_on, id_):
    gw, _ = handed_on
    answer = await ask(gw, "glms", {"id": id_, "type": "image"}, status=400)
    assert "no id of a file" in answer["msg"]


async def test_a_bad_form_is_never_completed_at_the_platform(handed_on):
    import aiohttp

    gw, demos = handed_on
    for fields in ([("file", PNG, "a.png"), ("file", PNG, "b.png")],
                   [("file", PNG, "a.png"), ("created_by", b"x" * 20_000, None)]):  # fmt: skip
        form = aiohttp.FormData()
        for name, content, filename in fields:
            form.add_field(
                name, io.BytesIO(content) if filename else content.decode(), filename=filename
            )
        answer = await gw.client.post(
            f"{gw.url}/api/v1/upload", data=form, headers={"Agent": "dify"}
        )
        assert answer.status == 400
        assert "Agent" not in (await answer.json())["msg"]
    assert demos["dify"].uploads == []


async def test_a_refused_upload_reports_the_platforms_message(handed_on):
    gw, demos = handed_on
    import aiohttp

    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(PNG + bytes(11_000_000)), filename="a.png")
    answer = await gw.client.post(f"{gw.url}/api/v1/upload", data=form, headers={"Agent": "dify"})
    body = await answer.json()
    assert answer.status == 413
    assert body["msg"].startswith(
        "Agent 'dify': The file is too large for Dify. File size exceeded"
    )


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (Script([b"<html>"], status="502 Bad Gateway"), 502),
        (Script([b"not json"], headers={"Content-Type": "application/json"}), 502),
        (Script([b'{"code":"unauthorized","message":"Access token is invalid","status":401}'], status="401 X"), 502),
        (Script([], end="reset"), 502),
        (Script([b'{"id":'], headers={"Content-Type": "application/json"}, end="reset"), 502),
    ],
)  # fmt: skip
@pytest.mark.parametrize("agent", ["dify", "coze"])
async def test_a_platform_that_fails_at_an_upload_is_named(
    gateway, scripted, script, status, agent
):
    import aiohttp

    upstream = await scripted(script)
    bot = {**AGENTS[agent], "base_url": upstream.url, "upload": "platform", "retries": 0}
    gw = await gateway(agents={"bot": bot})
    form = aiohttp.FormData()
    form.add_field("file", io.BytesIO(b"hello"), filename="a.txt")
    answer = await gw.client.post(f"{gw.url}/api/v1/upload", data=form, headers={"Agent": "bot"})
    body = await answer.json()
    assert answer.status == status
    assert body["msg"].startswith("Agent 'bot':")


async def test_coze_with_oauth_fetches_its_token_before_an_upload(gateway, demo):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    served = await demo("coze", key="only-tokens")
    oauth = {"app_id": "1", "key_id": "k", "private_key": key.decode()}
    agent = {"platform": "coze", "bot_id": "7", "base_url": served.url, "oauth": oauth}
    gw = await gateway(agents={"coze": {**agent, "upload": "platform"}})
    data = await put(gw, agent="coze")
    await ask(gw, "coze", data)
    assert len([path for path, _ in served.demo.requests if "oauth2" in path]) == 1


# Dify, compared with recorded answers of real servers.


def recorded(name, version="1.16.0") -> Script:
    raw = (CAPTURES / version / f"{name}.http").read_bytes()
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    chunked = headers.pop("Transfer-Encoding", "") == "chunked"
    if chunked:  # the body already has its framing
        headers["Transfer-Encoding"] = "chunked"
    return Script([body], first.partition(" ")[2], headers, chunked=False)


def was_asked(name, version="1.16.0"):
    return json.loads((CAPTURES / version / f"{name}.req.json").read_text("utf-8"))["body"]


def info(mode: str) -> Script:
    return Script(
        [b'{"name":"app","mode":"%s"}' % mode.encode()],
        headers={"Content-Type": "application/json"},
    )


@pytest.mark.parametrize("version", ["1.16.0", "0.15.3"])
async def test_a_captured_chat_with_an_upload_file_id(gateway, scripted, version):
    """Upload, then ask: each request equals the captured one, each answer is the captured one."""
    upstream = await scripted(
        info("chat"), recorded("chat_inputs_get_parameters", version), recorded("files_upload_ok", version),
        recorded("chat_streaming_image_local_file", version),
    )  # fmt: skip
    gw = await gateway(agents={"dify": {**AGENTS["dify"], "base_url": upstream.url}})
    answer = await ask(gw, "dify", DATA, user="user-001")
    assert answer["choices"][0]["message"]["content"].startswith("图片里是一个红色")
    assert not (answer.get("gateway") or {}).get("files")  # the user's own file is not the bot's
    upload_line, headers, form = upstream.requests[2]
    assert upload_line == "POST /v1/files/upload HTTP/1.1"
    assert headers["authorization"] == "Bearer app-test-key"
    assert b'name="user"\r\n\r\nuser-001\r\n' in form
    assert b'name="file"; filename="image.png"\r\nContent-Type: image/png\r\n\r\n' + PNG in form
    uploaded = json.loads(recorded("files_upload_ok", version).pieces[0])["id"]
    sent = upstream.bodies("chat-messages")[0]
    captured = was_asked("chat_streaming_image_local_file", version)
    assert sent["files"] == [{**captured["files"][0], "upload_file_id": uploaded}]
    assert {k: sent[k] for k in captured if k != "files"} == {
        k: v for k, v in captured.items() if k != "files"
    }


async def test_a_captured_workflow_with_a_file_variable(gateway, scripted):
    name = "workflow_streaming_file_input_local"
    upstream = await scripted(
        info("workflow"),
        recorded("workflow_get_parameters"),
        recorded("files_upload_ok"),
        recorded(name),
    )
    gw = await gateway(agents={"flow": {**AGENTS["dify"], "base_url": upstream.url}})
    await ask(gw, "flow", DATA, user="user-001")
    uploaded = json.loads(recorded("files_upload_ok").pieces[0])["id"]
    sent, captured = upstream.bodies("workflows/run")[0], was_asked(name)
    captured["inputs"]["file"]["upload_file_id"] = uploaded
    assert sent["inputs"] == captured["inputs"]
    assert "files" not in sent


def parameters(**told) -> Script:
    return Script(
        [orjson.dumps({"user_input_form": [], **told})],
        headers={"Content-Type": "application/json"},
    )


async def test_a_kind_that_an_app_refuses_is_not_sent(gateway, scripted):
    """Chatflows whose switch is off drop files silently, and the bot answers without them."""
    off = {"enabled": False, "image": {"enabled": False}}
    upstream = await scripted(info("advanced-chat"), parameters(file_upload=off))
    gw = await gateway(agents={"flow": {**AGENTS["dify"], "base_url": upstream.url}})
    before = (await (await gw.get("/api/v1/agents")).json())["data"]["agents"][0]["capabilities"]
    assert before["file_upload"] is True
    answer = await ask(gw, "flow", DATA, status=400)
    assert answer["detail"]["error"] == "unsupported_file_kind"
    assert "text only" in answer["msg"]
    assert len(upstream.requests) == 2
    after = (await (await gw.get("/api/v1/agents")).json())["data"]["agents"][0]["capabilities"]
    assert (after["file_upload"], after["file_kinds"]) == (False, [])


async def test_what_an_app_takes_by_link_alone_is_not_uploaded(gateway, scripted):
    rules = {
        "enabled": True,
        "allowed_file_types": ["image"],
        "allowed_file_upload_methods": ["remote_url"],
    }
    upstream = await scripted(info("advanced-chat"), parameters(file_upload=rules),
                              recorded("chat_streaming_image_remote_url"))  # fmt: skip
    gw = await gateway(agents={"flow": {**AGENTS["dify"], "base_url": upstream.url}})
    answer = await ask(gw, "flow", DATA, status=400)
    assert "by URL only" in answer["msg"]
    await ask(gw, "flow", LINK)
    answer = await ask(gw, "flow", "https://x.test/a.pdf", status=400)
    assert "'file'" in answer["msg"]


async def test_a_link_for_an_upload_only_app_is_fetched_and_uploaded(gateway, scripted):
    rules = {
        "enabled": True,
        "allowed_file_types": ["image"],
        "allowed_file_upload_methods": ["local_file"],
    }
    pages = await page(PNG, "image/png")
    upstream = await scripted(
        info("chat"), parameters(file_upload=rules), recorded("files_upload_ok"),
        recorded("chat_streaming_image_local_file"),
    )  # fmt: skip
    gw = await gateway(
        agents={"flow": {**AGENTS["dify"], "base_url": upstream.url}},
        fetch={"allow": ["127.0.0.1"]},
    )
    async with pages as url:
        await ask(gw, "flow", f"{url}/a.png", user="user-001")
    assert upstream.bodies("chat-messages")[0]["files"][0]["transfer_method"] == "local_file"


async def test_an_app_with_unknown_file_rules_is_still_asked(gateway, scripted):
    broken = Script([b"oops"], status="500 Oops")
    upstream = await scripted(info("chat"), broken, recorded("chat_streaming_image_remote_url"))
    gw = await gateway(agents={"dify": {**AGENTS["dify"], "base_url": upstream.url}})
    await ask(gw, "dify", LINK)


async def test_two_files_for_a_one_file_workflow_are_not_cut_to_one(gateway, scripted):
    upstream = await scripted(info("workflow"), recorded("workflow_get_parameters"))
    gw = await gateway(agents={"flow": {**AGENTS["dify"], "base_url": upstream.url}})
    answer = await ask(gw, "flow", LINK, LINK, status=400)
    assert "one file" in answer["msg"]


async def test_a_file_is_uploaded_once_for_all_attempts(gateway, scripted):
    busy = Script([b"no worker is free"], status="503 Service Unavailable", headers={})
    upstream = await scripted(
        info("chat"), recorded("chat_inputs_get_parameters"), recorded("files_upload_ok"), busy,
        recorded("chat_streaming_image_local_file"),
    )  # fmt: skip
    gw = await gateway(agents={"dify": {**AGENTS["dify"], "base_url": upstream.url}})
    await ask(gw, "dify", DATA, user="user-001")
    assert sum("files/upload" in line for line, _, _ in upstream.requests) == 1


# Bad input.


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({}, "or the 'id' of an upload"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "ftp://x.test/a"}, "url"),
        ({"url": 5}, "url"),
        ({"type": "image"}, "or the 'id' of an upload"),
        ({"id": "x", "type": "hologram"}, "type"),
        (5, "files"),
        (None, "files"),
        ("data:image/png;base64,%%%", "base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png", "comma"),
        ("file-20261122-" + "a" * 39 + "-png", "no file"),
        ("not a url", "type"),
        ("file-nope", "no file 'file-nope'"),
        (12, "a URL, the id of an upload, or an object"),
    ],
)
async def test_a_file_that_is_none_is_400_or_404_and_says_why(many, file, words):
    gw, demos = many
    async with gw.chat("dify", "看", files=[file]) as answer:
        assert answer.status in (400, 404)
        assert words in (await answer.json())["msg"]
    assert not [path for path, _ in demos["dify"].requests if "chat-messages" in path]


async def test_a_gateway_link_to_a_deleted_file_is_404(many):
    gw, demos = many
    data = await put(gw)
    await gw.client.delete(f"{gw.url}/v1/files/{data['file_id']}")
    for link in (data["id"], f"{gw.url}/files/uploads/2026/11/22/mistyped.png"):
        answer = await ask(gw, "dify", link, status=404)
        assert answer["detail"]["error"] == "file_not_found"
    assert demos["dify"].requests == []


async def test_a_link_of_another_gateway_goes_as_any_link(many):
    gw, demos = many
    link = f"https://other.example.com/files/uploads/2026/11/22/{'a' * 39}.png"
    await ask(gw, "dify", link)
    assert asked(demos["dify"])["files"][0]["url"] == link


async def test_a_gateway_link_is_recognised_by_its_name(many):
    gw, demos = many
    data = await put(gw)
    link = data["id"].replace(gw.url, "https://inside.example.com")
    await ask(gw, "dify", link)
    assert len(demos["dify"].uploads) == 1


async def test_a_file_too_large_to_go_inside_a_request_is_413(many, monkeypatch):
    monkeypatch.setattr("gateway.chat.delivery.MAX_DATA", 50)
    gw, _ = many
    data = await put(gw)
    answer = await ask(gw, "openai", data["file_id"], status=413)
    assert "the most that can go inside" in answer["msg"]


async def test_many_files_together_have_one_limit(many, monkeypatch):
    monkeypatch.setattr("gateway.chat.delivery.MAX_DATA", 300)
    gw, _ = many
    data = await put(gw)
    await ask(gw, "openai", *[data["file_id"]] * 4)
    answer = await ask(gw, "openai", *[data["file_id"]] * 5, status=413)
    assert "too large together" in answer["msg"]
    monkeypatch.setattr("gateway.chat.delivery.MAX_UPLOADED", 2)
    links = ["data:text/plain;base64," + base64.b64encode(b"%d" % i).decode() for i in range(3)]
    answer = await ask(gw, "dify", *links, status=400)
    assert "may bring 2 files" in answer["msg"]


async def test_a_data_url_that_is_long_must_be_base64(many):
    gw, _ = many
    answer = await ask(gw, "dify", "data:text/plain," + "%41" * 50_000, status=400)
    assert "base64" in answer["msg"]


async def test_unknown_parts_stay_next_to_replaced_files(many):
    gw, demos = many
    data = await put(gw, "a.pdf", b"%PDF-1.7")
    parts = [
        {"type": "hologram", "x": 1},
        {"type": "image_url", "image_url": {"url": (await put(gw))["id"], "detail": "low"}, "cache_control": {"type": "ephemeral"}},
        {"type": "file", "file": {"file_id": data["file_id"]}},
    ]  # fmt: skip
    async with gw.complete("openai", messages=[{"role": "user", "content": parts}]) as answer:
        assert answer.status == 200, await answer.text()
    sent = asked(demos["openai"])["messages"][0]["content"]
    assert sent[0] == parts[0]
    assert sent[1] == {
        "type": "image_url", "image_url": {"url": DATA, "detail": "low"}, "cache_control": {"type": "ephemeral"},
    }  # fmt: skip
    assert sent[2]["file"]["file_data"].startswith("data:application/pdf;base64,")


async def test_openai_gets_documents_inline_even_with_public_links(gateway, demo, tmp_path):
    served = await demo("openai")
    storage = {"url": f"file:{tmp_path}", "public_base_url": "https://files.example.com"}
    gw = await gateway(
        agents={"bot": {**AGENTS["openai"], "base_url": served.url}},
        storage=storage,
        auth={"anonymous": True},
    )
    data = await put(gw, "a.pdf", b"%PDF-1.7")
    part = {"type": "file", "file": {"file_id": data["file_id"]}}
    async with gw.complete("bot", messages=[{"role": "user", "content": [part]}]) as answer:
        assert answer.status == 200
    sent = asked(served.demo)["messages"][0]["content"][0]
    assert sent["file"]["file_data"].startswith("data:application/pdf;base64,")


async def test_an_answer_before_the_whole_file_was_taken_is_no_success(gateway):
    class Hasty:
        def app(self):
            async def post(request):
                return web.json_response({"id": "4f54b927"}, status=201)

            app = web.Application()
            app.router.add_post("/v1/files/upload", post)
            return app

    async def slowly():
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        yield head + b"x" * 20_000
        for _ in range(6):  # the form reader is one piece late
            await asyncio.sleep(0.05)
            yield b"x" * 20_000
        yield b"\r\n--b--\r\n"

    async with serve_demo(Hasty()) as url:
        bot = {**AGENTS["dify"], "base_url": url, "upload": "platform", "mode": "chat"}
        gw = await gateway(agents={"bot": bot})
        headers = {"Agent": "bot", "Content-Type": "multipart/form-data; boundary=b"}
        upload = gw.client.post(f"{gw.url}/api/v1/upload", data=slowly(), headers=headers)
        async with upload as answer:
            assert answer.status == 502
            assert "before it had the whole file" in await answer.text()


def of_chats():
    return [o for o in gc.get_objects() if type(o).__name__ in ("Run", "Delivery", "ChatRequest")]


@pytest.mark.parametrize("status", [200, 413])
async def test_nothing_of_a_chat_stays_in_memory_when_it_is_over(many, monkeypatch, status):
    """Reference cycles would stay until a garbage collection, which is rare."""
    gw, _ = many
    if status == 413:
        monkeypatch.setattr("gateway.chat.delivery.MAX_DATA", 10)
    data = await put(gw)
    await ask(gw, "openai", data["file_id"], status=status)
    gc.collect()
    before = {id(o) for o in of_chats()}  # such as objects of other tests
    gc.disable()
    try:
        await ask(gw, "openai", data["file_id"], status=status)
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert [o for o in of_chats() if id(o) not in before] == []
    finally:
        gc.enable()


async def test_history_brings_its_files_to_those_who_get_the_history(many):
    gw, demos = many
    data = await put(gw)
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "看"}, {"type": "image_url", "image_url": {"url": data["id"]}}]},
        {"role": "assistant", "content": "好"},
        {"role": "user", "content": "再说一遍"},
    ]  # fmt: skip
    for agent in ("coze", "fastgpt", "openai", "dify"):
        async with gw.complete(agent, messages=turns) as answer:
            assert answer.status == 200, await answer.text()
    assert len(demos["coze"].uploads) == 1
    assert demos["dify"].uploads == []
    assert asked(demos["openai"])["messages"][0]["content"][1]["image_url"]["url"] == DATA
