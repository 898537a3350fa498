"""All that a state means, as of one log index, as a hash: what members compare to find the one that is damaged.

At equal applied index the logical content is equal on every member, however far each has come with removing what was
compacted, and however it batched answers. Taking the content only opens iterators, which keep seeing the database as it
was; reading it takes as long as the data is long, and goes in slices, on any thread, beside everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from ..limits import HASH_SLICE_RECORDS
from . import sessions as sessions_module
from .engine import Engine
from .mvcc import surviving_history

if TYPE_CHECKING:
    from .state import State

SETTLED_META = (b"alarm/", b"member/")
"""Beginnings of the keys in ``meta`` that belong to the content, beside what ``State`` holds in attributes."""

_encode = msgspec.msgpack.Encoder().encode
_RANGES: tuple[tuple[str, bytes, bytes | None], ...] = (
    ("versions", b"", None),
    ("keys", b"", None),
    ("leases", b"", None),
    ("sessions", b"s", b"t"),
    ("sessions", b"a", b"b"),
    ("sessions", b"r", b"s"),
    *(("meta", prefix, prefix + b"\xff") for prefix in SETTLED_META),
)


class _Frozen:
    """A source whose iterators were all opened at the same moment; each can be had once."""

    def __init__(self, engine: Engine) -> None:
        self._iterators = {wanted: engine.iterate(*wanted) for wanted in _RANGES}

    def iterate(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._iterators.pop((family, start, end))


class Content:
    """The content of a state as of now. Made by the state's owner; then any thread may ask for the digest, once.

    Args:
        state: between two calls of ``apply``. When it is closed, ``digest`` ends with ``Unavailable``.
        routine: whether a leader asked for it on its own.
    """

    def __init__(self, state: State, *, routine: bool = False) -> None:
        self._state = state
        self.routine = routine
        self.index = state.applied_index
        """The log index that the content is of."""
        self.term = state.applied_term
        self.revision = state.revision
        self.compact_revision = state.compact_revision
        head = (state.applied_index, state.applied_term, state.revision, state.compact_revision)
        self._head = (_encode(head), _encode(state.configuration), state.settings, state.clock.encoded())
        with state.reading() as engine:
            self._source = _Frozen(engine)

    def digest(self, breathe: Callable[[], None] = lambda: None) -> str:
        """The hash, in hexadecimal. Reads everything.

        Args:
            breathe: called after each slice, with the database let go; may wait, or raise to give up.

        Raises:
            Unavailable: the state was closed.
            DataCorrupted: what lies on the disk cannot be read, or does not fit together.
        """
        digest = hashlib.sha256()
        parts = self._parts()
        more = True
        while more:
            with self._state.reading():
                for count, part in enumerate(parts, start=1):
                    digest.update(len(part).to_bytes(8, "big"))
                    digest.update(part)
                    if count == HASH_SLICE_RECORDS:
                        break
                else:
                    more = False
            breathe()
        return digest.hexdigest()

    def _parts(self) -> Iterator[bytes]:
        yield from self._head
        for key, record in surviving_history(self._source, self.compact_revision):
            yield key
            yield record
        for pair in self._source.iterate("leases"):
            yield from pair
        yield from sessions_module.content(self._source)
        for prefix in SETTLED_META:
            for pair in self._source.iterate("meta", prefix, prefix + b"\xff"):
                yield from pair
