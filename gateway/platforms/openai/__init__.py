"""Any upstream with OpenAI's chat completions API."""

from gateway.config.kinds import Kind
from gateway.platforms.openai_compatible import OpenAICompatible, OpenAIOptions

KIND = Kind(
    name="openai",
    title="OpenAI-compatible",
    options=OpenAIOptions,
    adapter=OpenAICompatible,
    environment=("OPENAI_BASE_URL", "OPENAI_API_KEY"),
    key_prefixes=("sk-",),
    api_path="/v1",
    query=r"api-version=[\w.\-]{1,40}",  # Azure's
    page_paths=r"/(?:playground|c/[\w-]{20,}|chat/share)$",
    endpoints=r"/chat/completions$|/models$",
    pages={
        "platform.openai.com": "https://api.openai.com/v1",
        "chat.openai.com": "https://api.openai.com/v1",
        "chatgpt.com": "https://api.openai.com/v1",
        "platform.deepseek.com": "https://api.deepseek.com",
        "chat.deepseek.com": "https://api.deepseek.com",
        "platform.moonshot.cn": "https://api.moonshot.cn/v1",
        "kimi.moonshot.cn": "https://api.moonshot.cn/v1",
        "cloud.siliconflow.cn": "https://api.siliconflow.cn/v1",
        "bailian.console.aliyun.com": "https://dashscope.aliyuncs.com/compatible-mode/v1",
        "console.volcengine.com": "https://ark.cn-beijing.volces.com/api/v3",
        "console.anthropic.com": "https://api.anthropic.com/v1",
    },
)
