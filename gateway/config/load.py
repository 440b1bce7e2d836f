"""Read config.yaml: substitute variables, check everything, report all problems together."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from yaml.composer import ComposerError

from gateway.config import kinds
from gateway.config.check import check_agents, check_stores, warnings
from gateway.config.environment import secret_in, with_dotenv
from gateway.config.models import DEMO, S3, Agent, Config, RouteTarget
from gateway.config.outgoing import file_problems
from gateway.config.proxy import read_proxy
from gateway.errors import clean
from gateway.secret import Secret
from gateway.shipped import shipped


class ConfigError(Exception):
    """config.yaml is unusable. `problems` are lines of the form `path: what is wrong`. `warnings`
    have the same form and report oddities of the readable parts."""

    def __init__(self, problems: list[str], warnings: Sequence[str] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.warnings = list(warnings)


def load(
    path: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    built_in: bool = False,
    **overrides: Any,
) -> Config:
    """The checked configuration in `path`; variables also come from `.env` in its folder.

    `built_in` reads the shipped config.yaml as if it were at `path`.
    `overrides` come from the command line and replace members of `server` unless they are None.
    Raises ConfigError with all problems.
    """
    try:
        text = (shipped("config.yaml") if built_in else path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise ConfigError([f"{path}: {reason}"]) from None
    problems: list[str] = []
    environ = with_dotenv(path.parent, environ, problems)
    return parse(text, environ, path.parent, problems, **overrides)


def home(path: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that relative paths in the file `path` start from."""
    return Path(with_dotenv(path.parent, environ).get("GATEWAY_HOME") or path.parent)


