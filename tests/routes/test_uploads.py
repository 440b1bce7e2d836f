"""Uploads and stored files through the API: every kind of form, every fault, on a folder and S3."""

import asyncio
import gzip
import os
import re
import shutil
import time
from contextlib import suppress

import aiohttp
import openai
import pytest
from conftest import AGENTS, UNLIMITED

from gateway.errors import SenderTooSlow
from gateway.http.context import FILES

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000008000000080802000000"
    "4b6d29dc0000001149444154789c63382167830531" "0c2d0900776c48c1fcc338300000000049454e44ae426082"
)  # fmt: skip
BOUNDARY = "----test-boundary"


def form(*parts: tuple[str, bytes, str | None], end: bool = True) -> bytes:
    """A multipart body of (field, content, filename) in this order."""
    out = b""
    for name, content, filename in parts:
        named = f'; filename="{filename}"' if filename is not None else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
        out += head.encode("utf-8", "surrogateescape") + content + b"\r\n"
    return out + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def upload(gw, *parts, path="/api/v1/upload", end=True, **headers):
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return gw.post(path, form(*parts, end=end), headers=kind | headers)


def png(name="a.png"):
    return ("file", PNG, name)


async def kept(gw):
    """The names of everything in the store."""
    store = gw.app[FILES]._store
    return [name for day in await store.days() for name in await store.names(day)]


@pytest.fixture
async def gw(gateway, demo, storage):
    served = await demo("dify")
    agents = {"dify": {**AGENTS["dify"], "base_url": served.url}}
    return await gateway(agents=agents, storage=storage)


# The answer, and the link in it.


async def test_an_uploads_answer_has_all_members_and_a_working_url(gw):
    answer = await (await upload(gw, png("红色方块.png"), ("created_by", b"user-1", None))).json()
    assert (answer["code"], answer["msg"]) == (0, "Success")
    data = answer["data"]
    assert data.items() >= {
        "name": "红色方块.png", "size": len(PNG), "extension": "png", "mime_type": "image/png",
        "created_by": "user-1",
    }.items()  # fmt: skip
    assert isinstance(data["created_at"], int)
    assert re.search(r"/uploads/\d{4}/\d\d/\d\d/[0-9A-Za-z]{39}\.png(\?|$)", data["id"])
    link = await gw.client.get(data["id"])
    assert (link.status, await link.read()) == (200, PNG)
    assert link.headers["Content-Type"] == "image/png"
    assert "%E7%BA%A2" in link.headers["Content-Disposition"]


async def test_the_user_field_may_be_before_or_after_the_file(gw):
    user = ("created_by", "小明".encode(), None)
    for parts in ((user, png()), (png(), user)):
        assert (await (await upload(gw, *parts)).json())["data"]["created_by"] == "小明"
    answer = await (await upload(gw, png())).json()
    assert answer["data"]["created_by"].startswith("anonymous-")


@pytest.mark.parametrize(
    ("given", "name"),
    [("报告 (终稿).txt", "报告 (终稿).txt"), ("😀.txt", "😀.txt"), ("a%22b.txt", 'a"b.txt'),
     ("../../../etc/passwd.txt", "passwd.txt"), ("字" * 300 + ".txt", "字" * 196 + ".txt")],
)  # fmt: skip
async def test_odd_names_come_back_and_never_become_paths(gw, given, name):
    data = (await (await upload(gw, ("file", b"hello", given))).json())["data"]
    assert data["name"] == name
    assert re.fullmatch(r"[0-9A-Za-z.:/?&=_%+-]+", data["id"])
    answer = await gw.get(f"/v1/files/{data['file_id']}/content")
    assert await answer.read() == b"hello"
    disposition = answer.headers["Content-Disposition"]
    _, params = aiohttp.multipart.parse_content_disposition(disposition)
    assert aiohttp.multipart.content_disposition_filename(params) == name


