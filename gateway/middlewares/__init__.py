"""The onion, outermost first: see the list in `app`."""
