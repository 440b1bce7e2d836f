"""One folder per platform: requests described, answers decoded.

Each has a `KIND` (`gateway.config.kinds`) by which the gateway finds it; nothing else names it.
"""
