"""RAGFlow's options in config.yaml."""

from typing import Any, Literal

from pydantic import Field, model_validator

from gateway.config.models import Agent
from gateway.config.values import OptionalText

# Addresses that people copy from RAGFlow's reference; the adapter removes the path.
ENDPOINTS = (
    r"(?:/api/v1)?/(?:openai/[^/]+/chat|agents/chat|chats(?:_openai)?/[^/]+(?:/chat|/sessions/[^/]+)?"
    r"|agents(?:_openai)?/[^/]+(?:/chat)?|chat)/completions$"
)


class RAGFlowOptions(Agent):
    """`chat_id` names a chat assistant, `agent_id` an agent. `frames`: whether each event contains
    the new text (`delta`, from 0.24 on) or the whole text so far (`cumulative`); `auto` detects
    it."""

    platform: Literal["ragflow"]
    chat_id: OptionalText = None
    agent_id: OptionalText = None
    variables: dict[str, Any] = Field({})
    frames: Literal["auto", "delta", "cumulative"] = "auto"

    @model_validator(mode="after")
    def _one_bot(self) -> "RAGFlowOptions":
        if self.chat_id and self.agent_id:
            raise ValueError("give chat_id or agent_id, not both")
        if not (self.chat_id or self.agent_id or self.is_demo):
            raise ValueError("chat_id or agent_id is needed: the id in the bot's address")
        return self
