"""Messages, timeouts and statuses of gRPC as they travel."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from urllib.parse import unquote_to_bytes

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raykeeper.actors.proxy.rpc_messages import check_encoding, check_size, decompress, pack_message, parse_timeout
from raykeeper.actors.proxy.rpc_methods import RpcCall, RpcMethods
from raykeeper.actors.proxy.rpc_status import ANSWER_HEAD, OK_TRAILERS, RpcCode, RpcError, encode_status
from raykeeper.limits import MAX_RPC_MESSAGE_BYTES, MAX_RPC_STATUS_BYTES


def code_of(function: object, *arguments: object) -> RpcCode:
    with pytest.raises(RpcError) as caught:
        function(*arguments)  # type: ignore[operator]
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"99999999S", 99_999_999)],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", [b"", b"S", b"5", b"5s", b" 5S", b"5S ", b"5S\n", b"+5S", b"123456789S", "٣S".encode()]
)
def test_what_is_not_a_timeout(text: bytes) -> None:
    assert code_of(parse_timeout, text) is RpcCode.INTERNAL


def test_sizes() -> None:
    check_size(MAX_RPC_MESSAGE_BYTES)
    assert code_of(check_size, MAX_RPC_MESSAGE_BYTES + 1) is RpcCode.RESOURCE_EXHAUSTED
    assert MAX_RPC_MESSAGE_BYTES == 2_097_152, "etcd's, whose text names it"


def test_a_bomb_is_not_inflated() -> None:
    """It is refused once it has become too long, and not after all of it is in memory."""
    inflated = 100 * MAX_RPC_MESSAGE_BYTES
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    bomb = b"".join([*(packer.compress(bytes(MAX_RPC_MESSAGE_BYTES)) for _ in range(100)), packer.flush()])
    tracemalloc.start()
    try:
        assert code_of(decompress, 1, bomb, "gzip") is RpcCode.RESOURCE_EXHAUSTED
        assert tracemalloc.get_traced_memory()[1] < inflated / 10
    finally:
        tracemalloc.stop()


def test_compression() -> None:
    plain = b"the same again " * 1000
    for packed in (gzip.compress(plain), gzip.compress(plain, compresslevel=1)):
        assert decompress(1, packed, "gzip") == plain
        assert decompress(0, packed, "gzip") == packed
    assert decompress(1, gzip.compress(b""), "gzip") == b""
    assert decompress(1, gzip.compress(bytes(MAX_RPC_MESSAGE_BYTES)), "gzip") == bytes(MAX_RPC_MESSAGE_BYTES)


@pytest.mark.parametrize(
    ("flag", "message", "encoding", "code"),
    [
        (2, b"", "gzip", RpcCode.INTERNAL),
        (1, b"x", "", RpcCode.INTERNAL),
        (1, b"x", "identity", RpcCode.INTERNAL),
        (1, b"not gzip", "gzip", RpcCode.INTERNAL),
        (1, b"", "gzip", RpcCode.INTERNAL),
        (1, gzip.compress(b"cut off", mtime=0)[:-3], "gzip", RpcCode.INTERNAL),
        (1, zlib.compress(b"another format"), "gzip", RpcCode.INTERNAL),
        (1, gzip.compress(bytes(MAX_RPC_MESSAGE_BYTES + 1)), "gzip", RpcCode.RESOURCE_EXHAUSTED),
    ],
)
def test_bad_compression(flag: int, message: bytes, encoding: str, code: RpcCode) -> None:
    assert code_of(decompress, flag, message, encoding) is code


def test_encodings() -> None:
    for encoding in ("", "identity", "gzip"):
        check_encoding(encoding)
    for encoding in ("deflate", "snappy", "GZIP", "gzip,identity", "x" * 10_000):
        assert code_of(check_encoding, encoding) is RpcCode.UNIMPLEMENTED


def test_the_prefix() -> None:
    assert pack_message(b"abc") == b"\0\0\0\0\3abc"


@given(st.text(max_size=3000), st.sampled_from(list(RpcCode)), st.booleans())
def test_statuses(text: str, code: RpcCode, alone: bool) -> None:
    """Any text arrives, as far as there is room; the header block needs no table."""
    fields = dict(hpack.Decoder().decode(encode_status(RpcError(code, text), alone=alone), raw=True))
    assert int(fields[b"grpc-status"]) == code
    assert (b":status" in fields) is alone
    message = fields.get(b"grpc-message", b"")
    assert all(0x20 <= byte <= 0x7E for byte in message)
    assert unquote_to_bytes(message) == text.encode()[:MAX_RPC_STATUS_BYTES]


def test_a_text_of_etcd_travels_as_it_is() -> None:
    text = "etcdserver: mvcc: required revision has been compacted"
    assert text.encode() in encode_status(RpcError(RpcCode.OUT_OF_RANGE, text), alone=False)
    assert b"100%25 \xc3".replace(b"\xc3", b"%C3%A9") in encode_status(RpcError(RpcCode.UNKNOWN, "100% é"), alone=True)


def test_the_blocks_of_every_answer_are_short() -> None:
    assert len(ANSWER_HEAD) < 30
    assert len(OK_TRAILERS) < 20
    assert ANSWER_HEAD[:1] == b"\x88", ":status 200 is an index"


async def handler(request: bytes, call: RpcCall) -> bytes:
    return request


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/a.B/C", ""),
        ("/a.B/D", "unknown method D for service a.B"),
        ("/a.X/C", "unknown service a.X"),
        ("/x/a.B/C", "unknown service x/a.B"),
        ("C", 'malformed method name: "C"'),
        ("", 'malformed method name: ""'),
    ],
)
def test_methods(path: str, text: str) -> None:
    methods = RpcMethods()
    methods.add_unary("/a.B/C", handler)
    if not text:
        assert methods.find(path).unary is handler
        return
    with pytest.raises(RpcError) as caught:
        methods.find(path)
    assert (caught.value.code, caught.value.text) == (RpcCode.UNIMPLEMENTED, text)
