"""Files and folders that other accounts of the machine cannot read, whatever the umask."""

import contextlib
import os
from pathlib import Path

_OTHERS = 0o007


def opener(path: str, flags: int) -> int:
    """For `open(…, opener=opener)`: only the owner can read a new file."""
    return os.open(path, flags, 0o600)


def make_folder(path: Path) -> None:
    """Create the folder and its parents, readable only for the owner. Raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):  # another process was quicker
        path.mkdir(0o700)


def shut_out_others(folder: Path) -> None:
    """Remove other accounts' access to a folder that an earlier version may have left open; the
    group's access stays as the operator has set it. If a volume belongs to another account, its
    owner has to do this."""
    with contextlib.suppress(OSError):
        mode = folder.stat().st_mode
        if mode & _OTHERS:
            folder.chmod(mode & 0o7777 & ~_OTHERS)
