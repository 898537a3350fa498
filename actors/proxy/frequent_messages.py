"""The messages that come by the thousand, by their bytes: ranges and puts of one key that ask for nothing else, and the
answers.

To make a message object, and to read it, costs more than all else that is done here for such a call. Nor may one be
filled again and again: protobuf keeps every string of bytes that was ever put into a message until the message goes
(its arena), so that a proxy would keep all values that it has ever answered. Numbers alone are written in place.

The bytes are those that protobuf itself makes: fields in the order of their numbers, and none that is zero.
"""

from __future__ import annotations

_KEY = b"\x0a"
"""RangeRequest.key and PutRequest.key: field 1, of bytes."""
_VALUE = b"\x12"
"""PutRequest.value: field 2, of bytes."""
_KVS = b"\x12"
"""RangeResponse.kvs: field 2, a message."""
_COUNT_OF_ONE = b"\x20\x01"
"""RangeResponse.count: field 4, the number 1."""


def only_key(request: bytes) -> bytes:
    """The key of an encoded RangeRequest that has nothing else, as most have; empty for any other, and for a key whose
    length takes more than one byte."""
    if len(request) > 2 and request[:1] == _KEY and len(request) - 2 == request[1] < 0x80:
        return request[2:]
    return b""


def key_and_value(request: bytes) -> tuple[bytes, bytes] | None:
    """The key and the value of an encoded PutRequest that has nothing else, as most have; ``None`` for any other, also
    if the length of the key takes more than one byte, or that of the value more than two."""
    if len(request) < 4 or request[:1] != _KEY or not 0 < request[1] < 0x80:
        return None
    key_end = request[1] + 2
    field, lengths = request[key_end : key_end + 1], request[key_end + 1 : key_end + 3]
    if field != _VALUE or not lengths:
        return None
    begin, length = key_end + 2, lengths[0]
    if length >= 0x80:
        if len(lengths) < 2 or lengths[1] >= 0x80:
            return None
        begin, length = begin + 1, length & 0x7F | lengths[1] << 7
    return (request[2:key_end], request[begin:]) if len(request) - begin == length else None


def range_of_one(header: bytes, pair: bytes) -> bytes:
    """An encoded RangeResponse of one key.

    Args:
        header: an encoded answer that has nothing but a header, which is field 1 of every answer of the service.
        pair: the encoded KeyValue.
    """
    return b"".join((header, _KVS, encode_length(len(pair)), pair, _COUNT_OF_ONE))


def encode_length(number: int) -> bytes:
    """A number as in a message: seven bits in each byte, the lowest first."""
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
