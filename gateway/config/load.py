"""Load config.yaml: substitute variables, check everything, report all problems together."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.config import kinds
from gateway.config.check import check_agents, check_stores, warnings
from gateway.config.conflicts import check_names, check_together
from gateway.config.environment import with_dotenv
from gateway.config.models import Agent, Config
from gateway.config.outgoing import file_problems
from gateway.config.read_yaml import read_yaml
from gateway.config.variables import VARIABLE, Variables, add_options, override
from gateway.config.wording import problems_of
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
    named = (match["file"] for match in VARIABLE.finditer(text) if match["file"])
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
    tree, is_whole = read_yaml(text, problems)
    if not isinstance(tree, dict):
        raise ConfigError(problems or ["the file must be a mapping with `agents:` in it"])
    variables = Variables(environ, folder, problems)
    tree = variables.fill(tree)
    add_options(tree, variables)
    override(tree, variables, overrides)
    if not is_whole and "agents" not in tree:
        variables.unset.add("agents")  # it is there, but cannot be read
    config: Config | None = None
    odd: list[str] = []
    home = Path(environ.get("GATEWAY_HOME") or folder)
    try:
        config = _model_for(tree, problems).model_validate(tree)
    except ValidationError as error:
        problems += [line for line, path in problems_of(error, tree) if path not in variables.unset]
        _check_the_rest(tree, error, home, problems, odd)
    if config is not None:
        problems += check_together(config)
        config = anchored(config, home)
        problems += _check_pem_files(config)
    problems += [line for line, path in check_agents(tree) if path not in variables.unset]
    problems += [line for line, _ in check_stores(tree)]
    if "agents" not in variables.unset:
        problems += [
            line for line in check_names(tree) if line.partition(": ")[0] not in variables.unset
        ]
    if problems or config is None:
        odd += warnings(config, home) if config is not None else ()
        bad = {line.partition(": ")[0] for line in problems} | variables.unset
        odd = [clean(line) for line in odd if line.partition(": ")[0] not in bad]
        named = [variables.named(clean(problem)) for problem in problems]
        raise ConfigError(list(dict.fromkeys(named)), odd)
    return config


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
        for member, problem in file_problems(agent):
            yield f"agents.{name}.{member}: {problem}"


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
