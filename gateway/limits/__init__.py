"""How often and how much: token buckets, quotas, slots and shares of each caller."""
