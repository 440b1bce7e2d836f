"""Kinds of upstreams: everything the gateway knows about a platform, found by its name.

A kind is a package with a `KIND`: either in `gateway.platforms`, or in another distribution that
declares it in the entry point group `ai_gateway.platforms`:

    [project.entry-points."ai_gateway.platforms"]
    acme = "ai_gateway_acme"

The name of the entry point is the name of the kind. Such a package is imported only if config.yaml
has an agent of that kind.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Annotated, Any, Union

from pydantic import Discriminator, Field, Tag, create_model

from gateway.config.models import Agent, Config, Name
from gateway.errors import add_key_shapes

GROUP = "ai_gateway.platforms"
_BUILT_IN = "gateway.platforms"
_NEVER = "(?!)"


class BadKind(Exception):
    """A package installed as a platform has no usable `KIND`. The message says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of upstream.

    `options` is the model of its part of config.yaml, with a member `platform: Literal[<name>]`.
    `adapter` creates a `gateway.platforms.base.Platform` from an agent's name, options and URL.

    The rest supports hints and checks. `environment` lists the variables that connect the shipped
    agent to a real platform. `key_shapes` are regular expressions of its keys; matches are redacted
    from logs and errors. `key_prefixes` are the beginnings of its keys: of every key if it
    `has_only_these_keys`. `query` is a regular expression of the query that `base_url` may have.
    `pages` maps hosts that serve pages for people to the address of the API. `page_paths` and
    `endpoints` are regular expressions of paths on self-hosted platforms: of pages, whose API is at
    `api_path`, and of endpoints that the adapter removes from `base_url`. `key_problem` takes the
    raw options and returns why their key cannot work, or "".
    """

    name: str
    title: str
    options: type[Agent]
    adapter: Callable[[str, Any, str], Any]
    environment: tuple[str, ...] = ()
    key_shapes: tuple[str, ...] = ()
    key_prefixes: tuple[str, ...] = ()
    has_only_these_keys: bool = False
    query: str = _NEVER
    pages: Mapping[str, str] = field(default_factory=dict)
    page_paths: str = _NEVER
    endpoints: str = _NEVER
    api_path: str = ""
    key_problem: Callable[[Mapping[str, Any]], str] = lambda options: ""

    @property
    def has_demo(self) -> bool:
        """Whether the gateway has a simulator of this platform."""
        return find_spec(f"gateway.demo.{self.name}") is not None


@cache
def built_in() -> Mapping[str, Kind]:
    """The gateway's own kinds, by name."""
    package = import_module(_BUILT_IN)
    found: dict[str, Kind] = {}
    for module in iter_modules(package.__path__):
        if module.ispkg:
            kind = _kind_in(import_module(f"{_BUILT_IN}.{module.name}"), module.name)
            found[kind.name] = kind
    return found


def installed() -> Mapping[str, EntryPoint]:
    """The entry points of other distributions, by name; this imports none of them."""
    return {point.name: point for point in entry_points(group=GROUP)}


def find(name: str) -> Kind | None:
    """The kind of that name, or None. Imports it if another distribution has it. Raises BadKind."""
    if name in built_in():
        return built_in()[name]
    point = installed().get(name)
    return _plugin(point) if point else None


@cache
def _plugin(point: EntryPoint) -> Kind:
    try:
        module = point.load()
    except Exception as error:  # third-party code may raise anything; report it as a bad kind
        raise BadKind(f"cannot be imported: {type(error).__name__}: {error}") from error
    return _kind_in(module, point.name)


def _kind_in(module: Any, name: str) -> Kind:
    kind = module if isinstance(module, Kind) else getattr(module, "KIND", None)
    if not isinstance(kind, Kind) or kind.name != name:
        raise BadKind(f"has no KIND with the name {name!r}")
    try:
        add_key_shapes(kind.key_shapes, kind.key_prefixes)
    except re.error as error:
        raise BadKind(f"has a key shape that is no regular expression: {error}") from error
    return kind


def known() -> list[str]:
    """The names that `platform` may hold."""
    return [*built_in(), *(name for name in installed() if name not in built_in())]


def used_in(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the installed, not built-in kinds that the raw configuration uses."""
    agents = tree.get("agents")
    agents = agents.values() if isinstance(agents, dict) else ()
    names = {str(agent.get("platform")) for agent in agents if isinstance(agent, dict)}
    names -= built_in().keys()
    # Reading every distribution's entry points takes milliseconds, which most starts are spared.
    return tuple(sorted(names & installed().keys())) if names else ()


@cache
def config_model(plugins: tuple[str, ...] = ()) -> type[Config]:
    """`Config` whose agents have the options of their kind: the built-in kinds and `plugins`.

    Raises BadKind.
    """
    options = [kind.options for kind in _all(plugins)]
    names = [kind.name for kind in _all(plugins)]
    tagged = tuple(Annotated[model, Tag(name)] for model, name in zip(options, names, strict=True))
    agent: Any = Annotated[Union.__getitem__(tagged), Discriminator("platform")]
    agents = Annotated[dict[Name, agent], Field(min_length=1)]
    model: type[Config] = create_model("Config", __base__=Config, agents=(agents, ...))
    model.__doc__ = Config.__doc__
    return model


def _all(plugins: Iterable[str]) -> list[Kind]:
    return [*built_in().values(), *(kind for name in plugins if (kind := find(name)))]
