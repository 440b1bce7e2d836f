"""One question: targets in order until one answers."""
