"""The commands that administer without the API: users, keys, migrate."""

import argparse
import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable

from gateway.body import check
from gateway.config import Config, KeyLimits
from gateway.errors import DatabaseAway, GatewayError, InvalidRequest, StartError
from gateway.passwords import Passwords, check_strength
from gateway.routes.accounts import Register
from gateway.secret import Secret
from gateway.stores.accounts import Accounts, User
from gateway.stores.database import connect
from gateway.times import iso

_PERMISSIONS = ("chat", "upload", "admin")
_PAGE = 1000
_WITH_PASSWORD = ("users add", "users set-password")


def run(args: argparse.Namespace, config: Config) -> int:
    """Carry out one of the commands; gives the exit status."""
    if not config.database:
        print("There is no database (database: none).", file=sys.stderr)
        return 1
    try:
        if args.administer in _WITH_PASSWORD:  # before there is a loop, so that Ctrl-C works
            args.password = _read_password()
        asyncio.run(_run(args, config))
    except (KeyboardInterrupt, EOFError):
        print("Nothing was changed.", file=sys.stderr)
    except DatabaseAway as error:
        why = error.__cause__ or "no answer in time"
        print(f"The database cannot be used: {why}", file=sys.stderr)
    except GatewayError as error:
        print(error.message, file=sys.stderr)
    except StartError as error:
        print(f"Cannot go on: {error}", file=sys.stderr)
    else:
        return 0
    return 1


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


def _read_password() -> Secret:
    """From a prompt, twice, or the first line of what is piped in."""
    if not sys.stdin.isatty():
        return Secret(sys.stdin.readline().rstrip("\r\n"))
    password = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != password:
        raise InvalidRequest("The two are not the same.")
    return Secret(password)


async def _named(accounts: Accounts, name: str) -> User:
    user = await accounts.user_by_login(name)
    if user is None:
        hint = (
            "" if await accounts.has_users() else " There is none yet: users add NAME --role admin."
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
    while (found := await accounts.users("", "", page, _PAGE))[0]:
        for user in found[0]:
            login = iso(user.last_login_ms) or "never"
            print(f"{user.username}\t{user.role}\t{user.status}\tlast login {login}")
        page += 1


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
    }
    key, full = await accounts.add_key(user.id, settings)
    print(f"key {key.id} of {user.username}, shown only now:", file=sys.stderr)
    print(full.reveal())


async def _list_keys(args: argparse.Namespace, accounts: Accounts, passwords: Passwords) -> None:
    owner = (await _named(accounts, args.user)).id if args.user else ""
    page = 1
    while (found := await accounts.keys(owner, page, _PAGE))[0]:
        for key in found[0]:
            told = key.public()
            state = "active" if told["is_active"] else "over"
            rights = ",".join(key.permissions)
            print(f"{key.id}\t{key.created_by}\t{key.name}\t{rights}\t{state}\t{key.calls} calls")
        page += 1


async def _revoke_key(args: argparse.Namespace, accounts: Accounts, passwords: Passwords) -> None:
    key = await accounts.revoke_key(args.id.removeprefix("sk-gw-")[:12])
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