def sources(path: Path) -> list[Path]:
    """The files that `load(path)` reads: `path`, `.env` in its folder, and every `${file:…}`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    named = (match["file"] for match in _VARIABLE.finditer(text) if match["file"])
    return [path, path.parent / ".env", *(path.parent / name for name in dict.fromkeys(named))]


def parse(
    text: str,
    environ: Mapping[str, str],
    folder: Path = Path(),
    problems: list[str] | None = None,
    **overrides: Any,
) -> Config:
    """Like `load`, but from the file's text. `folder` is the file's folder, `problems` are the
    problems found so far."""
    problems = [] if problems is None else problems
    tree = _read_yaml(text, problems)
    if not isinstance(tree, dict):
        raise ConfigError(problems or ["the file must be a mapping with `agents:` in it"])
    values = _Values(environ, folder, problems)
    tree = values.fill(tree)
    given = {key: value for key, value in overrides.items() if value is not None}
    server = tree.setdefault("server", {})
    if isinstance(server, dict):
        for name in ("host", "port"):  # HOST and PORT are usual in containers; the file wins
            if environ.get(name.upper()):
                server.setdefault(name, environ[name.upper()])
        server.update(given)
    _fill_in(tree, environ)
    _fill_in_proxies(tree, environ, problems)
    config: Config | None = None
    odd: list[str] = []
    home = Path(environ.get("GATEWAY_HOME") or folder)
    try:
        config = _model_for(tree, problems).model_validate(tree)
    except ValidationError as error:
        problems += [line for line, path in _explain(error, tree) if path not in values.unset]
        _check_the_rest(tree, error, home, problems, odd)
    if config is not None:
        problems += check_together(config)
        config = anchored(config, home)
        problems += _check_pem_files(config)
    problems += [line for line, path in check_agents(tree) if path not in values.unset]
    problems += [line for line, _ in check_stores(tree)]
    problems += [line for line in _check_names(tree) if line.partition(": ")[0] not in values.unset]
    if problems or config is None:
        odd += warnings(config, home) if config is not None else ()
        bad = {line.partition(": ")[0] for line in problems} | values.unset
        odd = [clean(line) for line in odd if line.partition(": ")[0] not in bad]
        raise ConfigError(list(dict.fromkeys(clean(problem) for problem in problems)), odd)
    return config


def _check_the_rest(
    tree: dict[str, Any], error: ValidationError, home: Path, problems: list[str], odd: list[str]
) -> None:
    """Add the results of `check_together` and `warnings` for the configuration without the sections
    and agents that do not parse."""
    bad = {item["loc"][:2] if item["loc"][:1] == ("agents",) else item["loc"][:1]
           for item in error.errors(include_url=False, include_input=False)}  # fmt: skip
    kept: dict[str, Any] = {name: part for name, part in tree.items() if (name,) not in bad}
    agents = kept.pop("agents", None)
    agents = agents if isinstance(agents, dict) and ("agents",) not in bad else {}
    good = {name: agent for name, agent in agents.items() if ("agents", name) not in bad}
    kept["agents"] = good or {"none": {"platform": "openai"}}
    try:
        config = Config.model_validate(kept)
    except ValidationError:
        return
    # Lines about a section that was left out are about its defaults.
    skipped = tuple(f"{loc[0]}." for loc in bad if len(loc) == 1)
    problems += [line for line in check_together(config) if not line.startswith(skipped)]
    config = anchored(config, home)
    problems += _check_pem_files(config)
    skipped += () if good else ("demo: ", "agents.none.")
    odd += [line for line in warnings(config, home) if not line.startswith(skipped)]


def _check_pem_files(config: Config) -> Iterator[str]:
    for name, agent in config.agents.items():
        for member, words in file_problems(agent):
            yield f"agents.{name}.{member}: {words}"


def anchored(config: Config, folder: Path) -> Config:
    """The configuration with its relative paths joined to `folder`."""
    changes: dict[str, Any] = {}
    if config.sqlite_file:
        changes["database"] = Secret(f"sqlite:///{folder / config.sqlite_file}")
    if config.storage.folder:
        url = f"file:{folder / config.storage.folder}"
        changes["storage"] = config.storage.model_copy(update={"url": url})
    spool = str(folder / config.record.spool)
    changes["record"] = config.record.model_copy(update={"spool": spool})
    if tls := config.server.tls:
        files = {"cert": str(folder / tls.cert), "key": str(folder / tls.key)}
        changes["server"] = config.server.model_copy(update={"tls": tls.model_copy(update=files)})
    changes["agents"] = {name: _anchored(agent, folder) for name, agent in config.agents.items()}
    return config.model_copy(update=changes)


def _anchored(agent: Agent, folder: Path) -> Agent:
    files = {member: getattr(agent, member) for member in ("ca", "cert", "key")}
    paths = {member: str(folder / path) for member, path in files.items() if path}
    return agent.model_copy(update=paths) if paths else agent


def check_together(config: Config) -> Iterator[str]:
    """Conflicts between sections that are each valid alone."""
    yield from _check_access(config)
    yield from _check_files(config)
    if not config.demo:
        for name, agent in config.agents.items():
            if agent.is_demo:
                yield (
                    f"agents.{name}.base_url: is demo:, which `demo: false` refuses; name the"
                    " platform's address"
                )


def _fill_in(tree: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Take options that the file does not set from variables with conventional names."""
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
        _fill_in_storage(storage, environ)


def _fill_in_storage(storage: dict[str, Any], environ: Mapping[str, str]) -> None:
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


def _fill_in_proxies(tree: dict[str, Any], environ: Mapping[str, str], problems: list[str]) -> None:
    """Read the variables as curl, Go and Python do: lower case first, ALL_PROXY last."""
    outgoing = tree.setdefault("outgoing", {})
    if not isinstance(outgoing, dict):
        return
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


class _Loader(yaml.SafeLoader):
    """SafeLoader that keeps nearly all scalars as strings.

    Names, ids and keys are often digits: `0123`, `12:34`, `1.10` and `yes` stay strings, and so
    does every key of a mapping. Only plain whole numbers, true, false and null are converted.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML reads this attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        return {
            str(key.value) if isinstance(key, yaml.ScalarNode) else self.construct_object(key): (
                self.construct_object(value, deep=True)
            )
            for key, value in node.value
        }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:0|-?[1-9][0-9]{0,17})$"), list("-0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def _read_yaml(text: str, problems: list[str]) -> Any:
    """The tree without the sections that are invalid YAML, which are reported in `problems`."""
    found: list[str] = []
    tree = _compose(text, found)
    if tree is None and found:
        parts = {name: _compose(part, found) for name, part in _sections(text)}
        # A complete section is a mapping with its name as the key.
        tree = {
            name: part[name]
            for name, part in parts.items()
            if isinstance(part, dict) and name in part
        } or None
    # The whole file and its section may report the same fault differently; keep one per line.
    problems += {line.partition(":")[0] if line.startswith("line ") else line: line
                 for line in reversed(found)}.values()  # fmt: skip
    return tree


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each section that begins at the left margin, padded with empty lines so that
    line numbers are those of the file."""
    lines = text.splitlines()
    begins = [i for i, line in enumerate(lines) if re.match(r"[A-Za-z_]+\s*:", line)]
    for begin, end in pairwise([*begins, len(lines)]):
        part = "\n" * begin + "\n".join(lines[begin:end]) + "\n"
        yield lines[begin].partition(":")[0].strip(), part


