"""Checks of the users' arguments: one function for each kind, all raising ``InvalidArgument``.

Every number is at most 63 bits and every text valid in UTF-8, so whatever passes here can be encoded. In all functions
``what`` is the argument's name in messages.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from ..codec import JSON, Codec
from ..errors import InvalidArgument, LeaseLost, RequestTooLarge
from ..limits import MAX_REQUEST_ID_BYTES

MAX_INT = 2**63 - 1
MIN_LEASE_ID = -(2**63)
MAX_SECONDS = 1e9
"""Longer times count as infinite: Python refuses to wait for centuries."""

MAX_PATH_BYTES = 4096
"""The longest path that Linux accepts."""

Key = str | bytes


def shown(value: object) -> str:
    """A value as text for a message, shortened; never raises (Python refuses to print a number of 5,000 digits)."""
    try:
        text = repr(value)
    except Exception:
        return f"something of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def reason(error: Exception) -> str:
    """The message of an exception from the user's code; never raises."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__


def text(what: str, value: object) -> str:
    """A ``str`` that UTF-8 can encode."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} must be str, not {type(value).__name__}")
    text_or_bytes(what, value)
    return value


def path(what: str, value: object) -> str:
    """An absolute path, with ``~`` resolved, from a ``str`` or ``os.PathLike``."""
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(given, str):
        raise InvalidArgument(f"{what} must be a path, not {type(value).__name__}")
    try:
        encoded = os.fsencode(given)
        if b"\0" in encoded or not 0 < len(encoded) <= MAX_PATH_BYTES:
            raise InvalidArgument(f"{what} must be the path of a file or folder, not {shown(given)}")
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} cannot be encoded as a path: {error}") from error
    return os.path.abspath(os.path.expanduser(given))


def text_or_bytes(what: str, value: object) -> bytes:
    """The bytes of a ``str`` (as UTF-8) or of ``bytes``."""
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"{what} cannot be encoded as UTF-8: {error}") from error
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise InvalidArgument(f"{what} must be str or bytes, not {type(value).__name__}")


def whole_number(what: str, value: object, minimum: int = 0) -> int:
    """An ``int`` of at least ``minimum`` and at most 63 bits."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f"{what} must be an int, not {type(value).__name__}")
    if not minimum <= value <= MAX_INT:
        raise InvalidArgument(f"{what} must be at least {minimum} and below 2**63, not {shown(value)}")
    return int(value)


def flag(what: str, value: object) -> bool:
    """A ``bool``; 0 and 1 are refused."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{what} must be True or False, not {shown(value)}")
    return value


def seconds(what: str, value: object) -> float:
    """A number of seconds, at least 0; infinity is allowed, and more than ``MAX_SECONDS`` counts as infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgument(f"{what} must be a number of seconds, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if math.isnan(number) or number < 0:
        raise InvalidArgument(f"{what} must not be negative, not {shown(value)}")
    return number if number <= MAX_SECONDS else math.inf


def lease_id(value: object) -> int:
    """The id of a lease: an ``int``, or the ``id`` of a lease object. ``None`` and, as in etcd, 0 mean no lease.

    Raises:
        LeaseLost: the lease object is lost already.
    """
    if value is None:
        return 0
    id = whole_number("a lease id", getattr(value, "id", value), MIN_LEASE_ID)  # a lock has no id, and is refused here
    lost = getattr(value, "lost", None)
    if lost is not None and lost.is_set():
        raise LeaseLost(f"lease {id:x} is lost: no key can be attached to it")
    return id


def request_name(value: object) -> bytes:
    """The bytes of a ``request_id``: ``str`` or ``bytes``, not empty, of bounded length."""
    name = text_or_bytes("request_id", value)
    if not name:
        raise InvalidArgument("request_id must not be empty")
    if len(name) > MAX_REQUEST_ID_BYTES:
        raise RequestTooLarge(f"request_id is over the limit of {MAX_REQUEST_ID_BYTES} bytes")
    return name


def encode_value(value: object, codec: Codec | None) -> bytes:
    """The bytes of a value, encoded by the codec if there is one."""
    if codec is None:
        return text_or_bytes("a value", value)
    try:
        data = codec.encode(value)
    except Exception as error:
        what = type(value).__name__
        raise InvalidArgument(f"{shown(codec)} cannot encode a {what}: {reason(error)}") from error
    if not isinstance(data, bytes):
        raise InvalidArgument(f"{shown(codec)} made {type(data).__name__} instead of bytes")
    return data


def json(what: str, value: object) -> None:
    """A value that JSON can express."""
    try:
        JSON.encode(value)
    except Exception as error:
        raise InvalidArgument(f"{what} must be a value that JSON can express: {reason(error)}") from error


def one_of(what: str, value: object, choices: dict[str, Any]) -> Any:
    """The value of the choice of that name."""
    if isinstance(value, str) and value in choices:
        return choices[value]
    raise InvalidArgument(f"{what} must be one of {', '.join(map(repr, choices))}, not {shown(value)}")


def each(what: str, value: object) -> Sequence[Any]:
    """A list or tuple; other iterables are refused."""
    if not isinstance(value, (list, tuple)):
        raise InvalidArgument(f"{what} must be a list, not {type(value).__name__}")
    return value
