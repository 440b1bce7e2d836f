"""The chain around every route: requestlog, errors, auth, ratelimit, outermost first."""
