"""The wheel: built from the checkout, installed into an empty environment, used in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import aiohttp
import pytest
from test_cli import CLEAN, names, serving

ROOT = Path(__file__).parent.parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
OFFLINE = ["--no-index", "--no-deps"]


def tracked(*folders: str) -> list[str]:
    """The files of the checkout, those that are not committed yet too."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        if not name.startswith(("tests/", ".github/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(dist), "."]
    subprocess.run(build, cwd=source, check=True)
    (built,) = dist.iterdir()
    return built


@pytest.fixture
def scripts(wheel, tmp_path) -> Path:
    """An environment's folder of commands: it has the wheel, and no other part of the gateway."""
    home = tmp_path / "venv"
    venv.create(home, symlinks=os.name != "nt")
    scripts, packages = (
        Path(sysconfig.get_path(name, "venv", {"base": str(home)}))
        for name in ("scripts", "purelib")
    )
    python = str(scripts / "python")
    subprocess.run([*PIP, "--python", python, "install", *OFFLINE, str(wheel)], check=True)
    # The other packages are those of the tests. Their folder is named, but its .pth files are not
    # read, so the checkout that is installed there as editable cannot be imported.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return scripts


def test_the_wheel_has_all_files_that_run_and_no_others(wheel):
    with closing(zipfile.ZipFile(wheel)) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    share = ["config.yaml", ".env.example", "config/config.schema.json", *tracked("sql")]
    assert inside == {*tracked("gateway"), *(f"gateway/share/{name}" for name in share)}
    assert {"gateway/py.typed", "gateway/limits/take_token.lua"} <= inside
    for name in inside:
        # Names of Windows' devices, and what its paths cannot have.
        assert not re.search(r"(?i)(^|/)(con|prn|aux|nul|com\d|lpt\d)(\.|/|$)", name), name
        assert not re.search(r'[<>:"|?*\\]|[ .](/|$)', name), name


async def test_it_serves_in_an_empty_folder_and_init_writes_its_files(scripts, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    config = folder / "config.yaml"

    def run(*args: str, command: str = "ai-gateway") -> str:
        told = subprocess.run(
            [str(scripts / command), *args], cwd=folder, env=CLEAN, capture_output=True,
            text=True, timeout=30,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        return told.stdout

    module = Path(run("-c", "import gateway; print(gateway.__file__)", command="python").strip())
    assert module.is_relative_to(scripts.parent)

    command = (str(scripts / "ai-gateway"),)
    async with (
        serving(cwd=folder, command=command, DATABASE_URL="") as (process, port, log),
        aiohttp.ClientSession() as client,
    ):
        (hint,) = (line for line in log if "the built-in routing table is used" in line)
        assert str(config) in hint
        assert "ai-gateway init" in hint
        assert await names(client, port) == ["fastgpt", "dify", "coze", "zhipu", "openai"]
        url, body = f"http://127.0.0.1:{port}/api/v1/chat", {"query": "你好", "user": "u"}
        async with client.post(url, json=body, headers={"Agent": "dify"}) as answer:
            assert "demo" in (await answer.json())["choices"][0]["message"]["content"]
        assert {path.name for path in folder.iterdir()} == {"data"}

        assert "config.yaml is written" in run("init")
        key = run("keys", "create", "web").strip().splitlines()[-1].split()[-1]
        assert key.startswith("sk-gw-")
        headers = {"Agent": "coze", "Authorization": f"Bearer {key}"}
        async with client.post(url, json=body, headers=headers) as answer:
            assert answer.status == 200
        process.terminate()
        assert await process.wait() == 0
    assert {path.name for path in folder.iterdir()} == {"data", "config.yaml", ".env"}
    told = run("check")
    assert told.startswith("config.yaml: ok")
    assert "dify: dify at demo" in told
    schema = re.search(r"\$schema=(\S+)", config.read_text("utf-8"))[1]
    assert (
        Path(url2pathname(urlsplit(schema).path))
        == module.parent / "share/config/config.schema.json"
    )
    assert run("init").count("stays as it is") == 2
