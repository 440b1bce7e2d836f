"""Variables in config.yaml: `${…}` in its values, and options that variables set by convention."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.config.environment import secret_in
from gateway.config.models import S3
from gateway.config.proxy import read_proxy

# `$${` is a literal `${`. LiteLLM's `os.environ/NAME` is accepted too, so that its users can paste
# their lines.
VARIABLE = re.compile(
    r"\$\$\{|\$\{file:(?P<file>[^}\-][^}]*)\}"
    r"|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{(?P<odd>[^}]*)\}?"
)


class Variables:
    """Replaces `${…}` by variables and files. `unset` holds the paths whose value was missing."""

    def __init__(self, environ: Mapping[str, str], folder: Path, problems: list[str]) -> None:
        self._environ = environ
        self._folder = folder
        self._problems = problems
        self.unset: set[str] = set()

    def fill(self, node: Any, path: str = "") -> Any:
        if isinstance(node, dict):
            return {
                str(key): self.fill(value, f"{path}.{key}".lstrip("."))
                for key, value in node.items()
            }
        if isinstance(node, list):
            return [self.fill(value, f"{path}[{i}]") for i, value in enumerate(node)]
        if not isinstance(node, str):
            return node
        if node.startswith("os.environ/"):
            node = f"${{{node.removeprefix('os.environ/')}}}"
        return VARIABLE.sub(lambda match: self._value(match, path), node)

    def _value(self, match: re.Match[str], path: str) -> str:
        if match[0] == "$${":
            return "${"
        if match["odd"] is not None:
            return self._unset(
                path,
                "has a ${ that is no variable; write ${NAME}, ${NAME:-default} or ${file:path}, or"
                " $${ for the two characters themselves",
            )
        if match["file"]:
            try:
                return secret_in(self._folder, match["file"])
            except ValueError as error:
                return self._unset(path, str(error))
        name = match["name"]
        value = self._environ.get(name) or match["default"]
        if value is None:
            return self._unset(
                path,
                f"the environment variable {name} is not set (set it, for instance in"
                f" {self._folder / '.env'}, or give a default: ${{{name}:-…}})",
            )
        return value

    def _unset(self, path: str, problem: str) -> str:
        self._problems.append(f"{path}: {problem}")
        self.unset.add(path)
        return ""


def add_options(tree: dict[str, Any], environ: Mapping[str, str], problems: list[str]) -> None:
    """Take options that the file does not set from variables with conventional names."""
    server = tree.setdefault("server", {})  # HOST and PORT are usual in containers
    for name in ("host", "port") if isinstance(server, dict) else ():
        if environ.get(name.upper()):
            server.setdefault(name, environ[name.upper()])
    for name, variable in (("database", "DATABASE_URL"), ("redis", "REDIS_URL")):
        if environ.get(variable):
            tree.setdefault(name, environ[variable])
    auth = tree.setdefault("auth", {})
    for name, variable in (("jwt_secret", "JWT_SECRET"), ("admin_password", "ADMIN_PASSWORD")):
        if isinstance(auth, dict) and environ.get(variable):
            auth.setdefault(name, environ[variable])
    traces = tree.setdefault("traces", {})
    if isinstance(traces, dict) and environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        traces.setdefault("endpoint", environ["OTEL_EXPORTER_OTLP_ENDPOINT"])
    storage = tree.setdefault("storage", {})
    if isinstance(storage, dict):
        _add_storage(storage, environ)
    outgoing = tree.setdefault("outgoing", {})
    if isinstance(outgoing, dict):
        _add_proxies(outgoing, environ, problems)


def _add_storage(storage: dict[str, Any], environ: Mapping[str, str]) -> None:
    if environ.get("STORAGE_URL"):
        storage.setdefault("url", environ["STORAGE_URL"])
    s3 = storage.setdefault("s3", {})
    for name in S3.model_fields if isinstance(s3, dict) else ():
        if environ.get(f"S3_{name.upper()}"):
            s3.setdefault(name, environ[f"S3_{name.upper()}"])
    is_bucket = str(storage.get("url") or "").startswith("s3:") or (
        isinstance(s3, dict) and s3.get("bucket") and not storage.get("url")
    )
    if is_bucket and environ.get("S3_PUBLIC_BASE_URL"):
        storage["public_base_url"] = storage.get("public_base_url") or environ["S3_PUBLIC_BASE_URL"]


def _add_proxies(outgoing: dict[str, Any], environ: Mapping[str, str], problems: list[str]) -> None:
    """Read the variables as curl, Go and Python do: lower case first, ALL_PROXY last."""
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        variables = [name, name.upper()]
        if name != "no_proxy":
            variables += ["all_proxy", "ALL_PROXY"]
        found = next((v for v in variables if environ.get(v)), None)
        if found is None or name in outgoing:
            continue
        outgoing[name] = environ[found]
        try:
            if name != "no_proxy":
                read_proxy(environ[found])
        except ValueError as error:
            outgoing[name] = None
            problems.append(f"outgoing.{name}: {error} (it is from the environment's {found})")
