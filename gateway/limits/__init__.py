"""How often and how much: token buckets, quotas, slots, and each caller's share of a resource."""
