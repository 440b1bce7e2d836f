"""The file stores: one specification for a folder and for a bucket."""

import asyncio
import hashlib
import os
import re
import signal
from contextlib import asynccontextmanager, suppress

import pytest
import servers
from wire import listening

from gateway.config.models import Storage
from gateway.errors import FileNotFound, Overloaded, StorageFull, StorageUnavailable, TooManyAtOnce
from gateway.files import local as localfiles
from gateway.files import s3 as s3files
from gateway.files.library import NAME, Files, clean_title, disposition, open_files
from gateway.files.local import LocalFiles

BIG = s3files.PART * 2 + 12_345


class Clock:
    def __init__(self, now=1_795_380_847.25):  # 2026-11-22T20:54:07.250Z
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def files(storage, clock):
    async with opened(storage, clock) as files:
        yield files


@asynccontextmanager
async def opened(storage, clock=None):
    files = open_files(Storage.model_validate(storage))
    files._clock = clock or Clock()
    await files._store.open()
    try:
        yield files
    finally:
        await files.close()


async def pieces(data: bytes, size: int = 100_000):
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def told():
    return "user-1", "user_data"


async def add(files, data=b"hello", owner="user-a", title="a.txt", extension="txt"):
    return await files.add(owner, title, extension, pieces(data), told)


async def content(files, file):
    async with files.source(file) as source:
        data = b"".join([block async for block in source.chunks])
        assert source.size == len(data)
        return data


async def everything(files):
    store = files._store
    return [name for day in await store.days() for name in await store.names(day)]


@pytest.mark.parametrize("size", [1, 65_536, s3files.PART - 1, s3files.PART, s3files.PART + 1, BIG])
async def test_a_file_comes_back_as_it_went(files, size):
    data = os.urandom(size)
    file = await add(files, data, title="红色方块.png", extension="png")
    assert file.size == size
    found = await files.get(file.id, "user-a")
    assert found == file
    assert (found.title, found.mime, found.created_by) == ("红色方块.png", "image/png", "user-1")
    assert hashlib.sha256(await content(files, found)).digest() == hashlib.sha256(data).digest()


async def test_names_show_the_day_and_nothing_of_the_client(files):
    file = await add(files, title="../../etc/passwd.txt")
    assert re.fullmatch(r"uploads/2026/11/22/[0-9A-Za-z]{39}\.txt", file.name)
    assert re.fullmatch(r"file-20261122-[0-9A-Za-z]{39}-txt", file.id)
    assert (await add(files)).name != file.name


async def test_another_owners_file_is_not_there(files):
    file = await add(files)
    with pytest.raises(FileNotFound):
        await files.get(file.id, "user-b")
    for nonsense in ("", "file-1", file.id[:-1], file.id + "x", "../" + file.id, "文件"):
        with pytest.raises(FileNotFound):
            await files.get(nonsense, "user-a")


async def test_owners_whose_marks_are_alike_do_not_share(files):
    one, two = "key-web/u647461", "key-web/u1752954"  # the same first 40 bits of SHA-256
    file = await add(files, owner=one)
    assert file.name[19:29] == (await add(files, owner=two)).name[19:29]
    with pytest.raises(FileNotFound):
        await files.get(file.id, two)
    assert len((await files.page(two, 10, "", newest_first=True))[0]) == 1


async def test_what_is_deleted_is_gone_and_deleting_again_is_no_error(files):
    file, other = await add(files), await add(files)
    await files.delete(file)
    await files.delete(file)
    with pytest.raises(FileNotFound):
        await files.get(file.id, "user-a")
    with pytest.raises(FileNotFound):
        async with files.source(file):
            pass
    assert await content(files, other) == b"hello"
    assert len(await everything(files)) == 2


@pytest.mark.parametrize("size", [10, BIG])
@pytest.mark.parametrize("fault", [ConnectionResetError, ValueError, asyncio.CancelledError])
async def test_an_upload_that_breaks_off_leaves_nothing(files, storage, size, fault, tmp_path):
    async def broken():
        async for piece in pieces(bytes(size)):
            yield piece
        raise fault

    with pytest.raises(fault):
        await files.add("user-a", "a.txt", "txt", broken(), told)
    assert await everything(files) == []
    await files.close()  # waits for the clean-up
    async with opened(storage) as again:
        assert await leftovers(again) == []


async def leftovers(files):
    """The leftovers of a broken upload."""
    store = files._store
    if isinstance(store, LocalFiles):
        return os.listdir(store._folder / ".parts")
    answer = await store._call("list_multipart_uploads")
    return answer.get("Uploads", [])


