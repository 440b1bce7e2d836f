"""Coze: a chat with a bot or a workflow, through its API v3."""

from gateway.config.kinds import Kind
from gateway.platforms.coze.adapter import Coze
from gateway.platforms.coze.options import CozeOptions

_CHINA, _WORLD = "https://api.coze.cn", "https://api.coze.com"

KIND = Kind(
    name="coze",
    title="Coze",
    options=CozeOptions,
    adapter=Coze,
    environment=("COZE_BASE_URL", "COZE_API_TOKEN", "COZE_BOT_ID"),
    key_prefixes=("pat_", "sat_", "czs_", "czu_", "cztei_"),
    has_only_these_keys=True,
    page_paths=r"/(?:space|store|home)(?:/.*)?$",
    endpoints=r"/v3/chat$|/workflows/chat$|/workflow/stream_run$|/open_api/v2/chat$",
    pages={
        "coze.cn": _CHINA,
        "www.coze.cn": _CHINA,
        "code.coze.cn": _CHINA,
        "space.coze.cn": _CHINA,
        "coze.com": _WORLD,
        "www.coze.com": _WORLD,
        "space.coze.com": _WORLD,
    },
)
