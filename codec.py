"""Codecs: handles whose values are Python objects, ``kv.with_codec(codec.JSON)``.

A codec turns an object into bytes and back. ``JSON`` is safe with any data. ``CLOUDPICKLE`` takes any Python
object, and reading a value runs code that its writer chose: use it only where every writer is trusted. Members never
decode values; only the process that asked for the codec does.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import msgspec


class Codec(Protocol):
    """What a handle needs of a codec. It must be picklable, because handles are."""

    @property
    def comparable(self) -> bool:
        """Whether equal objects have equal bytes, so that ``Compare.value(key) == object`` means something."""
        ...

    def encode(self, value: Any) -> bytes:
        """The bytes of an object. May raise anything; the caller gets an ``InvalidArgument``."""
        ...

    def decode(self, data: bytes) -> Any:
        """The object of these bytes. May raise anything; the caller gets a ``DecodeError``."""
        ...


def check_finite(value: object) -> None:
    """Refuse numbers that are not finite: JSON cannot express them, and msgspec would silently write ``null``.

    Args:
        value: an object that JSON can otherwise express.

    Raises:
        ValueError: it contains such a number.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"JSON has no {value}")
    if isinstance(value, dict):
        for each in value.values():
            check_finite(each)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for each in value:
            check_finite(each)


class _Json:
    """JSON through msgspec: ``None``, bools, finite numbers, strings, lists and dicts.

    Keys of objects are sorted, so equal values have equal bytes.
    """

    comparable = True
    _encode = msgspec.json.Encoder(order="deterministic").encode
    _decode = msgspec.json.Decoder().decode

    def encode(self, value: Any) -> bytes:
        data = _Json._encode(value)
        if b"null" in data:
            check_finite(value)
        return data

    def decode(self, data: bytes) -> Any:
        return _Json._decode(data)

    def __reduce__(self) -> str:
        return "JSON"

    def __repr__(self) -> str:
        return "raykeeper.codec.JSON"


class _CloudPickle:
    """Any Python object, functions and classes included, by cloudpickle."""

    comparable = False

    def encode(self, value: Any) -> bytes:
        import cloudpickle  # type: ignore[import-untyped]  # slow to load, and seldom used

        data: bytes = cloudpickle.dumps(value)
        return data

    def decode(self, data: bytes) -> Any:
        import cloudpickle

        return cloudpickle.loads(data)

    def __reduce__(self) -> str:
        return "CLOUDPICKLE"

    def __repr__(self) -> str:
        return "raykeeper.codec.CLOUDPICKLE"


JSON = _Json()
CLOUDPICKLE = _CloudPickle()