async def test_fields_after_the_file_may_still_refuse_it(files):
    async def refuse():
        raise ValueError

    with pytest.raises(ValueError):
        await files.add("user-a", "a.txt", "txt", pieces(b"hello"), refuse)
    assert await everything(files) == []


async def test_a_task_that_is_cancelled_in_the_middle_leaves_nothing(files, storage):
    began = asyncio.Event()

    async def endless():
        while True:
            yield bytes(100_000)
            began.set()
            await asyncio.sleep(0.001)

    task = asyncio.create_task(files.add("user-a", "a.txt", "txt", endless(), told))
    await began.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await files.close()
    async with opened(storage) as again:
        assert await everything(again) == []
        assert await leftovers(again) == []


async def test_pages_are_in_the_order_of_time_over_days(files, clock):
    made = []
    for _ in range(3):
        for _ in range(3):
            clock.now += 1
            made.append(await add(files))
            await add(files, owner="user-b")
        clock.now += 86_400
    newest = [file.id for file in reversed(made)]
    assert [f.id for f in (await files.page("user-a", 100, "", newest_first=True))[0]] == newest
    for order, wanted in ((True, newest), (False, newest[::-1])):
        seen, after, more = [], "", True
        while more:
            page, more = await files.page("user-a", 4, after, newest_first=order)
            seen += [file.id for file in page]
            after = seen[-1]
        assert seen == wanted
    assert await files.page("user-c", 4, "", newest_first=True) == ([], False)


async def test_old_days_are_swept_and_younger_ones_kept(storage, clock):
    async with opened({**storage, "keep": "2d"}, clock) as files:
        old = await add(files)
        clock.now += 2 * 86_400
        kept = await add(files)
        await files.sweep()
        assert len(await everything(files)) == 4  # the last day within the retention is kept whole
        clock.now += 86_400
        await files.sweep()
        assert {name.rpartition("/")[0] for name in await everything(files)} == {
            kept.name.rpartition("/")[0]
        }
        with pytest.raises(FileNotFound):
            await files.get(old.id, "user-a")
        assert await content(files, kept) == b"hello"


async def test_without_a_retention_nothing_is_swept(files, clock):
    await add(files)
    clock.now += 4000 * 86_400
    await files.sweep()
    assert len(await everything(files)) == 2


async def test_a_file_whose_description_was_lost_is_not_there(files):
    file = await add(files)
    await files._store.delete([file.name.removesuffix(".txt") + ".about.json"])
    with pytest.raises(FileNotFound):
        await files.get(file.id, "user-a")


async def test_what_a_killed_process_left_is_swept_when_it_is_old(files, storage, tmp_path):
    store = files._store
    if isinstance(store, LocalFiles):
        (store._folder / ".parts" / "tmp123").write_bytes(b"half")
    else:
        await store._call("create_multipart_upload", Key="gw/uploads/2026/11/22/x.txt")
    await store.sweep(1e10)  # moto's uploads all began in 2010
    assert len(await leftovers(files)) == 1
    await store.sweep(-1)
    assert await leftovers(files) == []


# A folder that cannot be used.


async def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    async with opened({"url": f"file:{tmp_path}/file/uploads"}) as files:
        with pytest.raises(StorageUnavailable):
            await add(files)
        await files._check()
        assert "folder" in files.unavailable


async def test_a_full_disk_is_507_and_leaves_nothing(tmp_path, monkeypatch):
    async with opened({"url": f"file:{tmp_path}"}) as files:

        def full(file, block, path):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(localfiles, "_finish", full)
        with pytest.raises(StorageFull):
            await add(files, bytes(1_000_000))
        assert await everything(files) == []
        assert await leftovers(files) == []


# A bucket that becomes unavailable.


@pytest.fixture
def own_s3():
    server = servers.S3()
    server.start()
    yield server
    server.stop(signal.SIGKILL)


async def test_a_bucket_lost_in_an_upload_is_503_and_recovers(own_s3):
    storage = own_s3.storage(own_s3.bucket("bucket"))
    async with opened(storage) as files:
        await files._check()
        assert files.unavailable == ""

        async def cut():
            yield bytes(s3files.PART)
            yield bytes(s3files.PART)
            own_s3.stop(signal.SIGKILL)
            yield bytes(s3files.PART)

        with pytest.raises(StorageUnavailable):
            await files.add("user-a", "a.txt", "txt", cut(), told)
        await files._check()
        assert files.unavailable
        with pytest.raises(StorageUnavailable):
            await add(files)
        own_s3.start()
        own_s3.bucket("bucket")
        await files._check()
        assert files.unavailable == ""
        assert await content(files, await add(files, bytes(BIG))) == bytes(BIG)


