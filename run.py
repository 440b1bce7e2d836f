"""Start or administer the gateway: `python run.py --help`."""

import sys

try:
    from gateway.cli import main
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Run `make install` once, then use .venv/bin/python run.py …")

if __name__ == "__main__":
    sys.exit(main())
