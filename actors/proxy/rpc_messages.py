"""Messages of gRPC as they travel: a byte that says whether it is compressed, four bytes of length, the message.

The texts of errors are those of etcd's server, that is, of gRPC for Go.
"""

from __future__ import annotations

import re
import struct
import zlib

from ...limits import MAX_RPC_MESSAGE_BYTES
from .rpc_status import RpcCode, RpcError

PREFIX = struct.Struct(">BL")
PREFIX_BYTES = 5
IDENTITY = "identity"
GZIP = "gzip"

_GZIP_FORMAT = 16 + zlib.MAX_WBITS
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def pack_message(message: bytes) -> bytes:
    """A message as it is sent; answers are not compressed."""
    return PREFIX.pack(0, len(message)) + message


def check_size(size: int) -> None:
    """Raise ``RESOURCE_EXHAUSTED`` for a message of that size if it is too long."""
    if size > MAX_RPC_MESSAGE_BYTES:
        raise RpcError(
            RpcCode.RESOURCE_EXHAUSTED,
            f"grpc: received message larger than max ({size} vs. {MAX_RPC_MESSAGE_BYTES})",
        )


def check_encoding(encoding: str) -> None:
    """Raise ``UNIMPLEMENTED`` for a ``grpc-encoding`` that is neither gzip nor identity."""
    if encoding not in ("", IDENTITY, GZIP):
        raise RpcError(
            RpcCode.UNIMPLEMENTED, f'grpc: Decompressor is not installed for grpc-encoding "{encoding[:100]}"'
        )


def decompress(flag: int, message: bytes, encoding: str) -> bytes:
    """The message proper.

    Args:
        flag: its first byte on the wire.
        message: what came after the length.
        encoding: the call's ``grpc-encoding``, which :func:`check_encoding` has let pass.

    Raises:
        RpcError: it is compressed in another way than announced, or damaged, or becomes too long.
    """
    if flag == 0:
        return message
    if flag != 1:
        raise RpcError(RpcCode.INTERNAL, f"grpc: received unexpected payload format {flag}")
    if encoding != GZIP:
        raise RpcError(RpcCode.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
    inflater = zlib.decompressobj(_GZIP_FORMAT)
    try:
        plain = inflater.decompress(message, MAX_RPC_MESSAGE_BYTES + 1)
    except zlib.error as error:
        raise RpcError(RpcCode.INTERNAL, f"grpc: failed to decompress the received message: {error}") from None
    if len(plain) > MAX_RPC_MESSAGE_BYTES:
        raise RpcError(
            RpcCode.RESOURCE_EXHAUSTED,
            f"grpc: received message after decompression larger than max {MAX_RPC_MESSAGE_BYTES}",
        )
    if not inflater.eof:
        raise RpcError(RpcCode.INTERNAL, "grpc: failed to decompress the received message: unexpected EOF")
    return plain


def parse_timeout(text: bytes) -> float:
    """The seconds of a ``grpc-timeout``.

    Raises:
        RpcError: it is not one.
    """
    parts = _TIMEOUT.fullmatch(text)
    if parts is None:
        shown = text[:100].decode("latin-1")
        raise RpcError(RpcCode.INTERNAL, f'malformed grpc-timeout: transport: timeout is not recognized: "{shown}"')
    return int(parts[1]) * _UNIT_S[parts[2]]
