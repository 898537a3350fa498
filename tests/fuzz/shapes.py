"""Strategies for bytes that a decoder reads: shaped after its types, with extreme values, and then damaged."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

INTS = st.one_of(
    st.integers(-3, 300), st.sampled_from([1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)])
)
FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, -1.0, 1e308, 5e-324]))
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", "a\0b", "../../x", "/etc/passwd", "ä" * 300]))
BYTES = st.one_of(st.binary(max_size=20), st.sampled_from([b"", b"\0", b"\xff" * 40, b"k" * 20_000]))
NOISE = st.one_of(st.none(), st.booleans(), INTS, FLOATS, TEXTS, BYTES, st.lists(INTS, max_size=3))
_DEPTH = 4


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Some bytes, or others: cut, flipped, doubled, overwritten with extreme numbers; sometimes anything at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            size = draw(st.integers(1, 40))
            data[at:at] = data[at : at + size]
        elif kind == 3:
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == 4:
            number = draw(
                st.sampled_from([b"\xff" * 4, b"\xff" * 8, bytes(4), b"\x7f" + b"\xff" * 3, b"\x80" + bytes(7)])
            )
            data[at : at + len(number)] = number
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=10))
    return bytes(data)


@st.composite
def plain(draw: st.DrawFn, kind: inspect.Type, depth: int = 0) -> Any:
    """A value as msgspec would decode one of that type from, of plain Python types; now and then of another type."""
    if draw(st.integers(0, 59)) == 0:
        return draw(NOISE)
    match kind:
        case inspect.UnionType():
            return draw(plain(draw(st.sampled_from(kind.types)), depth))
        case inspect.StructType():
            values = [draw(plain(field.type, depth + 1)) for field in kind.fields]
            if kind.array_like:
                return [*([] if kind.tag is None else [kind.tag]), *values]
            named = {field.encode_name: value for field, value in zip(kind.fields, values, strict=True)}
            return named if kind.tag is None else {kind.tag_field: kind.tag, **named}
        case inspect.ListType() | inspect.VarTupleType() | inspect.SetType() | inspect.FrozenSetType():
            most = 0 if depth > _DEPTH else 3
            return [draw(plain(kind.item_type, depth + 1)) for _ in range(draw(st.integers(0, most)))]
        case inspect.TupleType():
            return [draw(plain(item, depth + 1)) for item in kind.item_types]
        case inspect.DictType():
            count = draw(st.integers(0, 2))
            return {draw(st.integers(0, 9)): draw(plain(kind.value_type, depth + 1)) for _ in range(count)}
        case inspect.EnumType():
            return draw(st.sampled_from([each.value for each in kind.cls]))
        case inspect.LiteralType():
            return draw(st.sampled_from(list(kind.values)))
        case inspect.IntType():
            return draw(INTS)
        case inspect.FloatType():
            return draw(FLOATS)
        case inspect.StrType():
            return draw(TEXTS)
        case inspect.BytesType():
            return draw(BYTES)
        case inspect.BoolType():
            return draw(st.booleans())
        case inspect.NoneType():
            return None
        case _:
            return draw(NOISE)


def shaped(kind: Any, encode: Any = msgspec.msgpack.encode) -> st.SearchStrategy[bytes]:
    """Bytes that decode to the type, or nearly."""

    def encoded(value: Any) -> bytes:
        try:
            data: bytes = encode(value)
        except (OverflowError, TypeError, UnicodeEncodeError, msgspec.MsgspecError):
            return b""
        return data

    return plain(inspect.type_info(kind)).map(encoded)
