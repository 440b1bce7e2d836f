"""FastGPT: a chat with an app, by its OpenAI-like API."""
