"""Whether the members hold the same: each hashes its content as of one entry of the log, and the hashes are compared.

The entry (``HashContent``) says *when*, so all look at the same applied index and the same compaction mark. Hashing
runs in the background, in slices, and takes a bounded share of a core. Whoever compares needs no part in it: it reads
the hashes from the members' status. With a majority for one hash, the others are damaged; without, nobody can tell.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from ..errors import DataCorrupted
from ..limits import MAX_WAITING_HASHES, REMEMBERED_HASHES
from ..store.content import Content
from .protocol import ContentHash
from .snapshots import Background


class Hashing:
    """Hashes one member's content whenever the log asks for it: one after the other, in the order of the log.

    Args:
        background: runs slow work outside the loop.
        breathe: called after each slice of work; waits so long that others can run.
        applied: index of the last entry that is applied already.
    """

    def __init__(self, background: Background, breathe: Callable[[], None], applied: int) -> None:
        self._background = background
        self._breathe = breathe
        self._waiting: deque[tuple[Content, Callable[[DataCorrupted], None]]] = deque()
        self._works = False
        self.results: tuple[ContentHash, ...] = ()
        """The newest hashes, oldest first. For any thread."""
        self.begins = applied
        """For this index and those before it there is no hash, and there will be none. For any thread."""

    def take(self, content: Content, damaged: Callable[[DataCorrupted], None]) -> None:
        """Hash this content when those before it are done. If many wait, the oldest is not hashed at all.

        Args:
            damaged: called in the loop if it cannot be read.
        """
        self._waiting.append((content, damaged))
        if len(self._waiting) > MAX_WAITING_HASHES:
            self._waiting.popleft()
        if not self._works:
            self._next()

    def _next(self) -> None:
        if not self._waiting:
            return
        content, damaged = self._waiting.popleft()
        self._works = True

        def work() -> None:
            digest = content.digest(self._breathe)
            result = ContentHash(content.index, content.revision, content.compact_revision, digest)
            self.results = (*self.results, result)[-REMEMBERED_HASHES:]

        def then(error: Exception | None) -> None:
            self._works = False
            if isinstance(error, DataCorrupted):
                damaged(error)
            self._next()

        self._background(work, then)

    def state_replaced(self, applied: int) -> None:
        """Another state has taken the place of the one before, with these entries applied."""
        self.begins = applied


class Comparison(msgspec.Struct, frozen=True):
    """What came of comparing the members' contents.

    Attributes:
        index, revision, compact_revision: of which the contents were compared: log index, newest revision, and the
            compaction mark; 0 if no member has said.
        hashes: hash of the content, in hexadecimal, by member.
        odd: members whose content is not that of the majority; of all that differ, if there is no majority.
        certain: whether a majority of the configuration agrees, so that it is known who is wrong.
        silent: members that have not said; they may be down, or too slow.
    """

    index: int
    revision: int
    compact_revision: int
    hashes: Mapping[int, str]
    odd: tuple[int, ...]
    certain: bool
    silent: tuple[int, ...]

    @property
    def equal(self) -> bool:
        """Whether all that have said hold the same."""
        return not self.odd


def judge(index: int, found: Mapping[int, ContentHash], voters: Sequence[int], everybody: Sequence[int]) -> Comparison:
    """Compare what the members have said of their contents at a log index.

    Args:
        voters: the voting members of the configuration; a majority of them decides who is right.
        everybody: voters and learners.
    """
    hashes = {member: found[member].digest for member in everybody if member in found}
    counts = Counter(hashes[member] for member in voters if member in hashes)
    best, votes = counts.most_common(1)[0] if counts else ("", 0)
    certain = 2 * votes > len(voters)
    if len(set(hashes.values())) <= 1:
        odd: tuple[int, ...] = ()
    elif certain:
        odd = tuple(member for member in hashes if hashes[member] != best)
    else:
        odd = tuple(hashes)
    one = next(iter(found.values()), ContentHash(index, 0, 0, ""))
    silent = tuple(member for member in everybody if member not in hashes)
    return Comparison(index, one.revision, one.compact_revision, hashes, odd, certain, silent)
