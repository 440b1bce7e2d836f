"""One folder per platform: requests described, answers decoded.

Each folder has a `KIND` (`gateway.config.kinds`), which the gateway finds; no other code names it.
"""