async def test_a_link_to_a_folder_has_ranges_and_is_safe_to_show(gateway, tmp_path):
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage={"url": f"file:{tmp_path}"})
    data = (await (await upload(gw, png())).json())["data"]
    answer = await gw.client.get(data["id"], headers={"Range": "bytes=1-3"})
    assert (answer.status, await answer.read()) == (206, b"PNG")
    assert answer.headers["Content-Range"] == f"bytes 1-3/{len(PNG)}"
    head = await gw.client.head(data["id"])
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(PNG)))
    assert head.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in head.headers["Content-Security-Policy"]
    assert head.headers["Content-Disposition"].startswith("inline;")
    past = await gw.client.get(data["id"], headers={"Range": "bytes=100000-"})
    assert past.status == 416
    again = await gw.client.get(data["id"], headers={"If-None-Match": head.headers["Etag"]})
    assert again.status == 304


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"),
     ("a.html", b"<html><script>alert(1)</script>"), ("a.zip", b"PK\x05\x06" + bytes(18))],
)  # fmt: skip
async def test_what_could_run_is_never_shown_at_our_address(gateway, tmp_path, name, content):
    storage = {"url": f"file:{tmp_path}", "extensions": ["svg", "html", "zip"]}
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage=storage)
    data = (await (await upload(gw, ("file", content, name))).json())["data"]
    answer = await gw.client.get(data["id"])
    assert answer.headers["Content-Disposition"].startswith("attachment;")


async def test_no_other_path_below_files_leads_anywhere(gw):
    data = (await (await upload(gw, png())).json())["data"]
    name = re.search(r"uploads/.*\.png", data["id"])[0]
    other = "y" if name[-5] == "x" else "x"
    for path in (
        f"{name[:-5]}{other}.png", name.replace(".png", ".about.json"), name.replace(".png", ".txt"),
        "uploads/../../../etc/passwd", "uploads/%2e%2e/%2e%2e/etc/passwd", "uploads/.parts/x",
        "uploads/2026/11/22/" + "a" * 39 + ".png", "uploads//etc/passwd", "uploads/2026/11/22/",
    ):  # fmt: skip
        answer = await gw.get("/files/" + path, allow_redirects=False)
        assert answer.status == 404, path


async def test_a_link_through_the_gateway_leads_on_to_the_bucket(gateway, shared_s3):
    storage = shared_s3.storage(shared_s3.bucket("led-on"))
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage=storage)
    data = (await (await upload(gw, png())).json())["data"]
    name = re.search(r"uploads/.*\.png", data["id"])[0]
    answer = await gw.get(f"/files/{name}", allow_redirects=False)
    assert answer.status == 302
    assert answer.headers["Location"].startswith(shared_s3.url)


async def test_links_are_those_the_client_can_follow(gateway, tmp_path):
    agents, storage = {"dify": {"platform": "dify"}}, {"url": f"file:{tmp_path}"}
    auth = {"anonymous": True, "anonymous_anywhere": True}  # through a proxy a key is needed
    gw = await gateway(agents=agents, storage=storage, auth=auth)
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "gw.example.com"}
    data = (await (await upload(gw, png(), **forwarded)).json())["data"]
    assert data["id"].startswith(gw.url)  # the gateway does not trust these headers by default
    behind = await gateway(
        agents=agents, storage=storage, server={"trusted_proxies": ["127.0.0.1"]}, auth=auth
    )
    data = (await (await upload(behind, png(), **forwarded)).json())["data"]
    assert data["id"].startswith("https://gw.example.com/files/uploads/")
    odd = {**forwarded, "X-Forwarded-Host": "evil.com/<script>"}
    data = (await (await upload(behind, png(), **odd)).json())["data"]
    assert data["id"].startswith("/files/")
    public = {**storage, "public_base_url": "https://files.example.com/"}
    named = await gateway(agents=agents, storage=public, auth=auth)
    data = (await (await upload(named, png())).json())["data"]
    assert data["id"].startswith("https://files.example.com/files/uploads/")


