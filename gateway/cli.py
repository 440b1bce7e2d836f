"""The command line: serve, init, check, probe, schema, users, keys, migrate."""

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import ssl
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import gateway
from gateway.config import invocation
from gateway.config.environment import with_dotenv
from gateway.errors import StartError
from gateway.telemetry import logs

if TYPE_CHECKING:
    from gateway.config.models import Config

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

log = logging.getLogger("gateway")


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    _exit_on_signals()
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    args.built_in = invocation.may_be_built_in(args.config)
    args.config = args.config or invocation.default_config()
    try:
        return administer(args) if hasattr(args, "administer") else command(args)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _exit_on_signals() -> None:
    """Set signal handlers until the gateway sets its own. Process 1 of a container does not receive
    signals without a handler, and an early reload must not end the process."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
        if hangup := getattr(signal, "SIGHUP", None):
            signal.signal(hangup, signal.SIG_IGN)


_COMMANDS: dict[str, str] = {
    "serve": "start the gateway (the default command)",
    "init": "write config.yaml and .env; existing files stay as they are",
    "check": "check config.yaml; every problem at once, exit 1 if there is one",
    "probe": "exit 0 if a running gateway is ready",
    "schema": "print the JSON Schema of config.yaml",
}


def _parser() -> argparse.ArgumentParser:
    """The parser. Options work both before and after the command."""
    parser = argparse.ArgumentParser(description=gateway.__doc__)
    parser.add_argument("--version", action="version", version=gateway.__version__)
    _add_options(parser, None)
    parser.set_defaults(command=serve)
    commands = parser.add_subparsers(metavar="command")
    for name, text in _COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        _add_options(sub, argparse.SUPPRESS)  # keep options given before the command
        sub.set_defaults(command=globals()[name])
        if name == "check":
            text = "also ask every platform who the bot is and what is missing, and every store"
            sub.add_argument("--live", action="store_true", help=text)
    _add_memory_commands(commands)
    _add_admin_commands(commands)
    return parser


_KEY_COLUMNS = (
    "Columns: id, which `keys revoke` takes; owner, the account; name, what the key is for;"
    " permissions; state, which is active, expired or revoked; calls so far; limits of"
    " its own: rates, calls in all, agents; last used and expires, in UTC; client headers,"
    " which is no, plain or signed. Piped into another"
    " program, they are separated by tabs."
)


def _add_memory_commands(commands: "_Commands") -> None:
    text = "explain: what the memory makes of a request"
    group = commands.add_parser("memory", help=text, description=text)
    text = "what is compared, and the verdict; several requests follow each other"
    sub = group.add_subparsers(required=True).add_parser("explain", help=text, description=text)
    sub.add_argument("files", nargs="+", metavar="REQUEST.json")
    sub.set_defaults(command=explain)


def _add_admin_commands(commands: "_Commands") -> None:
    """The commands of `admin`, which is imported only when one of them runs."""

    def add(
        to: "_Commands", action: str, text: str, more: str | None = None
    ) -> argparse.ArgumentParser:
        name = action.rpartition(" ")[2]
        sub = to.add_parser(name, help=text, description=text, epilog=more)
        _add_options(sub, argparse.SUPPRESS)
        sub.set_defaults(administer=action)
        return sub

    def group(name: str, text: str) -> "_Commands":
        parser = commands.add_parser(name, help=text, description=text)
        _add_options(parser, argparse.SUPPRESS)
        return parser.add_subparsers(required=True)

    users = group("users", "add, list, set-password, disable, enable: the accounts")
    sub = add(users, "users add", "a new account; its password is read from standard input")
    sub.add_argument("name")
    sub.add_argument("--role", choices=("admin", "premium", "user"), default="user")
    sub.add_argument("--email")
    sub.add_argument("--password", action=_NoPassword, help=argparse.SUPPRESS)
    add(users, "users list", "every account")
    text = "a new password, read from standard input"
    sub = add(users, "users set-password", text)
    sub.add_argument("name")
    sub.add_argument("--password", action=_NoPassword, help=argparse.SUPPRESS)
    add(users, "users disable", "no logins and no calls any more").add_argument("name")
    add(users, "users enable", "logins and calls again").add_argument("name")

    keys = group("keys", "create, list, revoke: the API keys")
    sub = add(keys, "keys create", "a new key; it is printed this once")
    sub.add_argument("name", help="what the key is for")
    text = "whose key it is: admin's, unless given"
    sub.add_argument("--user", default="admin", metavar="NAME", help=text)
    text = "what it may do, of chat, upload and admin: chat, unless given"
    sub.add_argument("--permissions", default="chat", metavar="A,B", help=text)
    sub.add_argument("--agents", metavar="A,B", help="only these agents or routes")
    sub.add_argument("--max-calls", type=int, metavar="N", help="so many calls in all")
    sub.add_argument("--chat", metavar="RATE", help="its own rate of calls, such as 120/min")
    text = "its client's server names users and chats in headers, as Open WebUI can"
    sub.add_argument("--trust-client-headers", action="store_true", help=text)
    text = "only signed ones: the secret is read from standard input, or asked for"
    sub.add_argument("--client-headers-secret", action="store_true", help=text)
    text = "when it ends: after so long (30d, 12h), or at a moment (2026-12-31, ISO 8601, UTC)"
    sub.add_argument("--expires", metavar="WHEN", help=text)
    sub = add(keys, "keys list", "every key, without its secret", _KEY_COLUMNS)
    sub.add_argument("--user", default="", metavar="NAME", help="only this user's")
    sub = add(keys, "keys revoke", "end a key for good")
    sub.add_argument("id", help="the first column of `keys list`, or the whole key")

    add(commands, "migrate", "make the database, or bring its schema up to date, and exit")


class _NoPassword(argparse.Action):
    """Refuse passwords as arguments: other users of the machine can read a command line, and shells
    store it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error("--password: the password is read from standard input, or asked for")


