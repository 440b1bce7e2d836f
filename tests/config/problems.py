"""The problems that a config.yaml has."""

import pytest

from gateway.config.load import ConfigError, parse

AGENT = "agents: {a: {platform: dify}}\n"


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ)
    return caught.value.problems
