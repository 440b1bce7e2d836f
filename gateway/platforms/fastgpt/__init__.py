"""FastGPT: a chat with an app, through its OpenAI-like API."""

from gateway.config.kinds import Kind
from gateway.platforms.fastgpt.adapter import FastGPT
from gateway.platforms.fastgpt.options import FastGPTOptions

KIND = Kind(
    name="fastgpt",
    title="FastGPT",
    options=FastGPTOptions,
    adapter=FastGPT,
    environment=("FASTGPT_BASE_URL", "FASTGPT_API_KEY"),
    key_prefixes=("fastgpt-",),
    api_path="/api",
    page_paths=r"/(?:chat|chat/share|app/(?:list|detail)|apps|login|dataset/(?:list|detail)"
    r"|(?:dashboard|account)(?:/.*)?)$",
    endpoints=r"/v[12]/chat/completions$",
)
