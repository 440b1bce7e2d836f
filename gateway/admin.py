"""The administration commands that need no API: users, keys, migrate."""

import argparse
import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.accounts.credentials import ID_LENGTH, OUR_PREFIX, masked
from gateway.accounts.passwords import Passwords, check_strength
from gateway.accounts.store import Accounts, ApiKey, User
from gateway.columns import aligned
from gateway.config.check import unmounted
from gateway.config.invocation import command
from gateway.config.load import home
from gateway.config.models import Config, KeyLimits
from gateway.config.values import duration_s
from gateway.database import connect
from gateway.errors import (
    DatabaseUnavailable,
    GatewayError,
    InvalidRequest,
    NotFound,
    StartError,
    describe_fault,
)
from gateway.http.body import check
from gateway.routes.accounts import Register
from gateway.routes.apikeys import KeySettings
from gateway.secret import Secret
from gateway.times import LATEST_MS, iso, now_ms, read_iso

_PERMISSIONS = ("chat", "upload", "admin")
_PAGE = 1000
_WITH_PASSWORD = ("users add", "users set-password")


def run(args: argparse.Namespace, config: Config) -> int:
    """Run one of the commands; returns the exit status."""
    if not config.database:
        print("There is no database (database: none).", file=sys.stderr)
        return 1
    print(f"database: {_place(config)}", file=sys.stderr)
    try:
        if args.administer != "migrate":
            _check_is_there(config, args.config)
        elif missing := unmounted(config, home(args.config)):
            raise StartError(missing)
        if args.administer in _WITH_PASSWORD:  # before the event loop starts, so that Ctrl-C works
            args.password = _read_secret("password", "of 8 to 256 characters")
        elif getattr(args, "client_headers_secret", False):
            args.client_headers_secret = _read_secret("secret", "of 32 characters or more")
        asyncio.run(_run(args, config))
    except (KeyboardInterrupt, EOFError):
        print("Nothing was changed.", file=sys.stderr)
    except DatabaseUnavailable as error:
        reason = describe_fault(error.__cause__ or TimeoutError())
        print(f"The database cannot be used: {reason}", file=sys.stderr)
    except GatewayError as error:
        print(error.message, file=sys.stderr)
    except StartError as error:
        print(f"Cannot go on: {error}", file=sys.stderr)
    else:
        return 0
    return 1


def _place(config: Config) -> str:
    """The database's location, without user and password."""
    if config.sqlite_file:
        return f"SQLite, {Path(config.sqlite_file).absolute()}"
    parts = urlsplit(config.database.reveal())
    return f"PostgreSQL, {parts.netloc.rpartition('@')[2]}{parts.path}"


def _check_is_there(config: Config, path: Path) -> None:
    """Raise if there is no database: only a start and `migrate` create one, since one created by
    mistake would be empty."""
    file = Path(config.sqlite_file)
    if config.sqlite_file and not (file.is_file() and file.stat().st_size):
        raise StartError(
            f"there is no database at {file.absolute()} yet. Start the gateway first, or make the"
            f" database with: {command(path)} migrate. If it is elsewhere, name its config.yaml"
            " with --config, or set DATABASE_URL"
        )


async def _run(args: argparse.Namespace, config: Config) -> None:
    database = connect(config.database.reveal())
    passwords = Passwords()
    try:
        steps = await database.migrate()
        if args.administer == "migrate":
            print(f"{steps} step(s) applied" if steps else "the schema is up to date")
        else:
            _check_agents(config, getattr(args, "agents", None))
            await ACTIONS[args.administer](args, Accounts(database), passwords)
    finally:
        passwords.close()
        await database.close()


def _check_agents(config: Config, names: str | None) -> None:
    known = {name.lower() for name in (*config.agents, *config.routes)}
    for name in (names or "").split(","):
        if name.strip() and name.strip().lower().partition("/")[0] not in known:
            shown = ", ".join(sorted(known))
            raise InvalidRequest(f"--agents: there is no {name.strip()!r}; there are: {shown}.")


