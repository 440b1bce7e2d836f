"""Start or administer the gateway: `python run.py --help`."""

import sys

from gateway.cli import main

if __name__ == "__main__":
    sys.exit(main())
