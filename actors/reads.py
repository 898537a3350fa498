"""Reads that wait until they may run.

A linearizable read waits for two things: a quorum's word that the leader still led after the read arrived (ReadIndex,
thesis section 6.4), and this member's state having reached the index that came with it. All reads of one turn share
one round. A serializable read waits for a revision at most. The read itself runs elsewhere, on the reader's thread.

However late a round is confirmed, it was asked for after its reads had arrived, so it holds for them. Lost messages are
the core's to make good, and where it gives a round up it says so: nothing is asked again after a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..limits import MAX_READ_ROUNDS
from ..store.state import State
from .events import ReadAsked
from .protocol import Refusal, Refused
from .raft import Node, Ready


class ReadRounds:
    """Reads on their way from being asked to being allowed."""

    def __init__(self) -> None:
        self._waiting: list[ReadAsked] = []
        self._asked: dict[int, list[ReadAsked]] = {}
        """What the core was asked for, by context, until it says what became of it."""
        self._confirmed: list[tuple[int, list[ReadAsked]]] = []
        self._behind: list[ReadAsked] = []
        self._context = 0

    def add(self, read: ReadAsked, state: State) -> None:
        """Take a read in; a serializable one may be allowed at once."""
        if not read.serializable:
            self._waiting.append(read)
        elif state.revision >= read.at_least:
            read.done(None)
        else:
            self._behind.append(read)

    def ask(self, node: Node) -> None:
        """Start one round for all reads that wait, if there is a leader to ask, and not too many rounds are open."""
        if self._waiting and node.leader and len(self._asked) < MAX_READ_ROUNDS:
            self._context += 1
            self._asked[self._context] = self._waiting
            self._waiting = []
            node.read_index(self._context)

    def answered(self, ready: Ready, state: State) -> None:
        """Take in which rounds the core has confirmed, and which it gave up (those are asked again)."""
        for context, index in ready.read_states:
            reads = self._asked.pop(context, [])
            if state.applied_index >= index:
                _allow(reads)
            elif reads:
                self._confirmed.append((index, reads))
        for context in ready.failed_reads:
            self._waiting += self._asked.pop(context, [])

    def applied(self, state: State) -> None:
        """The state has moved on: allow what waited for that."""
        if self._confirmed:
            later = []
            for index, reads in self._confirmed:
                if index <= state.applied_index:
                    _allow(reads)
                else:
                    later.append((index, reads))
            self._confirmed = later
        if self._behind:
            revision = state.revision
            allowed = [read for read in self._behind if read.at_least <= revision]
            self._behind = [read for read in self._behind if read.at_least > revision]
            _allow(allowed)

    def give_up(self, now: float) -> None:
        """Refuse the reads whose time is over."""
        self._waiting = _still_in_time(self._waiting, now)
        self._behind = _still_in_time(self._behind, now)
        self._confirmed = [(index, _still_in_time(reads, now)) for index, reads in self._confirmed]
        self._asked = {context: _still_in_time(reads, now) for context, reads in self._asked.items()}

    def refuse_all(self, refused: Refused) -> None:
        """This member stops."""
        everything = [self._waiting, self._behind]
        everything += [reads for _, reads in self._confirmed]
        everything += self._asked.values()
        self._waiting, self._behind, self._confirmed, self._asked = [], [], [], {}
        for reads in everything:
            for read in reads:
                read.done(refused)


def _allow(reads: Sequence[ReadAsked]) -> None:
    for read in reads:
        read.done(None)


def _still_in_time(reads: list[ReadAsked], now: float) -> list[ReadAsked]:
    if all(read.deadline > now for read in reads):
        return reads
    kept = []
    for read in reads:
        if read.deadline > now:
            kept.append(read)
        else:
            read.done(Refused(Refusal.TIMED_OUT))
    return kept
