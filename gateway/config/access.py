"""Who may call without a key: conflicts in the options, and sentences for the start and `check`."""

from collections.abc import Iterator

from gateway.config.models import Config


def check_access(config: Config) -> Iterator[str]:
    auth = config.auth
    if config.server.ops_port and config.server.ops_port == config.server.port:
        yield "server.ops_port: must be another port than server.port"
    if config.anonymous and not config.binds_loopback and not auth.anonymous_anywhere:
        yield (
            f"auth.anonymous: anyone who reaches {config.server.host} could use your agents;"
            " set it to false and add auth.keys, or spell out auth.anonymous_anywhere: true"
        )
    if config.uses_postgresql and not auth.jwt_secret:
        yield (
            "auth.jwt_secret: is needed with PostgreSQL, so that all replicas sign with the same"
            " one; set JWT_SECRET (openssl rand -hex 32)"
        )
    for i, key in enumerate(auth.keys):
        if auth.jwt_secret and key.client_headers_secret == auth.jwt_secret:
            yield (
                f"auth.keys[{i}].client_headers_secret: must not be auth.jwt_secret, with which its"
                " holder could sign logins"
            )
    digests = [key.key.digest() for key in auth.keys]
    for i, digest in enumerate(digests):
        if digest in digests[:i]:
            yield f"auth.keys[{i}].key: the same key stands in auth.keys[{digests.index(digest)}]"


def access_note(config: Config) -> str:
    """A sentence about anonymous callers, for the start and for `check`."""
    auth = config.auth
    if config.anonymous and auth.anonymous_anywhere:
        return "anyone who reaches the port may call without a key; ANONYMOUS=false demands one"
    if config.anonymous:
        return (
            "programs on this machine may call without a key; set ANONYMOUS=false if a proxy or a"
            " tunnel leads here"
        )
    if auth.anonymous is False:
        return "calls need a key, since auth.anonymous is false (ANONYMOUS=false)"
    if not config.binds_loopback:
        return f"calls need a key, since other machines can reach {config.server.host}"
    return f"calls need a key, since {config.deployed_by} is set"


def lock_out(config: Config) -> str:
    """A sentence if no caller could have access, else ""."""
    if config.anonymous or config.auth.keys or config.database:
        return ""
    return (
        "nobody can call: no database, no auth.keys, and anonymous access is off; add for instance"
        ' auth: {keys: [{name: web, key: "${WEB_KEY}"}]}'
    )