async def test_a_draft_for_whose_end_there_is_no_room_is_removed(tmp_path):
    """Closing a file flushes its buffer, and fails as well."""
    folder = tmp_path / "small"
    async with opened({"url": f"file:{folder}"}) as files:

        class Full:
            def close(self):
                raise OSError(28, "No space left on device")

        draft = folder / ".parts" / "draft"
        draft.write_bytes(b"half")
        localfiles._discard(draft, [Full()])
        assert await leftovers(files) == []


async def test_a_cancelled_upload_leaves_nothing_whenever_it_comes(storage):
    async with opened(storage) as files:
        for delay in [i * 0.0004 for i in range(25)]:
            task = asyncio.create_task(add(files, bytes(300_000)))
            await asyncio.sleep(delay)
            task.cancel()
            with suppress(asyncio.CancelledError):
                kept = await task
                await files.delete(kept)
    async with opened(storage) as files:
        assert await everything(files) == []
        assert await leftovers(files) == []


@pytest.mark.parametrize("which", [".txt", ".json"])
async def test_a_cancelled_upload_already_in_the_bucket_is_deleted(shared_s3, which, stack):
    """The bucket completes a request that it has received, perhaps after the deletion."""
    has_come, may_go_on = asyncio.Event(), asyncio.Event()
    port = int(shared_s3.url.rpartition(":")[2])

    async def copy(source, sink):
        begins = b""
        with suppress(ConnectionError):
            while data := await source.read(1 << 20):
                begins = begins or data
                line = begins.partition(b"\r\n")[0]
                is_the_put = line.startswith(b"PUT ") and which.encode() in line
                if is_the_put and b"100-continue" not in data:
                    has_come.set()
                    await may_go_on.wait()
                sink.write(data)
                await sink.drain()
        sink.close()

    async def relay(reader, writer):
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, other_writer), copy(other_reader, writer))

    port_before = await stack.enter_async_context(listening(relay, limit=1 << 20))
    storage = shared_s3.storage(shared_s3.bucket(f"kept-{which[1:]}"))
    behind = f"http://127.0.0.1:{port_before}"
    async with opened(storage | {"s3": storage["s3"] | {"endpoint": behind}}) as files:
        task = asyncio.create_task(add(files))
        await has_come.wait()
        task.cancel()
        await asyncio.sleep(0.1)  # for a deletion that would not wait
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with opened(storage) as files:
        assert await everything(files) == []


async def test_uploads_race_with_the_deletion_of_the_days_last_file(tmp_path):
    async with opened({"url": f"file:{tmp_path}"}) as files:

        async def come_and_go():
            for _ in range(60):
                await files.delete(await add(files))

        await asyncio.gather(*(come_and_go() for _ in range(4)))


