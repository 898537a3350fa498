"""What a process says of itself with a request that it sends by actor call.

Ray does not tell an actor who calls it, so the caller says it, and the audit log names it as a hint. On a lane nothing
is said: there the kernel knows who it is.
"""

from __future__ import annotations

import msgspec

from .client_identity import ClientIdentity
from .frames import AsUser

_TAG = bytes([AsUser.__struct_config__.tag])  # type: ignore[list-item]
_USERS = b"\x93" + _TAG
"""How a user's request begins that says nothing of its process: tag, token, request."""
_SAYING = b"\x94" + _TAG
"""The same of one that does: one element more, at the end."""
_NO_TOKEN = msgspec.msgpack.encode(b"")


def encode_said(identity: ClientIdentity) -> bytes:
    """What :func:`said_by` puts into requests."""
    return msgspec.msgpack.encode(identity)


def said_by(frame: bytes, said: bytes) -> bytes:
    """An encoded request, of a user or not, that says which process sends it; one that says so already, as it is."""
    if frame.startswith(_SAYING):
        return frame
    if frame.startswith(_USERS):
        return _SAYING + frame[len(_USERS) :] + said
    return b"".join((_SAYING, _NO_TOKEN, frame, said))
