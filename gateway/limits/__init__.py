"""Limits: token buckets, quotas, slots, and each caller's share of a resource."""
