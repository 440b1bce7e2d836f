"""AI Gateway: one HTTP API in front of agent platforms and OpenAI-compatible upstreams."""

__version__ = "0.1.0"