def _read_secret(what: str, size: str) -> Secret:
    """Read it: twice from a prompt, or the first line of piped input. Raises InvalidRequest."""
    if not sys.stdin.isatty():
        if not (line := sys.stdin.readline().rstrip("\r\n")):
            raise InvalidRequest(
                f"There is no {what} on standard input. Run this at a terminal, which asks for it,"
                f" or pipe in one line {size}."
            )
        return Secret(line)
    secret = getpass.getpass(f"{what.capitalize()}: ")
    if getpass.getpass("Once more: ") != secret:
        raise InvalidRequest("The two are not the same.")
    return Secret(secret)


async def _named(accounts: Accounts, name: str) -> User:
    user = await accounts.user_by_login(name)
    if user is None:
        hint = (
            ""
            if await accounts.has_users()
            else " There is none yet; make one with the command: users add admin --role admin."
        )
        raise InvalidRequest(f"There is no user {name!r}.{hint}")
    return user


async def _add_user(args: argparse.Namespace, accounts: Accounts, passwords: Passwords) -> None:
    password: Secret = args.password
    body = check(Register, {"username": args.name, "password": password, "email": args.email})
    check_strength(password, body.username)
    hashed = await passwords.hash(password)
    user = await accounts.add_user(body.username, hashed, role=args.role, email=body.email)
    print(f"user {user.username} ({user.role}) was added")


