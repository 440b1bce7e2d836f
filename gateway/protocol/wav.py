"""Joins WAV files to one while they arrive."""

_UNKNOWN = b"\xff\xff\xff\xff"  # the length of a file that is still being made
_MAX_HEAD = 64 * 1024  # bytes


class WavJoiner:
    """Feed it one file after the other, with `next_file` between them. It gives the first file's
    header, with unknown lengths, and then the samples of all. The files must have one sample
    format. A file that is no WAV is given as it is."""

    def __init__(self) -> None:
        self._head: bytes | None = b""  # None once it is complete
        self._left: int | None = None  # bytes of samples that follow; None: all that follow
        self._is_first = True

    def next_file(self) -> None:
        self._head, self._left, self._is_first = b"", None, False

    def feed(self, chunk: bytes) -> bytes:
        if self._head is None:
            return self._samples(chunk)
        self._head += chunk
        at = _data_at(self._head)
        if at is None:
            return b""
        head, self._head = self._head, None
        if not at:
            return head
        size = int.from_bytes(head[at - 4 : at], "little")
        self._left = None if size in (0, 0xFFFFFFFF) else size
        samples = self._samples(head[at:])
        if not self._is_first:
            return samples
        return head[:4] + _UNKNOWN + head[8 : at - 4] + _UNKNOWN + samples

    def _samples(self, chunk: bytes) -> bytes:
        if self._left is None:
            return chunk
        samples = chunk[: self._left]  # other chunks may follow them
        self._left -= len(samples)
        return samples


def _data_at(head: bytes) -> int | None:
    """Where the samples begin. 0 if `head` is not a WAV file's, None if it is not complete yet."""
    if not (head.startswith(b"RIFF"[: len(head)]) and head[8:12] == b"WAVE"[: len(head[8:12])]):
        return 0
    at = 12
    while len(head) >= at + 8:
        if head[at : at + 4] == b"data":
            return at + 8
        size = int.from_bytes(head[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
        if at > _MAX_HEAD:
            return 0
    return None
