"""Zhipu (智谱): the GLM model API, 智谱清言 assistants (`glms`) and the platform's applications.

Source: docs.bigmodel.cn, its SDKs, and public clients for the assistants. The model API is nearly
OpenAI's; the assistants repeat the whole text in every frame; applications have their own format.
"""

import time
from collections.abc import Callable

from gateway.platforms.zhipu.application import Application
from gateway.platforms.zhipu.glms import Glms
from gateway.platforms.zhipu.models import Models
from gateway.platforms.zhipu.options import ZhipuOptions
from gateway.platforms.zhipu.product import Product


def zhipu(
    name: str, agent: ZhipuOptions, url: str, clock: Callable[[], float] = time.time
) -> Product:
    """The product that the option `api` selects."""
    if agent.api == "glms":
        return Glms(agent, url, clock)
    return Application(agent, url) if agent.api == "application" else Models(agent, url)