# Refused uploads leave nothing in the store.


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ([], 400, "no part named 'file'"),
        ([("created_by", b"u", None)], 400, "it has 'created_by'"),
        ([("image", PNG, "a.png")], 400, "no part named 'file'"),
        ([("file", b"", "a.txt")], 400, "empty"),
        ([("file", b"text", None)], 400, "no filename"),
        ([png(), png()], 400, "one file per upload"),
        ([png(), ("other", b"x", "b.txt")], 400, "one file per upload"),
        ([png(), ("created_by", b"x" * 10_000, None)], 400, "too long"),
        ([*[(f"f{i}", b"x", None) for i in range(30)], png()], 400, "more than 20 fields"),
        ([("file", b"MZ\x90\0" + bytes(100), "a.exe")], 415, ".exe"),
        ([("file", b"x", "noending")], 415, "without an ending"),
        ([("file", b"MZ\x90\0" + bytes(100), "a.png")], 415, "x-msdownload"),
        ([("file", b"<html><script>", "a.png")], 415, "no picture"),
        ([("file", b"\x7fELF" + bytes(60), "a.txt")], 415, "'.txt'"),
        ([("file", b"<!DOCTYPE html><script>", "a.pdf")], 415, "a page or a script"),
    ],
)  # fmt: skip
async def test_what_is_no_good_file_is_refused_and_leaves_nothing(gw, parts, status, words):
    answer = await upload(gw, *parts)
    body = await answer.json()
    assert (answer.status, body["code"]) == (status, status)
    assert words in body["msg"]
    assert await kept(gw) == []


async def test_a_body_that_is_no_form_is_400_and_says_what_to_send(gw):
    for body, kind in (
        (b"{}", "application/json"), (b"", "text/plain"), (b"x=1", "application/x-www-form-urlencoded"),
        (b"--x\r\n", "multipart/form-data"), (b"garbage" * 100, f"multipart/form-data; boundary={BOUNDARY}"),
        (b"--a\r\n\r\n", "multipart/form-data; boundary=" + "b" * 100),
        (form(png(), end=False), f"multipart/form-data; boundary={BOUNDARY}"),
        (form(png())[:-60], f"multipart/form-data; boundary={BOUNDARY}"),
        (f"--{BOUNDARY}\r\n".encode() + b"X: " + b"y" * 100_000, f"multipart/form-data; boundary={BOUNDARY}"),
    ):  # fmt: skip
        answer = await gw.post("/api/v1/upload", body, headers={"Content-Type": kind})
        assert answer.status == 400, (kind, body[:40])
        assert "form" in (await answer.json())["msg"]
    assert await kept(gw) == []


async def test_a_form_cut_anywhere_is_refused_and_leaves_nothing(gateway, tmp_path):
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage={"url": f"file:{tmp_path}"})
    whole = form(("created_by", b"u", None), png(), ("purpose", b"vision", None))
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    for end in range(0, len(whole) - 4, 5):  # the last bytes are `--` and the line's end
        answer = await gw.post("/api/v1/upload", whole[:end], headers=kind)
        assert answer.status in (400, 415), whole[:end]  # the beginning of an image is not an image
    assert await kept(gw) == []
    assert (await gw.post("/api/v1/upload", whole, headers=kind)).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n" * 500_000 + form(png()),
        b"x" * 1_000_000 + b"\r\n" + form(png()),
        form(*[("created_by", b"x", None)] * 50_000),
        form(*[("created_by", b"x", None)] * 22, png()),
        form(png(), *[("created_by", b"x", None)] * 50_000),
        form(("_charset_", b"x" * 100, None), png()),
        form(("file", PNG, "a.png")).replace(b'filename="a.png"', b"filename*=unicode_escape''%5Cud800.png"),
        form(("file", PNG, "a.png")).replace(b'filename="a.png"', b"filename*=utf-7''%2BAGE-.png"),
    ],
    ids=["newlines", "preamble", "parts", "names", "parts behind", "charset", "escape", "utf-7"],
)  # fmt: skip
async def test_an_expensive_form_is_abandoned_early(gateway, tmp_path, body):
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage={"url": f"file:{tmp_path}"})
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    took = time.process_time()
    async with gw.post("/api/v1/upload", body, headers=kind) as answer:
        assert answer.status < 500
    assert time.process_time() - took < 2  # 3 s to 75 s if all of it were read
    assert answer.status == 200 or await kept(gw) == []


