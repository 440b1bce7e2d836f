"""RAGFlow: a chat assistant or an agent, through its own API."""

from gateway.config.kinds import Kind
from gateway.platforms.ragflow.adapter import RAGFlow
from gateway.platforms.ragflow.options import ENDPOINTS, RAGFlowOptions

KIND = Kind(
    name="ragflow",
    title="RAGFlow",
    options=RAGFlowOptions,
    adapter=RAGFlow,
    environment=("RAGFLOW_BASE_URL", "RAGFLOW_API_KEY", "RAGFLOW_CHAT_ID"),
    key_prefixes=("ragflow-",),
    api_path="/api/v1",
    page_paths=r"/(?:(?:next-)?chats?|agents?|datasets?|knowledge|login|user-setting)(?:/.*)?$",
    endpoints=ENDPOINTS,
)
