"""Uploaded files: the library, its stores, and the fetcher that is safe from SSRF."""
