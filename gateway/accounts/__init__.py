"""Callers' identities: API keys, accounts, tokens and passwords."""
