"""What a process and the proxy of its node say to each other so that the proxy notices the death of the process."""

from __future__ import annotations

import struct

WatchOffer = tuple[str, bytes]
"""The name of the proxy's socket, in the abstract namespace, and a token."""
TOKEN_BYTES = 16
CLAIM = struct.Struct(f">{TOKEN_BYTES}sQ")
"""What a process sends: the token, and the id of its session."""
WATCHED, NOT_WATCHED = b"\1", b"\0"
"""What it is answered."""
