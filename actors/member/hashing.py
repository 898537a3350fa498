"""Hashes a member's content, so that members can be compared.

A log entry (``HashContent``) fixes the moment, so all members hash the state at the same applied index and compaction
revision. Hashing runs in the background, in slices, with a bounded share of a core. The hashes are read from the
members' status and compared elsewhere (``consistency.py``): where a majority has one hash, the others are damaged;
without a majority it is not known which are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ...errors import DataCorrupted
from ...limits import MAX_WAITING_HASHES, REMEMBERED_HASHES
from ...schema.operator_frames import ContentHash
from ...store.state.content_hash import ContentHasher
from .snapshots import Background


class Hashing:
    """Hashes one member's content whenever the log says so, one hash after another, in the order of the log.

    Args:
        background: runs slow work outside the loop.
        throttle: called after each slice of work; gives way to other work.
        applied: the applied index at the start.
    """

    def __init__(self, background: Background, throttle: Callable[[], None], applied: int) -> None:
        self._background = background
        self._throttle = throttle
        self._waiting: deque[tuple[ContentHasher, Callable[[DataCorrupted], None]]] = deque()
        self._works = False
        self.results: tuple[ContentHash, ...] = ()
        """The newest hashes, oldest first. For any thread."""
        self.begins = applied
        """For entries up to this index there is no hash and will be none. For any thread."""

    def hash_content(self, content: ContentHasher, damaged: Callable[[DataCorrupted], None]) -> None:
        """Hash this content after those before it. If too many wait, the oldest is dropped.

        Args:
            damaged: called in the loop if the content cannot be read.
        """
        self._waiting.append((content, damaged))
        if len(self._waiting) > MAX_WAITING_HASHES:
            self._waiting.popleft()
        if not self._works:
            self._next()

    def _next(self) -> None:
        """Hash the oldest content that waits. A failure concerns this content only: the next one is hashed anyway."""
        if not self._waiting:
            return
        content, damaged = self._waiting.popleft()
        self._works = True

        def work() -> None:
            digest = content.digest(self._throttle)
            result = ContentHash(content.index, content.revision, content.compact_revision, digest)
            self.results = (*self.results, result)[-REMEMBERED_HASHES:]

        def then(error: Exception | None) -> None:
            self._works = False
            if isinstance(error, DataCorrupted):
                damaged(error)
            self._next()

        self._background(work, then)

    def state_replaced(self, applied: int) -> None:
        """A snapshot has replaced the state, with entries up to this index applied."""
        self.begins = applied
