"""What is said, without I/O: the neutral form, OpenAI's form, event streams."""
