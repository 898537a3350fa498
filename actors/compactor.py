"""The leader forgets history by itself (etcd: auto-compaction), by the number of revisions or by their age.

By age it notes, now and then, which revision was the newest, on its own monotonic clock. A new leader knows no times
and begins anew, so history can only be kept for longer than it was asked to, never for less. What is to be forgotten
goes through the log like any compaction, and the setting is that of the replicated state: ``Configure`` changes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..limits import COMPACTION_LOOK, COMPACTION_SAMPLES, COMPACTION_SLACK, Compaction, decode_settings
from ..store.commands import Command, CompactHistory
from ..store.state import State


class Compactor:
    """One leader's compaction. Does nothing on a member that does not lead.

    Args:
        state: the member's state as it is now.
        propose: puts a command of the member's own into the log; its index, 0 if it was not taken.
    """

    def __init__(self, state: Callable[[], State], propose: Callable[[Command], int]) -> None:
        self._state = state
        self._propose = propose
        self._leads = False
        self._next = 0.0
        self._samples: deque[tuple[float, int]] = deque()
        """(time, newest revision then), oldest first."""
        self._read = b""
        self._compaction = Compaction()

    def lead(self, term: int, now: float) -> None:
        """This member has become leader."""
        self._leads = True
        self._next = now
        self._samples.clear()

    def stop(self) -> None:
        """This member does not lead (any more)."""
        self._leads = False

    def work(self, now: float) -> None:
        """Forget what is older than what is to be kept. For a leader that has committed in its term."""
        if not self._leads or now < self._next:
            return
        self._next = now + COMPACTION_LOOK
        compaction, state = self._settings(), self._state()
        if compaction.mode == "off":
            return
        if compaction.mode == "revisions":
            mark, slack = state.revision - compaction.keep, compaction.keep // COMPACTION_SLACK
        else:
            mark, slack = self._revision_before(now - compaction.keep, now, compaction.keep, state.revision), 0
        if mark > state.compact_revision + slack and mark > 1:  # revision 1 is the empty store
            self._propose(CompactHistory(mark))

    def _settings(self) -> Compaction:
        settings = self._state().settings
        if settings != self._read:
            self._read, self._compaction = settings, decode_settings(settings).compaction
        return self._compaction

    def _revision_before(self, then: float, now: float, keep: float, revision: int) -> int:
        """The newest revision that is known to have existed at a time; 0 if none is."""
        samples = self._samples
        if not samples or now - samples[-1][0] >= keep / COMPACTION_SAMPLES:
            samples.append((now, revision))
        while len(samples) > 1 and samples[1][0] <= then:
            samples.popleft()
        return samples[0][1] if samples[0][0] <= then else 0
