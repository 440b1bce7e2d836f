"""The neutral form, OpenAI's form and event streams: translation without I/O."""