async def _list_users(args: argparse.Namespace, accounts: Accounts, passwords: Passwords) -> None:
    page = 1
    rows: list[tuple[str, ...]] = []
    while (found := await accounts.users("", "", page, _PAGE))[0]:
        for user in found[0]:
            login = iso(user.last_login_ms) or "never"
            rows.append((user.username, user.role, user.status, f"last login {login}"))
        page += 1
    _print_table(rows)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows: in columns at a terminal, else with tabs, for `cut` and its like."""
    for line in aligned(rows) if sys.stdout.isatty() else map("\t".join, rows):
        print(line)


async def _set_password(args: argparse.Namespace, accounts: Accounts, passwords: Passwords) -> None:
    user = await _named(accounts, args.name)
    password: Secret = args.password
    check_strength(password, user.username)
    await accounts.set_password(user.id, await passwords.hash(password))
    print(f"the password of {user.username} was set; earlier logins have ended")


async def _disable(args: argparse.Namespace, accounts: Accounts, passwords: Passwords) -> None:
    user = await _named(accounts, args.name)
    await accounts.update_user(user.id, {"status": "inactive"})
    print(f"{user.username} is inactive; so are the keys of this account")


async def _enable(args: argparse.Namespace, accounts: Accounts, passwords: Passwords) -> None:
    user = await _named(accounts, args.name)
    await accounts.update_user(user.id, {"status": "active"})
    print(f"{user.username} is active")


async def _create_key(args: argparse.Namespace, accounts: Accounts, passwords: Passwords) -> None:
    permissions = [name.strip() for name in args.permissions.split(",") if name.strip()]
    if not permissions or not set(permissions) <= set(_PERMISSIONS):
        raise InvalidRequest(f"--permissions: name some of {', '.join(_PERMISSIONS)}.")
    limits = {"chat": args.chat} if args.chat else {}
    try:
        KeyLimits.model_validate(limits)
    except ValueError:
        raise InvalidRequest("--chat: must be a rate such as 60/min.") from None
    user = await _named(accounts, args.user)
    agents = args.agents and [name.strip() for name in args.agents.split(",") if name.strip()]
    settings = {
        "name": args.name,
        "permissions": [name for name in _PERMISSIONS if name in permissions],
        "agents": agents or None,
        "max_calls": args.max_calls,
        "rate_limits": limits,
        "trust_client_headers": args.trust_client_headers or bool(args.client_headers_secret),
        "client_headers_secret": args.client_headers_secret or None,
    }
    _check_settings(settings)
    settings["expires_ms"] = _expiry(args.expires) if args.expires else None
    await _note_same_name(accounts, user, args.name)
    key, full = await accounts.add_key(user.id, settings)
    until = f", until {iso(key.expires_ms)}" if key.expires_ms else ""
    print(f"key {key.id} of {user.username}{until}, shown only now:", file=sys.stderr)
    print(full.reveal())


def _check_settings(settings: dict[str, Any]) -> None:
    """Apply the rules of `POST /api/v1/api-keys`. Raises InvalidRequest that names the option."""
    try:
        check(KeySettings, settings)
    except InvalidRequest as error:
        option = "name" if error.param == "name" else f"--{str(error.param).replace('_', '-')}"
        message = error.message.replace(f"{error.param!r}", option, 1)
        raise InvalidRequest(message) from None


async def _note_same_name(accounts: Accounts, user: User, name: str) -> None:
    found, _ = await accounts.keys(user.id, 1, _PAGE)
    if same := [key.id for key in found if key.name == name and key.state == "active"]:
        print(
            f"note: {user.username} has an active key {name!r} already ({', '.join(same[:5])}),"
            " which goes on",
            file=sys.stderr,
        )


def _expiry(text: str) -> int:
    """Milliseconds since the epoch, from `30d` or an ISO 8601 time. Raises InvalidRequest."""
    if text.strip().replace(".", "").isdecimal():
        raise InvalidRequest("--expires: must have a unit, such as 30d or 12h, or be a date.")
    try:
        moment = now_ms() + int(duration_s(text) * 1000)
    except ValueError:
        try:
            moment = read_iso(text)
        except ValueError:
            raise InvalidRequest("--expires: must be such as 30d, 12h or 2026-12-31.") from None
    if not now_ms() < moment < LATEST_MS:
        raise InvalidRequest("--expires: must be in the future.")
    return moment


# The help of `keys list` explains them.
_COLUMNS = (
    "id", "owner", "name", "permissions", "state", "calls", "limits", "last used", "expires",
    "client headers",
)  # fmt: skip


async def _list_keys(args: argparse.Namespace, accounts: Accounts, passwords: Passwords) -> None:
    owner = (await _named(accounts, args.user)).id if args.user else ""
    page = 1
    rows: list[tuple[str, ...]] = [_COLUMNS]
    while (found := await accounts.keys(owner, page, _PAGE))[0]:
        rows += map(_cells, found[0])
        page += 1
    _print_table(rows)


def _cells(key: ApiKey) -> tuple[str, ...]:
    public = key.public()
    limits = [f"{name} {value}" for name, value in key.rate_limits.items() if value is not None]
    limits += [f"max {key.max_calls} calls"] if key.max_calls is not None else []
    limits += [f"agents {','.join(key.agents)}"] if key.agents is not None else []
    return (
        key.id, key.created_by, key.name, ",".join(key.permissions),
        key.state, str(key.calls), "; ".join(limits) or "-",
        public["last_used_at"] or "never", public["expires_at"] or "never",
        "signed" if key.client_headers_secret else "plain" if key.trust_client_headers else "no",
    )  # fmt: skip


async def _revoke_key(args: argparse.Namespace, accounts: Accounts, passwords: Passwords) -> None:
    try:
        key = await accounts.revoke_key(args.id.removeprefix(OUR_PREFIX)[:ID_LENGTH])
    except NotFound:
        shown = masked(args.id) if args.id.startswith(OUR_PREFIX) else args.id
        raise InvalidRequest(
            f"There is no such API key: {shown!r}. Give the key's id, which `keys list` shows"
            " before its owner and name, or the whole key."
        ) from None
    print(f"key {key.id} ({key.name}) is revoked")


ACTIONS: dict[str, Callable[[argparse.Namespace, Accounts, Passwords], Awaitable[None]]] = {
    "users add": _add_user,
    "users list": _list_users,
    "users set-password": _set_password,
    "users disable": _disable,
    "users enable": _enable,
    "keys create": _create_key,
    "keys list": _list_keys,
    "keys revoke": _revoke_key,
}