async def test_a_compressed_form_is_refused(gw):
    packed = {
        "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
        "Content-Encoding": "gzip",
    }
    async with gw.post("/api/v1/upload", gzip.compress(form(png())), headers=packed) as answer:
        assert answer.status == 415


async def test_the_answer_says_when_an_upload_expires(gateway, tmp_path):
    storage = {"url": f"file:{tmp_path}", "keep": "30d"}
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage=storage)
    file = await (await upload(gw, png(), path="/v1/files")).json()
    assert file["expires_at"] == file["created_at"] + 30 * 86_400


async def test_an_image_with_a_wrong_extension_gets_the_right_one(gw):
    data = (await (await upload(gw, png("photo.jpg"))).json())["data"]
    assert (data["extension"], data["mime_type"], data["name"]) == ("png", "image/png", "photo.jpg")


async def test_too_large_a_file_is_413_with_or_without_its_length(gateway, tmp_path):
    storage = {"url": f"file:{tmp_path}", "max_size": "1MB"}
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage=storage)
    whole = form(("file", b"x" * 1_000_000, "a.txt"))
    over = form(("file", b"x" * 1_000_001, "a.txt"))
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    async def in_chunks(body):
        yield body

    assert (await gw.post("/api/v1/upload", whole, headers=kind)).status == 200
    for send in (over, form(("file", b"x" * 3_000_000, "a.txt"))):
        answer = await gw.post("/api/v1/upload", send, headers=kind)
        assert answer.status == 413
        assert "storage.max_size" in (await answer.json())["msg"]
        url = f"{gw.url}/api/v1/upload"
        answer = await gw.client.post(url, data=in_chunks(send), headers=kind)
        assert answer.status == 413
    assert len(await kept(gw)) == 2


async def test_a_file_larger_than_a_json_body_may_be_is_taken(gw):
    big = os.urandom(12_000_000)
    data = (await (await upload(gw, ("file", b"\0" + big, "a.zip"))).json())["data"]
    assert data["size"] == len(big) + 1


async def test_the_eleventh_upload_in_a_minute_is_429(gateway, tmp_path):
    limits = {**UNLIMITED, "upload": "10/min"}
    storage = {"url": f"file:{tmp_path}"}
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage=storage, rate_limits=limits)
    for i in range(10):
        answer = await upload(gw, png(), path=("/api/v1/upload", "/v1/files")[i % 2])
        assert (answer.status, answer.headers["x-ratelimit-limit-requests"]) == (200, "10")
    answer = await upload(gw, png())
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) >= 1
    assert len(await kept(gw)) == 20


async def send_half(
    gw, data: bytes, length: int, path: str = "/api/v1/upload"
) -> asyncio.StreamWriter:
    """A connection on which an upload has stopped in the middle."""
    host, _, port = gw.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    writer.write(head.encode() + data)
    with suppress(ConnectionError):
        await writer.drain()
    return writer


