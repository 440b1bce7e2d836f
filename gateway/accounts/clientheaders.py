"""Headers with which a chat client's server names its end user and chat, as Open WebUI does.

They count for keys that trust them. The user's header is plain, or for keys with a secret a JWT
(HS256) that the server signs for every call: then the key alone acts for no one.
"""

from collections.abc import Mapping
from urllib.parse import unquote

from multidict import CIMultiDictProxy

from gateway.accounts.tokens import ALGORITHM, is_token
from gateway.errors import InvalidToken, TokenExpired
from gateway.language.sentences import say
from gateway.secret import Secret

USER, CHAT = "X-OpenWebUI-User-Id", "X-OpenWebUI-Chat-Id"
SIGNED = "X-OpenWebUI-User-Jwt"
_ISSUER = "open-webui"
_CLOCKS_S = 30  # by which the clocks of two machines may differ
_LONGEST_ID, _LONGEST_USER = 1024, 256


def plain(headers: Mapping[str, str], name: str) -> str:
    """The id in the header, else ""."""
    value = unquote(headers.get(name, "").strip())
    return value if len(value) <= _LONGEST_ID and value.isprintable() else ""


def signed_user(headers: CIMultiDictProxy[str], secret: Secret) -> str:
    """The user whom the signed header names. Raises InvalidToken, TokenExpired."""
    import jwt  # with cryptography, which takes 14 MB that many processes never need

    values = headers.getall(SIGNED, [])
    if not values:
        raise InvalidToken(
            say(
                "This key needs the header {name}, which names the user and is signed: set "
                "ENABLE_FORWARD_USER_INFO_HEADERS and FORWARD_USER_INFO_HEADER_JWT_SECRET in "
                "Open WebUI.",
                name=SIGNED,
            )
        )
    wrong = InvalidToken(
        say(
            "The header {name} is not valid: the secret that signs it must be the key's "
            "client_headers_secret.",
            name=SIGNED,
        )
    )
    if len(values) > 1 or not is_token(values[0]):
        raise wrong
    try:
        claims = jwt.decode(
            values[0],
            secret.reveal(),
            algorithms=[ALGORITHM],
            issuer=_ISSUER,
            leeway=_CLOCKS_S,
            options={"require": ["exp", "iss", "sub"]},
        )
    except jwt.ExpiredSignatureError:
        raise TokenExpired(
            say("The header {name} has expired: compare the clocks of both machines.", name=SIGNED)
        ) from None
    except (jwt.InvalidTokenError, ValueError, OverflowError, RecursionError):
        raise wrong from None
    user = claims["sub"]
    if isinstance(user, str) and 0 < len(user) <= _LONGEST_USER and user.isprintable():
        return user
    raise wrong
