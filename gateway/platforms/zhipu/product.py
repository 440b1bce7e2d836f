"""The base of Zhipu's three products."""

from gateway.language.sentences import say
from gateway.platforms.base import (
    BasePlatform,
    Decoder,
    Step,
    json_headers,
)
from gateway.platforms.zhipu.failures import explain
from gateway.platforms.zhipu.options import ZhipuOptions
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest
from gateway.protocol.usage import as_count


class Product(BasePlatform):
    """The code that Zhipu's three products share."""

    kind = "zhipu"
    no_speech: str = say("of Zhipu only agents with api: models can")
    no_transcription = no_speech

    def __init__(self, agent: ZhipuOptions) -> None:
        self._agent = agent
        self.token = agent.api_key.reveal()
        self._headers = json_headers(self.token, agent.headers)

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        raise explain(reply)

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        return None  # none of the three has a stop call

    def describe(self, reply: UpstreamReply) -> str:
        if reply.status != 200 or as_count(reply.object().get("code")) not in (0, 200):
            raise explain(reply)
        return say("the key is accepted")
