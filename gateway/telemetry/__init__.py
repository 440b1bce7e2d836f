"""What is known of a call: the record, metrics, traces and logs."""
