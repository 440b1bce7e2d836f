"""FastGPT's options in config.yaml."""

from typing import Any, Literal

from pydantic import Field

from gateway.config.models import Agent
from gateway.config.values import OptionalText


class FastGPTOptions(Agent):
    platform: Literal["fastgpt"]
    app_id: OptionalText = None
    variables: dict[str, Any] = Field({})
