"""How this gateway was started, for hints that can be pasted into a shell."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(config: Path | None = None) -> str:
    """The command that runs the gateway from the current folder with the same interpreter, such as
    `.venv/bin/python run.py`.

    It includes `--config` unless `config` is the default.
    """
    called = Path(sys.argv[0])
    command = [_short(called)]
    if not _is_installed(called):
        script = called if called.name == "run.py" else Path("run.py")
        command = [_short(Path(sys.executable)), _short(script)]
    if config is not None and config != default_config():
        command += ["--config", str(config)]
    return shlex.join(command)


def program() -> str:
    """The command as everyone writes it, `ai-gateway` or `python run.py`: for callers, who must not
    learn where it is on this machine."""
    return "ai-gateway" if _is_installed(Path(sys.argv[0])) else "python run.py"


def default_config() -> Path:
    return Path(os.environ.get("GATEWAY_CONFIG") or "config.yaml")


def may_be_built_in(config: Path | None) -> bool:
    """Whether the shipped config.yaml replaces a missing file: only if no file is named."""
    return config is None and not os.environ.get("GATEWAY_CONFIG")


def _is_installed(called: Path) -> bool:
    """Whether pip's script runs, and not run.py."""
    return called.stem == "ai-gateway"


def _short(path: Path) -> str:
    """The name alone if the shell finds it in PATH, else the path: relative if it is inside the
    current folder, otherwise absolute."""
    if (found := shutil.which(path.name)) and Path(found) == path:
        return path.name
    here = Path.cwd()
    if here != here.parent and path.absolute().is_relative_to(here):
        return str(path.absolute().relative_to(here))
    return str(path.absolute())
