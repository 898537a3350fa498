"""What the header fields of an HTTP/2 request mean: whether they are well-formed (RFC 9113, 8.2 and 8.3), and which
method of gRPC they call, if they do.

Clients send the same fields again and again, except for ``grpc-timeout``, so meanings are kept, for all connections
together. Of a request that is not gRPC's, that field is one like all others: the JSON gateway reads it in another way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from ...limits import MAX_REMEMBERED_HEADS, REMEMBERED_BLOCK_BYTES
from .header_blocks import Fields
from .rpc_messages import check_encoding, parse_timeout
from .rpc_methods import RpcMethod, RpcMethods
from .rpc_status import RpcCode, RpcError

_PSEUDO = {b":method", b":scheme", b":path", b":authority"}
_OF_CONNECTION = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\0\r\n]")
_GRPC = re.compile(rb"application/grpc([+;].*)?")
_TIMEOUT = b"grpc-timeout"


class RequestHead:
    """The meaning of a request's fields, apart from its timeout.

    Attributes:
        malformed: what is wrong with it as HTTP, which ends the stream; empty if nothing is.
        rpc: the method that it calls; ``None`` if the request is not one of gRPC, or ``refusal`` says why it fails.
        refusal: why this call of gRPC cannot be served.
        metadata: the first value of each name, pseudo-headers included.
        encoding: how messages may be compressed.
    """

    __slots__ = ("encoding", "malformed", "metadata", "refusal", "rpc")

    def __init__(self, fields: Fields, methods: RpcMethods) -> None:
        self.malformed = _find_mistake(fields)
        self.rpc: RpcMethod | None = None
        self.refusal: RpcError | None = None
        first: dict[str, str] = {}
        for name, value in fields:
            first.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        self.metadata: Mapping[str, str] = MappingProxyType(first)
        self.encoding = first.get("grpc-encoding", "")
        if self.malformed or not _GRPC.fullmatch(first.get("content-type", "").encode("latin-1")):
            return
        try:
            if first[":method"] != "POST":
                method = first[":method"][:100]
                raise RpcError(
                    RpcCode.INTERNAL,
                    f"http2Server.operateHeaders parsed a :method field: {method} which should be POST",
                )
            self.rpc = methods.find(first[":path"])
            check_encoding(self.encoding)
        except RpcError as error:
            self.rpc, self.refusal = None, error.with_traceback(None)


Understood: TypeAlias = tuple[RequestHead, float | None]
"""A head, and the call's timeout in seconds."""


class RequestHeads:
    """The meanings of the heads that have come lately."""

    def __init__(self, methods: RpcMethods) -> None:
        self._methods = methods
        self._known: dict[Fields, RequestHead] = {}

    def understand(self, fields: Fields) -> Understood:
        """The meaning of a request's fields. Never raises."""
        for field in fields:
            if field[0] == _TIMEOUT:
                return self._understand_timed(fields, field[1])
        return self._known.get(fields) or self._learn(fields), None

    def _understand_timed(self, fields: Fields, text: bytes) -> Understood:
        lasting: Fields = tuple([each for each in fields if each[0] != _TIMEOUT])
        head = self._known.get(lasting) or self._learn(lasting)
        if head.rpc is None and head.refusal is None:  # it is not gRPC
            return RequestHead(fields, self._methods), None
        try:
            return head, parse_timeout(text)
        except RpcError as error:
            refused = RequestHead(lasting, self._methods)  # the other one serves further calls
            refused.rpc, refused.refusal = None, head.refusal or error.with_traceback(None)
            return refused, None

    def _learn(self, fields: Fields) -> RequestHead:
        head = RequestHead(fields, self._methods)
        if sum(len(name) + len(value) for name, value in fields) <= REMEMBERED_BLOCK_BYTES:
            if len(self._known) >= MAX_REMEMBERED_HEADS:
                self._known.clear()
            self._known[fields] = head
        return head


def _find_mistake(fields: Fields) -> str:
    """What makes a request malformed; empty if nothing does."""
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if not _NAME.fullmatch(name) or _BAD_VALUE.search(value) or value != value.strip(b" \t"):
            return "a field with bytes that may not be"
        if name[:1] == b":":
            if regular or name in pseudo or name not in _PSEUDO:
                return "a pseudo-header that may not be"
            pseudo[name] = value
        else:
            regular = True
            if name in _OF_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
                return "a field of the connection"
    if not pseudo.keys() >= {b":method", b":scheme", b":path"} or not pseudo[b":path"]:
        return "a pseudo-header is missing"
    return ""
