"""Dify: an app of any kind, through its service API."""

from gateway.config.kinds import Kind
from gateway.platforms.dify.adapter import Dify
from gateway.platforms.dify.options import DifyOptions, key_problem

KIND = Kind(
    name="dify",
    title="Dify",
    options=DifyOptions,
    adapter=Dify,
    environment=("DIFY_BASE_URL", "DIFY_API_KEY"),
    key_prefixes=("app-", "dataset-"),
    has_only_these_keys=True,
    key_problem=key_problem,
    api_path="/v1",
    page_paths=r"/(?:apps|signin|install|datasets|explore/.*|app/[\w-]{8,}(?:/.*)?"
    r"|(?:chat|chatbot|workflow|completion)/\w{8,})$",
    endpoints=r"/chat-messages$|/completion-messages$|/workflows/run$",
    pages={
        "cloud.dify.ai": "https://api.dify.ai/v1",
        "dify.ai": "https://api.dify.ai/v1",
        "www.dify.ai": "https://api.dify.ai/v1",
        "udify.app": "https://api.dify.ai/v1",
    },
)
