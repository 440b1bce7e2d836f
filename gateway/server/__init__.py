"""The running process: listening, signals, reload on change, drain, and `check --live`."""
