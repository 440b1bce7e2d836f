"""The language of a caller's errors: sentences with a Chinese form, and what a caller prefers."""
