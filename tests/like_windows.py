"""The gateway's command line where what Windows lacks is missing: modules, names and loop methods.

Run as a program; it cannot show what Windows does differently with the same names.
"""

import asyncio
import fcntl
import os
import signal
import socket
import sys
import types
from typing import Any

MODULES = ("fcntl", "grp", "pwd", "resource", "termios", "uvloop")
NAMES = {
    os: ("fchmod", "fchown", "chown", "fork", "getuid", "geteuid", "getgid", "killpg"),
    signal: ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGPIPE", "SIGALRM", "alarm"),
    socket: ("SO_REUSEPORT",),
}


def msvcrt() -> types.ModuleType:
    """Windows' own locks, by means of those of Unix."""
    module: Any = types.ModuleType("msvcrt")
    module.LK_LOCK, module.LK_NBLCK = fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB
    module.locking = lambda number, mode, size: fcntl.flock(number, mode)
    return module


def become() -> None:
    for name in MODULES:
        sys.modules[name] = None  # an import of it fails
    for module, names in NAMES.items():
        for name in names:
            delattr(module, name)
    sys.modules["msvcrt"] = msvcrt()
    asyncio.SelectorEventLoop.add_signal_handler = asyncio.AbstractEventLoop.add_signal_handler
    here, sys.platform = sys.platform, "win32"
    import gateway.system  # noqa: F401

    sys.platform = here  # other packages load libraries by it


if __name__ == "__main__":
    become()
    from gateway.cli import main

    sys.exit(main(sys.argv[1:]))
