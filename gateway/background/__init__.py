"""Background calls of chat clients: recognised by their structure, answered without a model."""