@pytest.mark.parametrize("size", [300_000, 12_000_000])
async def test_a_client_that_is_cut_at_half_leaves_nothing(gw, size):
    body = form(("file", b"x" * size, "a.txt"))
    writer = await send_half(gw, body[: len(body) // 2], len(body))
    await asyncio.sleep(0.2)
    writer.transport.abort()
    store = gw.app[FILES]._store
    async with asyncio.timeout(20):
        while await leftovers(store):
            await asyncio.sleep(0.05)
    assert await kept(gw) == []
    assert (await upload(gw, png())).status == 200


async def leftovers(store):
    if hasattr(store, "path"):
        return os.listdir(store._folder / ".parts")
    return (await store._call("list_multipart_uploads")).get("Uploads", [])


async def test_a_sender_that_stops_is_given_up(gw, monkeypatch):
    monkeypatch.setattr("gateway.http.multipart.SILENCE_S", 0.2)
    body = form(("file", b"x" * 300_000, "a.txt"))
    writer = await send_half(gw, body[:150_000], len(body))
    reader = asyncio.StreamReader()
    writer.transport.set_protocol(asyncio.StreamReaderProtocol(reader))
    async with asyncio.timeout(20):
        answer = await reader.readuntil(b"\r\n\r\n")
    assert b"408" in answer.split(b"\r\n")[0]
    writer.transport.abort()
    assert await kept(gw) == []


async def test_a_file_sent_byte_by_byte_is_abandoned(gateway, tmp_path):
    from gateway.config.models import Storage
    from gateway.http.multipart import SLOWEST, START_S, UploadForm

    now = 0.0

    class Drip:
        async def read_chunk(self, size):
            nonlocal now
            now += 1
            return b"x"

    upload_form = UploadForm(None, Storage(), lambda: now)
    upload_form._part, upload_form._head = Drip(), b"x"
    with pytest.raises(SenderTooSlow):
        async for _ in upload_form.chunks():
            pass
    assert START_S <= now <= START_S * (1 + 1 / SLOWEST) + 2


async def test_a_form_that_slows_down_is_given_up():
    from gateway.config.models import Storage
    from gateway.http.multipart import START_S, WINDOW_S, UploadForm

    now = 0.0

    class Drip:
        async def read_chunk(self, size):
            nonlocal now
            now += 10
            return b"x" * 200_000 if now < 1000 else b"x"

    upload_form = UploadForm(None, Storage(), lambda: now)
    upload_form._part, upload_form._head = Drip(), b"x"
    with pytest.raises(SenderTooSlow):
        async for _ in upload_form.chunks():
            pass
    # Bytes count only in the window in which they were received.
    assert 1000 < now <= 1000 + WINDOW_S + 2 * START_S


# The store becomes unavailable.


async def test_an_unavailable_store_is_503_and_degraded_in_readyz(gateway, tmp_path):
    (tmp_path / "in-the-way").write_text("")
    storage = {"url": f"file:{tmp_path}/in-the-way/uploads"}
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage=storage)
    for path in ("/api/v1/upload", "/v1/files"):
        answer = await upload(gw, png(), path=path)
        assert answer.status == 503
        assert "folder for files" in await answer.text()
    ready = await gw.get("/readyz")
    body = await ready.json()
    assert (ready.status, body["degraded"]) == (200, ["storage"])
    assert "folder" in body["detail"]["storage"]
    assert (await gw.chat("dify")).status == 200  # calls without files go on


async def test_a_folder_that_can_never_be_does_not_stop_the_start(gateway):
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage={"url": "file:/proc/nowhere"})
    assert (await gw.chat("dify")).status == 200
    assert (await upload(gw, png())).status == 503


async def test_a_folder_that_is_removed_is_made_again(gateway, tmp_path):
    folder = tmp_path / "up"
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage={"url": f"file:{folder}"})
    data = (await (await upload(gw, png())).json())["data"]
    shutil.rmtree(folder)
    assert (await gw.client.get(data["id"])).status == 404
    assert (await (await gw.get("/v1/files")).json())["data"] == []
    assert (await upload(gw, png())).status == 200


async def test_a_full_store_is_507(gw, monkeypatch):
    from gateway.errors import StorageFull

    async def full(*_):
        raise StorageFull

    monkeypatch.setattr(gw.app[FILES]._store, "put", full)
    answer = await upload(gw, png())
    assert answer.status == 507
    assert (await answer.json())["detail"]["error"] == "insufficient_storage"


async def test_readyz_reports_a_healthy_store(gw):
    assert (await (await gw.get("/readyz")).json())["detail"]["storage"] == "ok"


# OpenAI's form, with its own SDK.


@pytest.fixture
async def sdks(gateway, demo, storage):
    """Two clients with keys of their own."""
    served = await demo("dify")
    keys = [
        {"name": name, "key": f"sk-{name}-12345678", "permissions": ["chat", "upload"]}
        for name in ("one", "two")
    ]
    gw = await gateway(
        agents={"dify": {**AGENTS["dify"], "base_url": served.url}},
        storage=storage, auth={"anonymous": False, "keys": keys},
    )  # fmt: skip
    clients = [
        openai.AsyncOpenAI(base_url=f"{gw.url}/v1", api_key=key["key"], max_retries=0)
        for key in keys
    ]
    yield clients
    for client in clients:
        await client.close()


