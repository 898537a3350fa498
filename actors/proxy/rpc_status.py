"""How a gRPC call ends: its code and text, and both as HTTP/2 header blocks (gRPC over HTTP/2, "Responses")."""

from __future__ import annotations

from enum import IntEnum
from urllib.parse import quote

from ...limits import MAX_RPC_STATUS_BYTES
from .header_blocks import encode_block


class RpcCode(IntEnum):
    """The status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call ends without an answer; what a handler raises reaches the client as it is.

    Attributes:
        code: why, for programs.
        text: why; etcd's clients compare it, so it is etcd's to the letter.
    """

    def __init__(self, code: RpcCode, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:  # for logs
        return self.text or self.code.name


# Not to be raised: an exception keeps the frames that it went through.
DEADLINE_EXCEEDED = RpcError(RpcCode.DEADLINE_EXCEEDED, "context deadline exceeded")
CANCELED = RpcError(RpcCode.CANCELLED, "context canceled")
SERVER_STOPPED = RpcError(RpcCode.UNAVAILABLE, "etcdserver: server stopped")
NO_ROOM = RpcError(RpcCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
"""What clients have left behind that are gone takes the memory."""

_HEAD = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What stays as it is in a status text; all else becomes %XX."""

ANSWER_HEAD = encode_block(_HEAD)
"""The header block that begins an answer."""
OK_TRAILERS = encode_block(((b"grpc-status", b"0"),))
"""The header block that ends a successful one."""


def encode_status(error: RpcError, *, alone: bool) -> bytes:
    """The header block that ends a failed call; ``alone`` if it is the whole answer ("Trailers-Only")."""
    text = quote(error.text.encode()[:MAX_RPC_STATUS_BYTES], safe=_PRINTABLE).encode()
    status = ((b"grpc-status", b"%d" % error.code), *(((b"grpc-message", text),) if text else ()))
    return encode_block((*_HEAD, *status) if alone else status)
