"""Dify: an app of any kind, by its service API."""
