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
    """Replaces `${…}` by variables and files.

    `unset` holds the paths whose value was missing, `origins` the variables that each path's
    value is from, `problems` what was wrong.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path, problems: list[str]) -> None:
        self._environ = environ
        self._folder = folder
        self.problems = problems
        self.unset: set[str] = set()
        self.origins: dict[str, list[str]] = {}

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
        if self._environ.get(name):
            self.origins.setdefault(path, []).append(name)
        value = self._environ.get(name) or match["default"]
        if value is None:
            return self._unset(
                path,
                f"the environment variable {name} is not set (set it, for instance in"
                f" {self._folder / '.env'}, or give a default: ${{{name}:-…}})",
            )
        return value

    def add(self, section: Any, path: str, *names: str, over_empty: bool = False) -> str:
        """Set the option at `path`, which is in `section`, to the first of these variables that is
        set. An option of the file wins; with `over_empty` an empty one does not. Returns the value,
        or "" if nothing was set."""
        option = path.rpartition(".")[2]
        name = next((name for name in names if self._environ.get(name)), "")
        if not name or not isinstance(section, dict):
            return ""
        if section.get(option) if over_empty else option in section:
            return ""
        self.origins[path] = [name]
        section[option] = self._environ[name]
        return self._environ[name]

    def named(self, problem: str) -> str:
        """A line `path: what is wrong`, with the variables that the value is from."""
        names = self.origins.get(problem.partition(": ")[0], [])
        return f"{problem} (from {' and '.join(names)})" if names else problem

    def _unset(self, path: str, problem: str) -> str:
        self.problems.append(f"{path}: {problem}")
        self.unset.add(path)
        return ""


def add_options(tree: dict[str, Any], variables: Variables) -> None:
    """Take options that the file does not set from variables with conventional names."""
    server = tree.setdefault("server", {})  # HOST and PORT are usual in containers
    for name in ("host", "port"):
        variables.add(server, f"server.{name}", name.upper())
    for name, variable in (("database", "DATABASE_URL"), ("redis", "REDIS_URL")):
        variables.add(tree, name, variable)
    auth = tree.setdefault("auth", {})
    for name, variable in (("jwt_secret", "JWT_SECRET"), ("admin_password", "ADMIN_PASSWORD")):
        variables.add(auth, f"auth.{name}", variable)
    traces = tree.setdefault("traces", {})
    variables.add(traces, "traces.endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT")
    storage = tree.setdefault("storage", {})
    if isinstance(storage, dict):
        _add_storage(storage, variables)
    outgoing = tree.setdefault("outgoing", {})
    if isinstance(outgoing, dict):
        _add_proxies(outgoing, variables)


def override(tree: dict[str, Any], variables: Variables, options: Mapping[str, Any]) -> None:
    """Replace members of `server` by those of the command line that are not None."""
    if isinstance(tree["server"], dict):
        for name, value in options.items():
            if value is not None:
                tree["server"][name] = value
                variables.origins.pop(f"server.{name}", None)


def _add_storage(storage: dict[str, Any], variables: Variables) -> None:
    variables.add(storage, "storage.url", "STORAGE_URL")
    s3 = storage.setdefault("s3", {})
    for name in S3.model_fields:
        variables.add(s3, f"storage.s3.{name}", f"S3_{name.upper()}")
    is_bucket = str(storage.get("url") or "").startswith("s3:") or (
        isinstance(s3, dict) and s3.get("bucket") and not storage.get("url")
    )
    if is_bucket:
        variables.add(storage, "storage.public_base_url", "S3_PUBLIC_BASE_URL", over_empty=True)


def _add_proxies(outgoing: dict[str, Any], variables: Variables) -> None:
    """Read the variables as curl, Go and Python do: lower case first, ALL_PROXY last."""
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        names = [name, name.upper()]
        if name != "no_proxy":
            names += ["all_proxy", "ALL_PROXY"]
        if found := variables.add(outgoing, f"outgoing.{name}", *names):
            try:
                if name != "no_proxy":
                    read_proxy(found)
            except ValueError as error:
                outgoing[name] = None
                variables.problems.append(f"outgoing.{name}: {error}")
