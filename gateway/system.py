"""What Unix has and Windows lacks. No other module uses such a name.

Windows has no uvloop, no SIGHUP, no limit of open files and no modes of files: there the folder's
own access rights decide who reads the gateway's files.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from array import array
from collections.abc import Callable
from typing import IO, Any

if sys.platform == "win32":
    import msvcrt

    CAN_LISTEN_TWICE = False  # a socket through two descriptors

    def lock(file: IO[Any]) -> None:
        """Lock the file, waiting for another process that holds it."""
        while True:
            with contextlib.suppress(OSError):  # after ten seconds
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                return

    def lock_now(file: IO[Any]) -> None:
        """Lock the file. Raises OSError if another process holds it."""
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def unsent_bytes(connection: socket.socket) -> int:
        """Bytes in the kernel that the other side has not taken yet."""
        return 0  # Windows does not tell

    def raise_file_limit() -> None:
        """Allow as many open files as the hard limit permits."""  # Windows has none

    def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
        """What makes the event loop; None for asyncio's default."""
        return None

else:
    import fcntl
    import resource
    import termios

    CAN_LISTEN_TWICE = True  # on a socket, through two descriptors

    def lock(file: IO[Any]) -> None:
        """Lock the file, waiting for another process that holds it."""
        fcntl.flock(file, fcntl.LOCK_EX)

    def lock_now(file: IO[Any]) -> None:
        """Lock the file. Raises OSError if another process holds it."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unsent_bytes(connection: socket.socket) -> int:
        """Bytes in the kernel that the other side has not taken yet."""
        kept = array("i", [0])
        with contextlib.suppress(OSError, AttributeError):  # Unix other than Linux
            fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, kept)
        return kept[0]

    def raise_file_limit() -> None:
        """Allow as many open files as the hard limit permits; a shell's default is lower."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 1 << 20)), hard))

    def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
        """What makes the event loop: uvloop where it is installed; None for asyncio's default."""
        try:
            import uvloop
        except ImportError:
            return None
        return uvloop.new_event_loop


def can_share_ports() -> bool:
    """Whether several processes can listen on one port."""
    return hasattr(socket, "SO_REUSEPORT")


def on_signal(name: str, act: Callable[[], None]) -> None:
    """Call `act` in the running loop on each signal of that name, if the system has it."""
    number = getattr(signal, name, None)
    if number is None:
        return
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, act)
    except NotImplementedError:  # Windows
        signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(act))
