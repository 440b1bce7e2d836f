"""Where things are kept: accounts, calls and usage in a database, buckets in memory or Redis."""
