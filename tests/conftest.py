"""Shared fixtures: a real gateway and real upstreams, all on loopback sockets."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "platforms"))  # `decoding`, for all its tests
