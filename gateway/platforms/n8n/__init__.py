"""n8n: a workflow that a Chat Trigger or a Webhook node starts."""

from gateway.config.kinds import Kind
from gateway.platforms.n8n.adapter import N8n
from gateway.platforms.n8n.options import N8nOptions

KIND = Kind(
    name="n8n",
    title="n8n",
    options=N8nOptions,
    adapter=N8n,
    environment=("N8N_WEBHOOK_URL", "N8N_API_KEY"),
    page_paths=r"/(?:workflow|workflows|home|projects|signin|setup)(?:/.*)?$",
    api_path="/webhook/<id>/chat",
)
