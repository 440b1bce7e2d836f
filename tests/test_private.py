"""Files on disk are readable for the gateway's own account only, whatever the umask."""

import os
import stat
from pathlib import Path

import aiohttp
import pytest
from conftest import AGENTS


def modes(folder: Path) -> dict[str, int]:
    """The permissions of everything in a folder that go beyond its owner."""
    return {
        path.relative_to(folder).as_posix(): mode
        for path in folder.rglob("*")
        if (mode := stat.S_IMODE(path.stat().st_mode) & 0o077)
    }


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


async def upload(gw, **headers):
    form = aiohttp.FormData()
    form.add_field("file", b"for me alone", filename="p.txt")
    async with gw.client.post(f"{gw.url}/v1/files", data=form, headers=headers) as answer:
        assert answer.status == 200, await answer.text()


async def test_nothing_in_data_is_readable_by_other_accounts(
    open_umask, gateway, demo, tmp_path, quick_passwords
):
    dify = await demo("dify")
    data = tmp_path / "data"
    gw = await gateway(
        agents={"dify": {**AGENTS["dify"], "base_url": dify.url}},
        storage={"url": f"file:{data}/uploads"},
        database=f"sqlite:///{data}/gateway.db",
        record={"spool": f"{data}/spool"},
        auth={"admin_password": "correct horse battery"},
    )
    await upload(gw)
    assert (await gw.chat("dify")).status == 200
    names = {path.name for path in data.rglob("*") if path.is_file()}
    assert {"gateway.db", "jwt_secret", ".lock", "lock"} <= names
    assert any(name.endswith(".txt") for name in names)
    assert modes(tmp_path) == {}


async def test_a_folder_that_was_open_is_closed_to_others_at_the_start(gateway, tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    folder.chmod(0o755)
    await gateway(agents={"a": {"platform": "dify"}}, storage={"url": f"file:{folder}"})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
