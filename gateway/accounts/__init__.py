"""Who may call: API keys, accounts, tokens and passwords."""
