"""Connections to upstreams: one exchange at a time, pooled, with proxies and time limits."""
