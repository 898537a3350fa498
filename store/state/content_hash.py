"""The hash of a state's logical content at one log index: members compare it to find one that is damaged.

At equal applied index the logical content is equal on every member, whatever each has already removed after a
compaction, and however it batched answers. Taking the content only opens iterators, which keep showing the database as
it was. Reading it takes time in proportion to the data; it goes in slices, on any thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from ...limits import HASH_SLICE_RECORDS
from ..engine.interface import Engine
from ..state import sessions
from .auth import AUTH_PREFIX
from .clients import CLIENTS
from .mvcc import content_ranges, surviving_content

if TYPE_CHECKING:
    from .machine import State

OF_THE_CLUSTER = (b"alarm/", b"event/", b"member/")
"""Prefixes of keys in ``meta`` that belong to the content and to one cluster."""
_META_PREFIXES = (*OF_THE_CLUSTER, AUTH_PREFIX)
"""Prefixes of keys in ``meta`` that belong to the content, besides what ``State`` holds in attributes."""

_encode = msgspec.msgpack.Encoder().encode
_RANGES: tuple[tuple[str, bytes, bytes | None], ...] = (
    ("leases", b"", None),
    ("sessions", b"s", b"t"),
    ("sessions", b"a", b"b"),
    ("sessions", *CLIENTS),
    ("sessions", b"r", b"s"),
    *(("meta", prefix, prefix + b"\xff") for prefix in _META_PREFIXES),
)


class _FrozenSource:
    """A source whose iterators were all opened at the same time; each can be used once."""

    def __init__(self, engine: Engine, compact_revision: int, revision: int) -> None:
        ranges = (*content_ranges(compact_revision, revision), *_RANGES)
        self._iterators = {wanted: engine.iterate(*wanted) for wanted in ranges}

    def iterate(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        return self._iterators.pop((family, start, end))


class ContentHasher:
    """The content of a state as of now. The state's owner creates it; then one thread may ask for the digest, once.

    Args:
        state: between two calls of ``apply``. Once it is closed, ``digest`` raises ``Unavailable``.
        routine: whether it is a leader's periodic check.
    """

    def __init__(self, state: State, *, routine: bool = False) -> None:
        self._state = state
        self.routine = routine
        self.index = state.applied_index
        """The log index of the content."""
        self.term = state.applied_term
        self.revision = state.revision
        self.compact_revision = state.compact_revision
        head = (state.applied_index, state.applied_term, state.revision, state.compact_revision)
        self._head = (_encode(head), _encode(state.configuration), state.settings, state.clock.encoded())
        with state.reading() as engine:
            self._source = _FrozenSource(engine, self.compact_revision, self.revision)

    def digest(self, throttle: Callable[[], None] = lambda: None) -> str:
        """The hash, in hexadecimal. Reads everything.

        Args:
            throttle: called after each slice of work, while the database is not held; may wait, or raise to give up.

        Raises:
            Unavailable: the state was closed.
            DataCorrupted: the data on disk cannot be read, or is inconsistent.
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
            throttle()
        return digest.hexdigest()

    def _parts(self) -> Iterator[bytes]:
        yield from self._head
        yield from surviving_content(self._source, self.compact_revision, self.revision)
        for pair in self._source.iterate("leases"):
            yield from pair
        yield from sessions.session_content(self._source)
        for prefix in _META_PREFIXES:
            for pair in self._source.iterate("meta", prefix, prefix + b"\xff"):
                yield from pair
