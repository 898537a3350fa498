"""How a gRPC call ends: its code and text."""

from __future__ import annotations

from enum import IntEnum


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
