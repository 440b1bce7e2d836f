"""Coze's options in config.yaml."""

from typing import ClassVar, Literal

from pydantic import model_validator

from gateway.config.models import Model
from gateway.config.values import OptionalText
from gateway.platforms.audio import VoiceOptions
from gateway.secret import Secret


class CozeOAuth(Model):
    """Credentials of a Coze OAuth app of the JWT type, in place of a token that expires."""

    app_id: str
    key_id: str
    private_key: Secret


class CozeOptions(VoiceOptions):
    platform: Literal["coze"]
    bot_id: OptionalText = None
    mode: Literal["chat", "workflow"] = "chat"
    workflow_id: OptionalText = None
    oauth: CozeOAuth | None = None
    credentials: ClassVar[tuple[str, ...]] = ("api_key", "oauth")

    @model_validator(mode="after")
    def _complete(self) -> "CozeOptions":
        if self.mode == "workflow" and not self.workflow_id:
            raise ValueError("workflow_id is needed when mode is workflow")
        if self.mode == "chat" and not self.bot_id and not self.is_demo:
            raise ValueError("bot_id is needed: the digits at the end of the bot's address in Coze")
        if self.oauth and self.api_key:
            raise ValueError("give api_key or oauth, not both")
        return self

    @property
    def keeps_files(self) -> bool:
        return True
