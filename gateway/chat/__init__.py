"""One question: its targets in order until one answers; retries, fallback, files, health."""
