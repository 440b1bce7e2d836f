"""FastGPT's options in config.yaml."""

from typing import Any, Literal

from pydantic import Field

from gateway.config.values import OptionalText
from gateway.platforms.audio import VoiceOptions


class FastGPTOptions(VoiceOptions):
    platform: Literal["fastgpt"]
    app_id: OptionalText = None
    variables: dict[str, Any] = Field({})