def administer(args: argparse.Namespace) -> int:
    from gateway import admin

    config = _load(args)
    return 1 if config is None else admin.run(args, config)


def _add_options(parser: argparse.ArgumentParser, otherwise: object) -> None:
    text = "instead of what GATEWAY_CONFIG names, or config.yaml in the current folder"
    parser.add_argument("--config", "-c", type=Path, default=otherwise, metavar="FILE", help=text)
    parser.add_argument("--host", default=otherwise)
    text = "of the log (or LOG_FORMAT): auto is text at a terminal and json elsewhere"
    parser.add_argument("--log-format", choices=logs.FORMS, default=otherwise, help=text)
    parser.add_argument("--port", type=int, default=otherwise)


def _load(args: argparse.Namespace) -> "Config | None":
    """The configuration, or None after printing its problems."""
    from gateway.config import load as configfile

    try:
        return _read(args)
    except configfile.ConfigError as error:
        count = len(error.problems)
        print(f"{_source(args)}: {count} problem{'s' if count > 1 else ''}", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        for warning in error.warnings:
            print(f"  warning: {warning}", file=sys.stderr)
        if not args.built_in and not args.config.exists():
            print(
                f"  there is no {args.config.absolute()}: name the file with --config or in"
                " GATEWAY_CONFIG, or start in its folder",
                file=sys.stderr,
            )
        return None


def _read(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> "Config":
    """Raises ConfigError."""
    from gateway.config import load as configfile

    # A file that has once been there is never replaced by the shipped one, whose agents are demos.
    args.built_in = args.built_in and not args.config.exists()
    return configfile.load(
        args.config, environ, built_in=args.built_in, host=args.host, port=args.port
    )


def _source(args: argparse.Namespace) -> str:
    return f"the built-in config.yaml (no {args.config})" if args.built_in else str(args.config)


def init(args: argparse.Namespace) -> int:
    from gateway.config.starter import write

    return write(args.config)


def check(args: argparse.Namespace) -> int:
    config = _load(args)
    if config is None:
        return 1
    from gateway.config.access import access_note, lock_out
    from gateway.config.check import warnings
    from gateway.config.load import home
    from gateway.config.outgoing import way_of

    print(f"{_source(args)}: ok")
    for name, agent in config.agents.items():
        way = way_of(agent, agent.base_url, config.outgoing)
        where = "demo (embedded simulator)" if agent.is_demo else f"{agent.base_url}, {way}"
        print(f"  {name}: {agent.platform} at {where}")
    print(f"  {access_note(config)}")
    for warning in (*warnings(config, home(args.config)), lock_out(config)):
        if warning:
            print(f"  warning: {warning}")
    return _check_live(config) if getattr(args, "live", False) else 0


def _check_live(config: "Config") -> int:
    """Check every configured platform and store; returns 1 if one of them is sure to fail."""
    from gateway.server.check import check_live, table

    rows = asyncio.run(check_live(config))
    print("asked just now:")
    print(table(rows))
    return 1 if any(state == "FAILED" for *_, state, _ in rows) else 0


def schema(args: argparse.Namespace) -> int:
    from gateway.config.schema import config_schema

    print(json.dumps(config_schema(), indent=2, ensure_ascii=False))
    return 0


def explain(args: argparse.Namespace) -> int:
    from gateway.errors import InvalidRequest
    from gateway.memory.explain import explain as explained

    try:
        bodies = [json.loads(Path(name).read_text("utf-8")) for name in args.files]
        print("\n".join(asyncio.run(explained(bodies))))
    except (OSError, ValueError, InvalidRequest) as error:
        print(f"{error}: give bodies of POST /v1/chat/completions, as JSON", file=sys.stderr)
        return 1
    return 0


def probe(args: argparse.Namespace) -> int:
    config = _load(args)
    if config is None:
        return 1
    server = config.server
    host, port, scheme = server.host, server.port, "https" if server.tls else "http"
    if server.ops_port:
        host, port, scheme = server.ops_host or host, server.ops_port, "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/readyz"
    try:
        # The certificate's name is not that of the loopback address.
        trust = ssl._create_unverified_context() if server.tls else None  # noqa: S323
        with urllib.request.urlopen(url, timeout=5, context=trust) as answer:  # noqa: S310
            print(answer.read().decode())
            return 0 if answer.status == 200 else 1
    except OSError as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1


def serve(args: argparse.Namespace) -> int:
    _collect_garbage_less()
    config = _load(args)
    if config is None:
        return 1
    real = dict(os.environ)
    os.environ.update(with_dotenv(args.config.parent, real))  # for libraries: proxies, AWS_…
    level = os.environ.get("LOG_LEVEL", "INFO").upper()
    if not isinstance(logging.getLevelName(level), int):
        print(f"LOG_LEVEL: {level!r} is none of DEBUG, INFO, WARNING, ERROR", file=sys.stderr)
        return 1
    form = args.log_format or os.environ.get("LOG_FORMAT") or "auto"
    if form not in logs.FORMS:
        print(f"LOG_FORMAT: {form!r} is none of {', '.join(logs.FORMS)}", file=sys.stderr)
        return 1
    access_log = logs.set_up(level, form, sys.stderr)
    from gateway.server.process import serve as serve_on
    from gateway.system import loop_factory

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            load = partial(_read, args, real)
            return runner.run(serve_on(config, args.config, load, access_log))
        except StartError as error:
            log.critical("Cannot start: %s", error)
            return 1


def _collect_garbage_less() -> None:
    """Make garbage collection rare. A collection visits all live objects: with 200 open streams it
    took a sixth of an event's cost, and a twentieth of the start. Per-event objects are freed by
    reference counting; only cycles need the collector, and they are few."""
    gc.set_threshold(50_000, 20, 100)
