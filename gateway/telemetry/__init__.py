"""Observing calls: the record, metrics, traces and logs."""
