"""n8n's options in config.yaml."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from gateway.config.models import Agent
from gateway.config.values import OptionalText


class N8nOptions(Agent):
    """`base_url` is the production URL of the Chat Trigger or the Webhook node.

    `api_key` is sent as a bearer token, or as the password of `username` (Basic). For a node with
    header auth, put its header in `headers`. `session_member` and `input_member` are the members in
    which the workflow reads the conversation and the question. `nodes` are the names of the nodes
    whose text is the answer; if empty, all nodes.
    """

    platform: Literal["n8n"]
    username: OptionalText = None
    session_member: str = "sessionId"
    input_member: str = "chatInput"
    nodes: list[str] = Field([])
    credentials: ClassVar[tuple[str, ...]] = ()  # a trigger may need no credentials

    @model_validator(mode="after")
    def _complete(self) -> "N8nOptions":
        if self.username and not self.api_key:
            raise ValueError("api_key is needed with username: it is the password")
        return self

    def warnings(self) -> Iterator[str]:
        if "/webhook-test/" in self.base_url:
            yield (
                "base_url: is the test address, which answers one call after a click in the"
                " editor; use the production URL (/webhook/) of an active workflow"
            )
