"""One folder per platform: requests described, answers decoded; and the registry."""

from gateway.platforms.base import Platform
from gateway.platforms.coze.adapter import Coze
from gateway.platforms.dify.adapter import Dify
from gateway.platforms.fastgpt.adapter import FastGPT
from gateway.platforms.openai_compatible import OpenAICompatible
from gateway.platforms.zhipu.adapter import Zhipu

__all__ = ["PLATFORMS", "Platform"]

PLATFORMS = {
    "fastgpt": FastGPT,
    "dify": Dify,
    "coze": Coze,
    "zhipu": Zhipu,
    "openai": OpenAICompatible,
}
