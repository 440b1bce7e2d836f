"""The sources of `${…}` in config.yaml: variables, and files that hold secrets.

Variables come from the process first, then from `.env` in the folder of config.yaml.
"""

import stat
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

LARGEST_FILE = 64 << 10  # bytes of `.env`, and of one secret


def with_dotenv(
    folder: Path, environ: Mapping[str, str], problems: list[str] | None = None
) -> dict[str, str]:
    """The variables of `environ` and of `folder/.env`; `environ` takes precedence.

    Values are literal: `$` has no meaning in them. Unreadable files and lines go to `problems`.
    """
    path = folder / ".env"
    found: dict[str, str] = {}
    problems = [] if problems is None else problems
    try:
        text = _read(path)
    except FileNotFoundError:
        return dict(environ)
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return dict(environ)
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            problems.append(f"{path}: line {binding.original.line} is not NAME=value")
        elif binding.key is not None and binding.value is not None:
            found[binding.key] = binding.value
    return {**found, **environ}


def secret_in(folder: Path, name: str) -> str:
    """The text of a file without its trailing line ends; `name` is relative to `folder`.

    Raises ValueError with a sentence that contains the absolute path.
    """
    path = (folder / name).absolute()
    try:
        return _read(path).rstrip("\r\n")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except ValueError as error:
        raise ValueError(f"the file {path} {error}") from None


def _read(path: Path) -> str:
    """Raises FileNotFoundError, and ValueError with a predicate whose subject is the file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("is not a regular file")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_FILE:
        raise ValueError(f"is larger than {LARGEST_FILE} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
