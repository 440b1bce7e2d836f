"""Zhipu (智谱): the GLM model API, 智谱清言 assistants (`glms`) and the platform's applications.

Source: docs.bigmodel.cn, its SDKs, and public clients for the assistants. The model API is nearly
OpenAI's; the assistants repeat the whole text in every frame; applications have their own format.
"""

import time
from collections.abc import Callable

from gateway.platforms.base import Platform
from gateway.platforms.zhipu.application import Application
from gateway.platforms.zhipu.glms import Glms
from gateway.platforms.zhipu.models import Models
from gateway.platforms.zhipu.options import ZhipuOptions


def zhipu(
    name: str, agent: ZhipuOptions, url: str, clock: Callable[[], float] = time.time
) -> Platform:
    """The product that the option `api` selects."""
    if agent.api == "glms":
        return Glms(agent, url, clock)
    if agent.api == "application":
        return Application(agent, url)
    return Models(agent, url)
