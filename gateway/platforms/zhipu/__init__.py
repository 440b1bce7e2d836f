"""智谱清言 (Zhipu): models, glms and applications."""

from gateway.config.kinds import Kind
from gateway.platforms.zhipu.adapter import zhipu
from gateway.platforms.zhipu.options import ZhipuOptions, key_problem

_API = "https://open.bigmodel.cn"

KIND = Kind(
    name="zhipu",
    title="智谱清言 (Zhipu)",
    options=ZhipuOptions,
    adapter=zhipu,
    environment=("ZHIPU_BASE_URL", "ZHIPU_API_KEY"),
    key_shapes=(r"\b[0-9a-f]{16,32}\.[a-z0-9]{8,}",),
    page_paths=r"/(?:main|console|usercenter|dev)(?:/.*)?$",
    endpoints=r"/chat/completions$|/application/invoke$|/assistant-api/v1/stream$",
    pages={"bigmodel.cn": _API, "www.bigmodel.cn": _API, "docs.bigmodel.cn": _API},
    key_problem=key_problem,
)
