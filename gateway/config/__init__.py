"""The configuration: config.yaml read, checked and kept as models."""
