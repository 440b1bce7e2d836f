"""`init`: writes the first config.yaml and .env of a new folder, from the shipped ones."""

import sys
from pathlib import Path

from gateway.config.invocation import command
from gateway.private import opener
from gateway.shipped import shipped

_SCHEMA = "config/config.schema.json"
_BOTS = "# --- your bots"  # starts the agents' variables in .env.example
_HEAD = """\
# The gateway reads this file, also while it runs; variables of the environment win.
# Keep it out of version control. `NAME=value`, without quotes; remove the # of what you fill in.

"""


def write(config: Path) -> int:
    """Write `config` and `.env` in its folder unless they exist; return the exit status."""
    texts = {config: _config_text(), config.parent / ".env": _environment_text()}
    for path, text in texts.items():
        private = opener if path.name == ".env" else None
        try:
            with open(path, "x", encoding="utf-8", newline="\n", opener=private) as file:
                file.write(text)
        except FileExistsError:
            print(f"{path} is already there and stays as it is.")
        except OSError as error:
            print(f"{path} cannot be written: {error.strerror}", file=sys.stderr)
            return 1
        else:
            print(f"{path} is written.")
    start = command(config)
    print(
        f"Next: put the address and the key of your bot into {config.parent / '.env'}; agents"
        f" without an address are demos.\n  {start} check    # lists all mistakes\n"
        f"  {start}          # start the gateway"
    )
    return 0


def _config_text() -> str:
    """The shipped config.yaml; its schema line names the schema of the installed gateway."""
    text = shipped("config.yaml").read_text("utf-8")
    return text.replace(f"$schema={_SCHEMA}", f"$schema={shipped(_SCHEMA).as_uri()}")


def _environment_text() -> str:
    _, mark, bots = shipped(".env.example").read_text("utf-8").partition(_BOTS)
    return _HEAD + mark + bots