async def test_the_openai_sdk_uploads_lists_reads_and_deletes(sdks):
    one, two = sdks
    made = [
        await one.files.create(file=(f"文件{i}.txt", f"内容{i}".encode()), purpose="user_data")
        for i in range(3)
    ]
    assert made[0].id.startswith("file-")
    assert (made[0].filename, made[0].bytes, made[0].purpose) == ("文件0.txt", 7, "user_data")
    assert [file.id async for file in one.files.list(order="asc", limit=2)] == [f.id for f in made]
    assert [f.id async for f in one.files.list(limit=2)] == [f.id for f in reversed(made)]
    assert [f.id async for f in one.files.list(purpose="vision")] == []
    assert await one.files.retrieve(made[1].id) == made[1]
    assert (await one.files.content(made[1].id)).text == "内容1"
    assert (await one.files.delete(made[1].id)).deleted is True
    for gone in (lambda c: c.retrieve, lambda c: c.content, lambda c: c.delete):
        with pytest.raises(openai.NotFoundError):
            await gone(one.files)(made[1].id)
        with pytest.raises(openai.NotFoundError):
            await gone(two.files)(made[0].id)
    assert [file async for file in two.files.list()] == []
    assert (await one.files.content(made[0].id)).text == "内容0"


async def test_a_file_id_works_for_its_own_key_only(sdks):
    one, two = sdks
    file = await one.files.create(file=("图.png", PNG), purpose="vision")
    parts = [{"type": "text", "text": "看图"}, {"type": "file", "file": {"file_id": file.id}}]
    messages = [{"role": "user", "content": parts}]
    answer = await one.chat.completions.create(model="dify", messages=messages)
    assert "图.png" in answer.choices[0].message.content
    with pytest.raises(openai.NotFoundError) as caught:
        await two.chat.completions.create(model="dify", messages=messages)
    assert caught.value.code == "file_not_found"


async def test_errors_of_the_openai_form_are_openais(sdks):
    one, _ = sdks
    with pytest.raises(openai.APIStatusError) as caught:
        await one.files.create(file=("a.exe", b"MZ"), purpose="user_data")
    assert (caught.value.status_code, caught.value.code) == (415, "unsupported_media_type")
    with pytest.raises(openai.BadRequestError):
        await one.files.create(file=("a.txt", b""), purpose="user_data")
    with pytest.raises(openai.NotFoundError):
        await one.files.retrieve("file-nonsense")
    with pytest.raises(openai.BadRequestError):
        await one.files.list(limit=0)


@pytest.mark.parametrize("base", ["", "/v1/v1"])
async def test_a_missing_or_doubled_v1_is_tolerated(gw, base):
    answer = await upload(gw, png(), path=f"{base}/files")
    id_ = (await answer.json())["id"]
    assert (await gw.get(f"{base}/files/{id_}")).status == 200
    assert (await gw.get(f"{base}/files")).status == 200
    assert await (await gw.get(f"{base}/files/{id_}/content")).read() == PNG
    assert (await gw.client.delete(f"{gw.url}{base}/files/{id_}")).status == 200


# Permissions.


async def test_an_upload_needs_the_permission_and_belongs_to_its_user(
    with_accounts, database_url, tmp_path
):
    gw = await with_accounts(database_url, storage={"url": f"file:{tmp_path}/up"})
    admin = await gw.login()
    _, chat_only = await gw.key(admin, permissions=["chat"])
    _, key = await gw.key(admin, permissions=["chat", "upload"])
    assert (await upload(gw, png())).status == 401
    answer = await upload(gw, png(), Authorization=f"Bearer {chat_only}")
    assert answer.status == 403
    assert "upload" in (await answer.json())["msg"]

    async def page(user):
        body = {"user": user, "permissions": ["chat", "upload"]}
        return (await gw.api("POST", "/tokens", key, body))[1]["data"]["token"]

    ming, hong = await page("小明"), await page("小红")
    data = (await (await upload(gw, png(), Authorization=f"Bearer {ming}")).json())["data"]
    assert data["created_by"] == "小明"
    other = upload(gw, png(), ("created_by", "小红".encode(), None), Authorization=f"Bearer {ming}")
    assert (await other).status == 403
    for holder, status in ((ming, 200), (hong, 404), (key, 404)):
        assert (await gw.ask(holder, files=[data["file_id"]]))[0] == status
    # A user's keys share their files.
    data = (await (await upload(gw, png(), Authorization=f"Bearer {key}")).json())["data"]
    _, second = await gw.key(admin, permissions=["chat", "upload"])
    assert (await gw.ask(second, files=[data["file_id"]]))[0] == 200


