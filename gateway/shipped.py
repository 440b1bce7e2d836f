"""Files that are not Python: in `share/` of an installed package, at the top of a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
_SHARE = _PACKAGE / "share"  # made by setup.py
_ROOT = _SHARE if _SHARE.is_dir() else _PACKAGE.parent


def shipped(name: str) -> Path:
    """The file or folder that is called `name` in a checkout."""
    return _ROOT / name
