"""Seals on ids that lead to something a platform keeps for one user: a conversation, a waiting run,
a file.

Platforms ask by the operator's key alone, so they give a conversation to whoever names it. A
caller who speaks for one user gets such ids as `id~mac`, and nothing else leads back to them. The
MAC is of the user, the agent and the id, so nothing has to be kept.
"""

import hmac
from base64 import urlsafe_b64encode

from gateway.errors import ConversationNotFound, FileNotFound

MARK = "~"
_BYTES = 16  # of the MAC that are kept
_FILES = "\0files"  # behind the agent's name: a file's id opens no conversation of the same id


class Seal:
    """That of one user. `user` is unique among all users of all keys."""

    __slots__ = ("_key", "_user")

    def __init__(self, key: bytes, user: str) -> None:
        self._key = key
        self._user = user

    def close(self, agent: str, id_: str) -> str:
        """The id as the user may see it."""
        return f"{id_}{MARK}{self._mac(agent, id_)}"

    def fits(self, agent: str, sealed: str) -> bool:
        """Whether this user was given that id as one of that agent's."""
        id_, _, mac = sealed.rpartition(MARK)
        return hmac.compare_digest(self._mac(agent, id_).encode(), mac.encode("utf-8", "replace"))

    def open(self, agent: str, sealed: str) -> str:
        """The platform's own id. Raises ConversationNotFound."""
        if not self.fits(agent, sealed):
            raise ConversationNotFound(
                "There is no such conversation of this token's user; leave conversation_id out to"
                " begin one.",
                param="conversation_id",
            )
        return sealed.rpartition(MARK)[0]

    def close_file(self, agent: str, id_: str) -> str:
        return self.close(agent + _FILES, id_)

    def fits_file(self, agent: str, sealed: str) -> bool:
        return self.fits(agent + _FILES, sealed)

    def open_file(self, agent: str, sealed: str) -> str:
        """The platform's own id. Raises FileNotFound."""
        if not self.fits_file(agent, sealed):
            raise FileNotFound(
                f"There is no file {sealed[:120]!r} of this token's user; upload it with the"
                " token.",
                param="files",
            )
        return sealed.rpartition(MARK)[0]

    def _mac(self, agent: str, id_: str) -> str:
        # The lengths keep one part from running into the next.
        parts = [part.encode("utf-8", "surrogatepass") for part in (self._user, agent, id_)]
        text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return urlsafe_b64encode(hmac.digest(self._key, text, "sha256")[:_BYTES])[:-2].decode()
