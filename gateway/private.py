"""Files and folders that other accounts of the machine cannot read, whatever the umask."""

import contextlib
import os
from pathlib import Path

_OTHERS = 0o007


def opener(path: str, flags: int) -> int:
    """For `open(…, opener=opener)`: a new file is its owner's alone."""
    return os.open(path, flags, 0o600)


def make_folder(path: Path) -> None:
    """The folder with all above it; what is made is its owner's alone. Raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):  # another process was quicker
        path.mkdir(0o700)


def shut_out_others(folder: Path) -> None:
    """From a folder that an earlier version may have made, or left open; its group stays as the
    operator has set it. A volume may belong to somebody else, who has to see to it."""
    with contextlib.suppress(OSError):
        mode = folder.stat().st_mode
        if mode & _OTHERS:
            folder.chmod(mode & 0o7777 & ~_OTHERS)