def _compose(text: str, problems: list[str]) -> Any:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        problems += _given_twice(root, "")
        return loader.construct_document(root) if root else None
    except ComposerError as error:
        if "undefined alias" not in str(error.problem):  # another section may define it
            problems.append(_yaml_problem(error))
    except yaml.MarkedYAMLError as error:
        problems.append(_yaml_problem(error))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        problems.append("the file is not valid YAML")
    finally:
        loader.dispose()
    return None


def _yaml_problem(error: yaml.MarkedYAMLError) -> str:
    line = error.problem_mark.line + 1 if error.problem_mark else "?"
    begun = error.context_mark.line + 1 if error.context_mark else line
    problem = error.problem or ""
    advice = next((words for seen, words in _YAML_ADVICE if re.search(seen, problem)), "")
    # The parser quotes what it cannot read, which may be an unquoted secret.
    # Short text, or text in angle brackets, is YAML's own.
    words = re.sub(r"'(?!<)[^']{3,}'|\"[^\"]{3,}\"", "…", problem)
    told = advice.format(begun=begun) or f"{words}; put odd values in quotes"
    return f"line {line}: not valid YAML: {told}"


# PyYAML's message, and advice. `begun` is the line of the enclosing bracket, quote or mapping.
_YAML_ADVICE = (
    (r"'\\t'", "a tab stands there; indent with spaces"),
    (
        r"expected ',' or '[}\]]'",
        "the bracket that opens on line {begun} is not closed, or a comma is missing",
    ),
    (
        r"<block end>, but found '(?:<block |-)|no such indent",
        "the indentation does not fit the lines before; what belongs together (from line {begun})"
        " begins in the same column",
    ),
    (
        r"<block end>, but found '<scalar>",
        "text follows a closing quote; put the whole value in quotes, or check the indentation",
    ),
    (
        "mapping values are not allowed",
        "a value with ': ' in it needs quotes; if there is none, check the indentation",
    ),
    ("could not find expected ':'", "a name without ':' behind it begins on line {begun}"),
    ("unexpected end of stream", "the quote that opens on line {begun} is not closed"),
    ("unknown escape", "a \\ in double quotes is special; use single quotes"),
)


