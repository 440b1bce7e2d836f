"""Zhipu's options in config.yaml."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import model_validator

from gateway.config.values import OptionalText
from gateway.platforms.audio import VoiceOptions
from gateway.secret import Secret


class ZhipuOptions(VoiceOptions):
    platform: Literal["zhipu"]
    api: Literal["models", "glms", "application"] = "models"
    model: OptionalText = None
    assistant_id: OptionalText = None
    app_id: OptionalText = None
    speech_model: str = "glm-tts"
    transcription_model: str = "glm-asr-2512"

    @model_validator(mode="after")
    def _complete(self) -> "ZhipuOptions":
        if self.is_demo:
            return self
        if self.api == "glms" and not self.assistant_id:
            raise ValueError("assistant_id is needed when api is glms")
        if self.api == "application" and not self.app_id:
            raise ValueError("app_id is needed when api is application")
        return self

    @property
    def keeps_files(self) -> bool:
        return self.api == "glms"

    def warnings(self) -> Iterator[str]:
        key = self.api_key.reveal()
        if key and "." not in key:
            yield "api_key: has no dot; a key of Zhipu is id.secret"


_HOSTS = ("bigmodel.cn", "chatglm.cn", "z.ai")


def key_problem(options: Mapping[str, Any]) -> str:
    """Why the key cannot work, or "". Checks keys of Zhipu itself, not of a proxy with its own
    keys, and keys of assistants, which the adapter splits at the dot."""
    key = options.get("api_key")
    key = key.reveal() if isinstance(key, Secret) else str(key or "")
    host = urlsplit(str(options.get("base_url", ""))).hostname or ""
    if "." not in key and (options.get("api") == "glms" or host.endswith(_HOSTS)):
        return "has no dot; a key of Zhipu is id.secret, copy the whole of it"
    return ""
