"""Whose conversation is whose, and the turns that the gateway keeps in a platform's place."""
