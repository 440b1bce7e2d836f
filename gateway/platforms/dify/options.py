"""Dify's options in config.yaml."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from gateway.config.values import OptionalText
from gateway.platforms.audio import VoiceOptions
from gateway.secret import Secret


class DifyOptions(VoiceOptions):
    platform: Literal["dify"]
    mode: Literal["auto", "chat", "completion", "workflow"] = "auto"
    inputs: dict[str, Any] = Field({})
    input_variable: OptionalText = None
    output_variable: OptionalText = None

    @property
    def keeps_files(self) -> bool:
        return True


def key_problem(options: Mapping[str, Any]) -> str:
    key = options.get("api_key")
    key = key.reveal() if isinstance(key, Secret) else str(key or "")
    if key.startswith("dataset-"):
        return "is a key of a Dify knowledge base; an app's key begins with app-"
    return ""
