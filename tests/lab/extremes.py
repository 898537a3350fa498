"""Everything that a decoder may be given for a type, and more: each field at its extremes, or of another type.

Made by walking the types themselves, so that a command, a frame or a field that is new is tried without a word.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from raykeeper import END, KEEP, Op

INTEGERS = (0, 1, 2, 3, 7, 100, -1, -5, -(1 << 63), 1 << 31, 1 << 47, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
FLOATS = (0.0, 1.0, 30.0, -1.0, -0.0, 1e-300, 1e12, 1e300, float("nan"), float("inf"), float("-inf"))
BYTES = (b"", b"a", b"k", b"k\0", b"l", b"\xff" * 9, b"\0\1", b"\0" * 300, b"x" * 70_000)
TEXTS = ("", "m1", "/", "../../x", "\0", "é" * 600)
OTHERS = (None, True, "text", b"bytes", 1.5, -1, (), {}, [[[]]])
VALUES: dict[str, Any] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "1e308": 1e308,
    "1e10": 1e10,
    "-1": -1,
    "-1.0": -1.0,
    "0": 0,
    "0.5": 0.5,
    "2**31": 2**31,
    "2**63": 2**63,
    "2**64": 2**64,
    "-2**63": -(2**63),
    "2**200": 2**200,
    "10**400": 10**400,
    "10**5000": 10**5000,
    "True": True,
    "text 1": "1",
    "None": None,
    "empty": "",
    "empty bytes": b"",
    "NUL": "\0",
    "slashes": "a//%2F/",
    "surrogate": "\ud800",
    "huge": "x" * 3_000_000,
    "bytes": b"\xff\xfe",
    "bytearray": bytearray(b"k"),
    "list": [],
    "list of None": [None],
    "dict": {},
    "object": object(),
    "class": int,
    "KEEP": KEEP,
    "END": END,
    "Op": Op.get("k"),
    "complex": 1j,
}
"""What a user may pass in, for any argument of a public call."""

DEPTH = 6
"""Structs inside structs; for those that hold themselves."""


def structs(of: Any) -> Iterator[type]:
    """All struct types that a type is made of."""
    seen: set[type] = set()
    todo = [inspect.type_info(of)]
    while todo:
        info = todo.pop()
        if isinstance(info, inspect.StructType):
            if info.cls not in seen:
                seen.add(info.cls)
                todo += [field.type for field in info.fields]
                yield info.cls
        elif isinstance(info, inspect.UnionType):
            todo += info.types
        elif isinstance(info, inspect.VarTupleType):
            todo.append(info.item_type)
        elif isinstance(info, inspect.TupleType):
            todo += info.item_types


_info = cache(inspect.type_info)


def raw(of: Any, rng: random.Random) -> Any:
    """What msgpack can say in the place of a value of that type. Mostly of the right shape."""
    return _raw(_info(of), rng, DEPTH)


def encoded(of: Any, rng: random.Random) -> bytes:
    """The same as it travels."""
    return msgspec.msgpack.encode(raw(of, rng))


def _raw(info: Any, rng: random.Random, depth: int) -> Any:
    if rng.random() < 0.02:
        return rng.choice(OTHERS)
    if isinstance(info, inspect.StructType):
        if depth <= 0:
            return None
        head = [info.tag] if info.tag is not None else []
        return [*head, *(_raw(field.type, rng, depth - 1) for field in info.fields)]
    if isinstance(info, inspect.UnionType):
        return _raw(rng.choice(info.types), rng, depth)
    if isinstance(info, inspect.VarTupleType):
        return [_raw(info.item_type, rng, depth) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    if isinstance(info, inspect.TupleType):
        return [_raw(each, rng, depth) for each in info.item_types]
    if isinstance(info, inspect.IntType):
        return _bounded(info, rng, INTEGERS)
    if isinstance(info, inspect.FloatType):
        return _bounded(info, rng, FLOATS)
    if isinstance(info, inspect.BytesType):
        return rng.choice(BYTES)
    if isinstance(info, inspect.StrType):
        return rng.choice(TEXTS)
    if isinstance(info, inspect.BoolType):
        return rng.random() < 0.5
    if isinstance(info, inspect.NoneType):
        return None
    if isinstance(info, inspect.EnumType):
        return rng.choice([*(each.value for each in info.cls)] * 9 + [99, -1])
    raise NotImplementedError(info)


def _bounded(info: Any, rng: random.Random, values: tuple[Any, ...]) -> Any:
    """Mostly what the type allows, bounds and all: or nothing that has many fields would ever be decoded."""
    allowed = [
        value
        for value in (*values, info.ge, info.le)
        if value is not None and (info.ge is None or value >= info.ge) and (info.le is None or value <= info.le)
    ]
    return rng.choice(values) if rng.random() < 0.05 else rng.choice(allowed)


def unbounded(of: Any) -> list[str]:
    """Fields, in what a type is made of, that may hold any number that can be decoded."""
    found = []
    for each in structs(of):
        info = inspect.type_info(each)
        assert isinstance(info, inspect.StructType)
        for field in info.fields:
            todo = [field.type]
            while todo:
                one = todo.pop()
                if isinstance(one, (inspect.IntType, inspect.FloatType)):
                    if one.ge is None or one.le is None:
                        found.append(f"{each.__name__}.{field.name}")
                elif isinstance(one, inspect.UnionType):
                    todo += one.types
                elif isinstance(one, inspect.VarTupleType):
                    todo.append(one.item_type)
    return found
