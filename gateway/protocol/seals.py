"""Seals on ids of data that a platform keeps for one user: a conversation, a waiting run, a file.

Platforms check only the operator's key, so they return a conversation to any caller that names it.
A caller that acts for one user gets such ids as `id~mac`, and no other id is accepted. The MAC
covers the user, the agent and the id, so the gateway stores nothing.
"""

import hmac
from base64 import urlsafe_b64encode

from gateway.errors import ConversationNotFound, FileNotFound
from gateway.language.sentences import say

MARK = "~"
_BYTES = 16  # of the MAC that are kept
# after the agent's name: a file's id then opens no conversation with the same id
_FILES = "\0files"


class Seal:
    """The seal of one user. `user` is unique among all users of all keys."""

    __slots__ = ("_key", "_user")

    def __init__(self, key: bytes, user: str) -> None:
        self._key = key
        self._user = user

    def close(self, agent: str, id_: str) -> str:
        """The sealed id for the user."""
        return f"{id_}{MARK}{self._mac(agent, id_)}"

    def fits(self, agent: str, sealed: str) -> bool:
        """Whether the agent's id was sealed for this user."""
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
                say(
                    "There is no file {id!r} of this token's user; upload it with the token.",
                    id=sealed[:120],
                ),
                param="files",
            )
        return sealed.rpartition(MARK)[0]

    def _mac(self, agent: str, id_: str) -> str:
        # The lengths keep one part from running into the next.
        parts = [part.encode("utf-8", "surrogatepass") for part in (self._user, agent, id_)]
        text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return urlsafe_b64encode(hmac.digest(self._key, text, "sha256")[:_BYTES])[:-2].decode()