def _given_twice(node: yaml.Node | None, path: str) -> Iterator[str]:
    """Keys that occur twice in one mapping; YAML parsers silently keep the last one."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _given_twice(item, f"{path}[{i}]")
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = f"{path}.{key.value}".lstrip(".")
            if str(key.value) in seen:
                yield f"{here}: given twice (again on line {key.start_mark.line + 1})"
            seen.add(str(key.value))
            yield from _given_twice(value, here)


# `$${` is a literal `${`. LiteLLM's `os.environ/NAME` is accepted too, so that its users can paste
# their lines.
_VARIABLE = re.compile(
    r"\$\$\{|\$\{file:(?P<file>[^}\-][^}]*)\}"
    r"|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{(?P<odd>[^}]*)\}?"
)


class _Values:
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
        return _VARIABLE.sub(lambda match: self._value(match, path), node)

    def _value(self, match: re.Match[str], path: str) -> str:
        if match[0] == "$${":
            return "${"
        if match["odd"] is not None:
            return self._nothing(
                path,
                "has a ${ that is no variable; write ${NAME}, ${NAME:-default} or ${file:path}, or"
                " $${ for the two characters themselves",
            )
        if match["file"]:
            try:
                return secret_in(self._folder, match["file"])
            except ValueError as error:
                return self._nothing(path, str(error))
        name = match["name"]
        value = self._environ.get(name) or match["default"]
        if value is None:
            return self._nothing(
                path,
                f"the environment variable {name} is not set (set it, for instance in"
                f" {self._folder / '.env'}, or give a default: ${{{name}:-…}})",
            )
        return value

    def _nothing(self, path: str, problem: str) -> str:
        self._problems.append(f"{path}: {problem}")
        self.unset.add(path)
        return ""


def _explain(error: ValidationError, tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each problem as (line, path), in plain English and with the nearest known name. pydantic
    reports one error per type of a union; together they are one problem."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_input=False):
        path = _path(item["loc"], tree)
        kind, message = item["type"], item["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            name = str(item["loc"][-1])
            message = "unknown key" + _nearest(name, _known_keys(item["loc"], tree))
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            path, message = _explain_platform(path, _at(tree, item["loc"]) or {})
        else:
            message = _WORDS.get(kind, message.replace("Input should be ", "must be "))
        found.setdefault(path, []).append(message[:1].lower() + message[1:])
    for path, words in found.items():
        first, *more = dict.fromkeys(words)
        others = "".join(f", or {each.removeprefix('must be ')}" for each in more)
        yield f"{path}: {first}{others}", path


# pydantic's messages name Python types; the file is YAML.
_WORDS = {
    "missing": "is missing",
    "string_pattern_mismatch": "contains characters that are not allowed here",
    "too_short": "must have at least one entry",
    "dict_type": "must be a mapping (lines of `name: value`)",
    "model_type": "must be a mapping (lines of `name: value`)",
    "model_attributes_type": "must be a mapping (lines of `name: value`)",
    "list_type": "must be a list",
    "string_type": "must be a text; put it in quotes",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
}


def _explain_platform(path: str, agent: dict[str, Any]) -> tuple[str, str]:
    """(path, message) for an agent whose platform is unknown, perhaps due to a typo in the key."""
    known = kinds.known()
    for key in agent:
        if "platform" not in agent and difflib.get_close_matches(key, ["platform"], 1, 0.7):
            return f"{path}.{key}", "unknown key; did you mean platform?"
    near = _nearest(str(agent.get("platform")), known)
    return f"{path}.platform", f"must be one of {', '.join(known)}{near}"


def _path(loc: Iterable[Any], tree: Any) -> str:
    """`agents.dify.timeouts.idle` for pydantic's loc, without the tags of unions."""
    out, node = "", tree
    for step in loc:
        if isinstance(step, int):
            out += f"[{step}]"
            node = node[step] if isinstance(node, list) and step < len(node) else None
            continue
        known = isinstance(node, dict) and step in node
        if not known and (step in kinds.known() or step in _UNION_STEPS or "[" in step):
            continue
        out += f".{step}"
        node = node.get(step) if isinstance(node, dict) else None
    return out.lstrip(".") or "the file"


_UNION_STEPS = {"str", "bool", "int", "float"}


def _at(tree: Any, loc: Iterable[Any]) -> Any:
    for step in loc:
        if isinstance(tree, dict):
            tree = tree.get(step, tree)
        elif isinstance(tree, list) and isinstance(step, int):
            tree = tree[step]
    return tree if isinstance(tree, dict) else None


def _model_for(tree: dict[str, Any], problems: list[str]) -> type[Config]:
    """`Config` with the options of each kind that the file names. Removes the agents whose kind has
    a broken package."""
    usable = []
    for name in kinds.used_in(tree):
        try:
            kinds.find(name)
            usable.append(name)
        except kinds.BadKind as error:
            agents = tree["agents"]
            for agent in [key for key in agents if agents[key].get("platform") == name]:
                problems.append(f"agents.{agent}.platform: the installed platform {name!r} {error}")
                del agents[agent]
    return kinds.config_model(tuple(usable))


