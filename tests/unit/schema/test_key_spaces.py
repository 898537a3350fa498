"""Which names stored keys belong to."""

from __future__ import annotations

import pytest

from raykeeper.actors.recipes.sync_async import quoted
from raykeeper.schema.key_range import KeyRange
from raykeeper.schema.key_spaces import UNUSED_KEY, is_unused, names_of


@pytest.mark.parametrize(
    ("stored", "names"),
    [
        (KeyRange(b"ua"), KeyRange(b"a")),
        (KeyRange(b"u"), KeyRange(b"")),
        (KeyRange(b"ua", b"uc"), KeyRange(b"a", b"c")),
        (KeyRange(b"ua", b"v"), KeyRange(b"a", b"")),
        (KeyRange(b"u", b"v"), KeyRange(b"", b"")),
        (KeyRange(b"ua", b""), None),
        (KeyRange(b"ua", b"w"), None),
        (KeyRange(b"rlock/team%2Fx/p/00"), KeyRange(b"team/x")),
        (KeyRange(b"rcounter/a"), KeyRange(b"a")),
        (KeyRange(b"rlock/a/", b"rlock/a0"), KeyRange(b"a")),
        (KeyRange(b"rlock/a/p/", b"rlock/a/p0"), KeyRange(b"a")),
        (KeyRange(b"rlock/a/p/", b"rlock/a/"), None),
        (KeyRange(b"rlock/a/p/", b"rlock/b0"), None),
        (KeyRange(b"rlock/a/p/", b"rlock/a00"), None),
        (KeyRange(b"rlock/a", b"rlock/b"), None),
        (KeyRange(b"rlock/", b"rlock0"), None),
        (KeyRange(b"rlock/a/", b""), None),
        (KeyRange(b"rlock/"), None),
        (KeyRange(b"rlock"), None),
        (KeyRange(b"r\0quiet"), None),
        (KeyRange(b"x"), None),
        (KeyRange(b""), None),
        (KeyRange(b"", b""), None),
    ],
)
def test_names_of_stored_keys(stored: KeyRange, names: KeyRange | None) -> None:
    assert names_of(stored) == names


def test_nothing_else_counts_as_never_written() -> None:
    assert is_unused(KeyRange(UNUSED_KEY))
    assert is_unused(KeyRange(b"r\0", b"r\1"))
    assert not is_unused(KeyRange(b"r\0", b"r\2"))
    assert not is_unused(KeyRange(b"r\0", b""))
    assert not is_unused(KeyRange(b"q", b"r\1"))
    assert not is_unused(KeyRange(b"rlock/a"))


@pytest.mark.parametrize("name", [b"a", b"a/b", b"%", b"%2F", b"a%/%25", b"/"])
def test_names_are_quoted_as_recipes_do(name: bytes) -> None:
    assert names_of(KeyRange(b"rlock/" + quoted(name) + b"/p/1")) == KeyRange(name)