def test_an_owner_and_all_owners_have_upload_limits(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.files.library.MAX_COMING_EACH", 2)
    monkeypatch.setattr("gateway.files.library.MAX_COMING", 3)
    files = Files(LocalFiles(tmp_path), Storage())
    with files.slot("a"), files.slot("a"):
        with pytest.raises(TooManyAtOnce), files.slot("a"):
            pass
        with files.slot("b"), pytest.raises(Overloaded), files.slot("c"):
            pass
    with files.slot("a"):
        pass
    assert not files._in_flight


async def test_a_bucket_that_hangs_is_given_up(own_s3, monkeypatch):
    monkeypatch.setattr(s3files, "_CALL_S", 0.3)
    async with opened(own_s3.storage(own_s3.bucket("bucket"))) as files:
        own_s3.pause()
        with pytest.raises(StorageUnavailable):
            await add(files)
        own_s3.go_on()
        assert await content(files, await add(files)) == b"hello"


async def test_a_bucket_that_is_not_there_is_named(shared_s3):
    async with opened(shared_s3.storage("nobody-made-it")) as files:
        with pytest.raises(StorageUnavailable, match="no such bucket"):
            await add(files)
        await files._check()
        assert "no such bucket" in files.unavailable


async def test_nobody_waits_for_a_bucket_at_the_start():
    storage = {"url": "s3://b", "s3": {"endpoint": "http://127.0.0.1:9"}}
    files = open_files(Storage.model_validate(storage))
    async with asyncio.timeout(20):
        await files.open()
    assert files.unavailable
    await files.close()


# Links and names.


async def test_links_to_a_bucket_are_signed_unless_it_is_public(shared_s3):
    bucket = shared_s3.bucket("links")
    async with opened(shared_s3.storage(bucket, link_ttl="1h")) as files:
        file = await add(files, title="中文 名.txt")
        link = await files.link(file, "http://gw")
        assert link.startswith(f"{shared_s3.url}/links/gw/uploads/2026/11/22/")
        assert "X-Amz-Expires=3600" in link
        assert "X-Amz-Signature=" in link
        assert files.name_in(link) == file.name
        assert await files.public_link(file) == ""  # a private endpoint
    base = "https://cdn.example.com/b"
    async with opened(shared_s3.storage(bucket, public_base_url=base)) as files:
        link = await files.link(file, "http://gw")
        assert link == f"{base}/gw/{file.name}"
        assert files.name_in(link) == file.name
        assert await files.public_link(file) == link


async def test_the_bucket_serves_the_right_type_and_a_chinese_name(shared_s3):
    import aiohttp

    async with opened(shared_s3.storage(shared_s3.bucket("served"))) as files:
        file = await files.add("a", "矢量 图.svg", "svg", pieces(b"<svg/>"), told)
        async with aiohttp.ClientSession() as client:
            answer = await client.get(await files.link(file, ""))
            assert await answer.read() == b"<svg/>"
            assert answer.headers["Content-Type"] == "image/svg+xml"
            text = await client.get(await files.link(await add(files), ""))
            assert await text.read() == b"hello"
            assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
            told_name = answer.headers["Content-Disposition"]
            assert told_name.startswith("attachment;")
            assert "filename*=UTF-8''%E7%9F%A2%E9%87%8F%20%E5%9B%BE.svg" in told_name


async def test_links_to_a_folder_lead_to_the_gateway(tmp_path):
    async with opened({"url": f"file:{tmp_path}"}) as files:
        file = await add(files)
        link = await files.link(file, "http://gw:3000")
        assert link == f"http://gw:3000/files/{file.name}"
        assert files.name_in(link) == file.name
        assert await files.public_link(file) == ""
    public = {"url": f"file:{tmp_path}", "public_base_url": "https://gw.example.com"}
    async with opened(public) as files:
        assert await files.public_link(file) == f"https://gw.example.com/files/{file.name}"


@pytest.mark.parametrize(
    "url", ["http://gw/files/uploads/../../etc/passwd", "http://gw/files/uploads/2026/11/22/x.txt",
            "http://gw/files/", "http://[bad", "file:///etc/passwd", "", "http://gw/other"],
)  # fmt: skip
def test_no_other_url_names_a_file_of_ours(url, tmp_path):
    assert Files(LocalFiles(tmp_path), Storage()).name_in(url) == ""


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("报告.pdf", "报告.pdf"),
        ("😀 图.png", "😀 图.png"),
        ('a"b.txt', 'a"b.txt'),
        ("a%22b.txt", 'a"b.txt'),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("C:\\文档\\a.docx", "a.docx"),
        ("a\r\nSet-Cookie: x\x00.txt", "aSet-Cookie: x.txt"),
        ("..", "file"),
        ("", "file"),
        ("x" * 300 + ".png", "x" * 196 + ".png"),
        ("字" * 300, "字" * 200),
        ("e\u0301.txt", "é.txt"),
        ("\udcff.txt", "\ufffd.txt"),
    ],
)
def test_a_clients_name_is_kept_as_far_as_it_is_one(given, kept):
    assert clean_title(given) == kept


@pytest.mark.parametrize(
    "title", ["报告.pdf", '😀"quote".pdf', "x" * 196 + ".pdf", "100%.pdf", "a;b='c'.pdf"]
)
def test_the_disposition_keeps_the_name_and_is_one_line_of_ascii(title):
    from aiohttp.multipart import content_disposition_filename, parse_content_disposition

    header = disposition(title, "application/pdf")
    assert header.isascii()
    assert "\n" not in header
    kind, params = parse_content_disposition(header)
    assert kind == "inline"
    assert content_disposition_filename(params) == title


def test_every_name_matches_its_pattern():
    assert NAME.fullmatch("uploads/2026/11/22/" + "a" * 17 + "B" * 22 + ".png")
    assert not NAME.fullmatch("uploads/2026/11/22/" + "a" * 17 + "B" * 22 + ".about.json")
