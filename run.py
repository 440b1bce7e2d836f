"""Start or administer the gateway: `python run.py --help`."""

import sys

_HINT = "Run `make install` once, then use .venv/bin/python run.py …"

if __name__ == "__main__":
    try:
        from gateway.cli import main

        sys.exit(main())
    except ModuleNotFoundError as error:  # commands load what they need when they need it
        sys.exit(f"{error}. {_HINT}")