async def test_the_agents_that_take_files(gateway, demo, tmp_path):
    glms = {**AGENTS["zhipu"], "assistant_id": "a", "app_id": "b"}
    agents = {
        **{name: dict(agent) for name, agent in AGENTS.items()},
        "glms": {**glms, "api": "glms"},
        "application": {**glms, "api": "application"},
        "flow": {**AGENTS["coze"], "mode": "workflow", "workflow_id": "7"},
        "quiet": {**AGENTS["openai"], "accepts": []},
        "hearing": {**AGENTS["fastgpt"], "accepts": ["image", "audio"]},
    }
    gw = await gateway(agents=agents)
    data = (await (await gw.get("/api/v1/upload/agents")).json())["data"]
    takers = [*AGENTS, "glms", "hearing"]
    assert data == {"supported_agents": takers, "count": len(takers)}
    told = (await (await gw.get("/api/v1/agents")).json())["data"]["agents"]
    kinds = {agent["name"]: agent["capabilities"]["file_kinds"] for agent in told}
    everything = ["audio", "file", "image", "video"]
    assert kinds == {
        "fastgpt": ["file", "image"], "dify": everything, "coze": everything, "zhipu": everything,
        "openai": everything, "glms": ["file", "image"], "application": [], "flow": [],
        "quiet": [], "hearing": ["audio", "image"],
    }  # fmt: skip
    for agent in told:
        assert agent["capabilities"]["file_upload"] is bool(kinds[agent["name"]])


async def test_an_upload_for_an_agent_is_checked_against_it(gateway, tmp_path):
    agents = {"dify": {"platform": "dify"}, "quiet": {"platform": "openai", "accepts": []},
              "eyes": {"platform": "fastgpt"}}  # fmt: skip
    gw = await gateway(agents=agents, storage={"url": f"file:{tmp_path}"})
    assert (await upload(gw, png(), Agent="DIFY")).status == 200
    answer = await upload(gw, png(), Agent="nobody")
    assert answer.status == 404
    answer = await upload(gw, png(), Agent="quiet")
    assert answer.status == 400
    assert "'image'" in (await answer.json())["msg"]
    answer = await upload(gw, ("file", b"ID3" + bytes(99), "a.mp3"), Agent="eyes")
    assert (await answer.json())["detail"]["error"] == "unsupported_file_kind"
    assert len(await kept(gw)) == 2


async def test_a_files_name_which_opens_it_is_not_logged_whole(gateway, tmp_path, caplog):
    caplog.set_level("INFO", logger="gateway.access")
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage={"url": f"file:{tmp_path}"})
    data = (await (await upload(gw, png(), Agent="dify")).json())["data"]
    await gw.client.get(data["id"])
    await gw.get(f"/v1/files/{data['file_id']}")
    core = re.search(r"[0-9A-Za-z]{39}", data["id"])[0]
    assert core not in caplog.text
    assert caplog.text.count(core[:17] + "***") == 2
    assert '"file_bytes":74' in caplog.text


async def test_a_pdf_may_be_shown_by_a_browsers_viewer(gateway, tmp_path):
    gw = await gateway(agents={"dify": {"platform": "dify"}}, storage={"url": f"file:{tmp_path}"})
    data = (await (await upload(gw, ("file", b"%PDF-1.7", "a.pdf"))).json())["data"]
    answer = await gw.client.get(data["id"])
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors *"
    assert answer.headers["Content-Type"] == "application/pdf"
