"""Coze: a chat with a bot, by its API v3."""
