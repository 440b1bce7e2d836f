"""The simulators' common handling of an upload: they stream it, and keep everything but its
content."""

import asyncio
import hashlib
import tracemalloc

import aiohttp
import demoforms as forms
import pytest

PATH = "/v1/files/upload"


async def test_an_upload_is_noted_without_its_content(demo):
    served = await demo("dify")
    content = bytes(range(256)) * 1000
    await forms.send(served.url + PATH, forms.value("user", "u-1"), forms.file("a.bin", content))
    (upload,) = served.demo.uploads
    assert (upload.name, upload.mime, upload.size) == ("a.bin", "image/png", 256_000)
    assert upload.sha256 == hashlib.sha256(content).hexdigest()
    assert upload.fields == {"user": "u-1"}
    assert upload.head == content[:64]


async def test_the_parts_of_a_form_may_come_in_any_order(demo):
    served = await demo("dify")
    file, user = forms.file(), forms.value("user", "小明")
    await forms.send(served.url + PATH, file, user)
    await forms.send(served.url + PATH, user, file)
    assert [upload.fields for upload in served.demo.uploads] == [{"user": "小明"}] * 2


async def test_a_file_that_holds_nearly_a_boundary_arrives_whole(demo):
    served = await demo("dify")
    content = f"\r\n--{forms.BOUNDARY[:-1]}\r\n--".encode() * 5000
    await forms.send(served.url + PATH, forms.file("a.txt", content))
    assert served.demo.uploads[0].sha256 == hashlib.sha256(content).hexdigest()


async def test_the_latest_200_uploads_are_kept(demo):
    served = await demo("dify")
    for number in range(203):
        await forms.send(served.url + PATH, forms.file(f"{number}.png"))
    assert [upload.name for upload in served.demo.uploads] == [
        f"{number}.png" for number in range(3, 203)
    ]


async def test_a_large_file_passes_through_little_memory(demo):
    served = await demo("coze")
    whole = forms.body(forms.file("a.mp4", b"?", "video/mp4"))
    head, _, tail = whole.partition(b"?")

    async def pieces():
        yield head
        for _ in range(512):
            yield bytes(64 << 10)
        yield tail

    async with aiohttp.ClientSession() as client:
        tracemalloc.start()
        try:
            answer = await client.post(served.url + PATH, data=pieces(), headers=forms.FORM)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (await answer.json())["data"]["bytes"] == 32 << 20
    assert peak < 4 << 20


async def test_of_a_form_only_so_much_is_kept(demo):
    served = await demo("dify")
    await forms.send(served.url + PATH, forms.value("user", "u" * 100_000), forms.file())
    assert len(served.demo.uploads[0].fields["user"]) == 4096
    fields = [forms.value(f"f{number}", "x") for number in range(100)]
    status, _ = await forms.send(served.url + PATH, *fields, forms.file())
    assert status == 400


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("leave", ["close", "abort"])
async def test_a_disconnect_in_the_middle_leaves_no_upload(demo, framing, leave):
    served = await demo("dify")
    host, port = served.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    begun = forms.body(forms.file(content=bytes(5000)))[:4000]
    if "chunked" in framing:
        begun = b"%x\r\n" % len(begun) + begun + b"\r\n"
    lines = [f"POST {PATH} HTTP/1.1", f"Host: {host}", framing]
    lines += [f"{name}: {text}" for name, text in forms.FORM.items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + begun)
    await writer.drain()
    await asyncio.sleep(0.05)  # the simulator has begun to read
    writer.transport.abort() if leave == "abort" else writer.close()
    async with asyncio.timeout(20):
        while not served.demo.aborted_uploads:
            await asyncio.sleep(0.01)
    assert served.demo.aborted_uploads == 1
    assert served.demo.uploads == []


async def test_a_client_that_stays_counts_as_no_aborted_upload(demo):
    served = await demo("dify")
    await forms.send(served.url + PATH, forms.file())
    await forms.send(served.url + PATH, data=b"no form")
    assert served.demo.aborted_uploads == 0
