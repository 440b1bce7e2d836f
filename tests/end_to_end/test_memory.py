"""Files pass through the gateway without staying in memory: measured on its own process.

Takes some seconds, since size is what it tests: 95 MB up and down, then ten simultaneously.
"""

import asyncio
import hashlib
import os
from pathlib import Path

import aiohttp
import pytest
import yaml
from test_cli import serving

MB = 1_000_000
BLOCK = os.urandom(MB)
BOUNDARY = "test-boundary"


async def body(size: int):
    """A form whose file begins as text, so that it passes as text."""
    yield (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="大.txt"\r\n\r\n'
    ).encode()
    async for chunk in content(size):
        yield chunk
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


async def content(size: int):
    yield b"x" * 10_000
    left = size - 10_000
    while left:
        yield BLOCK[:left]
        left -= min(left, MB)


async def digest(chunks) -> str:
    out = hashlib.sha256()
    async for chunk in chunks:
        out.update(chunk)
    return out.hexdigest()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("kind", "each"), [("folder", 95 * MB), ("bucket", 25 * MB)])
async def test_large_files_pass_whole_in_little_memory(request, tmp_path, kind, each):
    if kind == "folder":
        storage = {"url": f"file:{tmp_path}/up"}
    else:
        s3 = request.getfixturevalue("shared_s3")
        storage = s3.storage(s3.bucket("memory"))
    config = {"storage": storage, "agents": {"dify": {"platform": "dify"}}}
    config |= {"database": "none", "rate_limits": {"upload": None}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    async with (
        serving("--config", str(tmp_path / "config.yaml")) as (process, port, _),
        aiohttp.ClientSession() as client,
    ):
        url = f"http://127.0.0.1:{port}"

        def memory(which: str) -> float:
            status = Path(f"/proc/{process.pid}/status").read_text()
            return int(status.partition(f"{which}:")[2].split()[0]) * 1024 / MB

        async def up(size: int) -> str:
            headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
            async with client.post(f"{url}/v1/files", data=body(size), headers=headers) as answer:
                told = await answer.json()
                assert (answer.status, told["bytes"]) == (200, size), told
                return told["id"]

        async def down(id_: str, wanted: str) -> None:
            async with client.get(f"{url}/v1/files/{id_}/content") as answer:
                assert await digest(answer.content.iter_chunked(MB)) == wanted

        await (await client.get(f"{url}/readyz")).read()
        before = memory("VmRSS")
        await down(await up(95 * MB), await digest(content(95 * MB)))
        assert memory("VmHWM") - before < 30
        ids = await asyncio.gather(*(up(each) for _ in range(10)))
        wanted = await digest(content(each))
        await asyncio.gather(*(down(id_, wanted) for id_ in ids))
        assert memory("VmHWM") - before < 100