def _known_keys(loc: tuple[Any, ...], tree: dict[str, Any]) -> list[str]:
    """The names that are valid where an unknown key was found."""
    model: Any = Config
    for step in loc[:-1]:
        kind = kinds.find(step) if isinstance(step, str) and model is not Config else None
        if kind is not None:
            model = kind.options
        elif model is Config and step == "routes":
            model = RouteTarget
        elif (
            isinstance(step, str) and hasattr(model, "model_fields") and step in model.model_fields
        ):
            model = _model_of(model.model_fields[step].annotation) or model
    return list(getattr(model, "model_fields", {}))


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_of(arg))), None)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _check_names(tree: dict[str, Any]) -> Iterator[str]:
    """Names that clash or do not exist, from the raw tree, so that they are reported with the
    rest."""
    agents, routes = tree.get("agents"), tree.get("routes")
    agents = agents if isinstance(agents, dict) else {}
    routes = routes if isinstance(routes, dict) else {}
    taken: dict[str, str] = {}
    for section, names in (("agents", agents), ("routes", routes)):
        for name in names:
            path = f"{section}.{name}"
            if (first := taken.setdefault(name.lower(), path)) != path:
                yield f"{path}: the name is already used by {first} (case does not count)"
    for route, targets in routes.items():
        for i, target in enumerate(targets if isinstance(targets, list) else []):
            weighted = isinstance(target, dict)
            name = target.get("agent") if weighted else target
            path = f"routes.{route}[{i}]" + (".agent" if weighted else "")
            if isinstance(name, str) and name not in agents:
                yield f"{path}: there is no agent {name!r}{_nearest(name, agents)}"
    for name, agent in agents.items():
        if isinstance(agent, dict) and (title := _lacks_simulator(agent)):
            yield f"agents.{name}.base_url: is missing; the gateway has no simulator of {title}"
        if isinstance(agent, dict) and _lacks_key(agent):
            yield f"agents.{name}.api_key: is empty; the platform at base_url will ask for one"
    yield from _check_keys(tree, taken)


def _check_keys(tree: dict[str, Any], known: Mapping[str, str]) -> Iterator[str]:
    """Check the names of static keys, and the agents they are limited to; `known` has the names of
    agents and routes in lower case."""
    keys = (tree.get("auth") or {}).get("keys") if isinstance(tree.get("auth"), dict) else None
    seen: set[str] = set()
    for i, key in enumerate(keys if isinstance(keys, list) else []):
        name = key.get("name") if isinstance(key, dict) else None
        if isinstance(name, str) and name in seen:
            yield f"auth.keys[{i}].name: the name {name!r} is already used"
        seen.add(str(name))
        allowed = key.get("agents") if isinstance(key, dict) else None
        for j, agent in enumerate(allowed if isinstance(allowed, list) else []):
            if isinstance(agent, str) and agent.lower() not in known:
                near = _nearest(agent, known)
                yield f"auth.keys[{i}].agents[{j}]: there is no agent or route {agent!r}{near}"


def _lacks_simulator(agent: dict[str, Any]) -> str:
    """The title of the agent's kind if it needs a simulator but the kind has none, else ""."""
    kind = kinds.find(str(agent.get("platform")))
    is_demo = agent.get("base_url", DEMO) == DEMO
    return kind.title if kind and is_demo and not kind.has_demo else ""


def _lacks_key(agent: dict[str, Any]) -> bool:
    """Whether a required key is missing. Self-hosted model servers often have no key; the platforms
    always require one."""
    kind = kinds.find(str(agent.get("platform")))
    wanted = kind.options.credentials if kind else Agent.credentials
    has_one = not wanted or any(agent.get(name) for name in wanted)
    return agent.get("base_url", DEMO) != DEMO and not has_one


def _check_files(config: Config) -> Iterator[str]:
    s3 = config.storage.s3
    if bool(s3.access_key) != bool(s3.secret_key):
        yield "storage.s3: give access_key and secret_key together (S3_ACCESS_KEY, S3_SECRET_KEY)"
    if (s3.endpoint or s3.access_key) and not (config.storage.url or s3.bucket):
        yield "storage.s3.bucket: is missing; name it (S3_BUCKET), or set storage.url"
    for name, agent in config.agents.items():
        if agent.upload == "platform" and not agent.keeps_files:
            yield f"agents.{name}.upload: this platform keeps no files; use gateway"


def _check_access(config: Config) -> Iterator[str]:
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
