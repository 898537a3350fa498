"""Reads that wait until they are allowed to run.

A linearizable read waits for two things: a quorum must confirm that the leader still led after the read arrived
(ReadIndex, thesis section 6.4), and this member must have applied the commit index that comes with the confirmation.
All reads of one turn share a round. A serializable read waits for a revision at most. A lone read is confirmed by its
client (``core/confirmed_read.py``), and waits here for the second thing alone. The read itself runs elsewhere.

However late a round is confirmed, it was started after its reads had arrived, so it is valid for them. The core repeats
lost messages, and reports the rounds that it gives up, so no timer is needed here.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...limits import MAX_READ_ROUNDS
from ...raft import Node, Ready
from ...schema.frames import Refusal, Refused
from ...store.state.machine import State
from .events import LoneReadAsked, ReadAsked


class ReadRounds:
    """Reads that have arrived and are not allowed yet."""

    def __init__(self) -> None:
        self._waiting: list[ReadAsked] = []
        self._asked: dict[int, list[ReadAsked]] = {}
        """The reads of each round that the core has not confirmed or given up, by context."""
        self._confirmed: list[tuple[int, list[ReadAsked]]] = []
        self._awaiting_revision: list[ReadAsked] = []
        self._context = 0
        self.failed = 0
        """Reads whose time has passed so far; for metrics."""

    def add_read(self, read: ReadAsked, state: State) -> None:
        """Add a read; a serializable one may be allowed at once."""
        if not read.serializable:
            self._waiting.append(read)
        elif state.revision >= read.at_least:
            read.done(None)
        else:
            self._awaiting_revision.append(read)

    def add_lone_read(self, lone: LoneReadAsked, node: Node, state: State) -> None:
        """Add a read that its client confirms: it needs no round, and waits for what is committed now to be applied
        (:meth:`applied`). Without voters that could confirm it, it is added as any other."""
        voters, term = node.confirming_voters(), node.term
        if not voters:
            self.add_read(lone.ordinary, state)
            return

        def allowed(refused: Refused | None) -> None:
            if refused is None:
                lone.answer(term, voters)
            else:
                lone.ordinary.done(refused)

        self._confirmed.append((node.commit_index, [ReadAsked(lone.ordinary.deadline, allowed)]))

    def start_round(self, node: Node) -> None:
        """Start one round for all waiting reads, if a leader is known and not too many rounds are open."""
        if self._waiting and node.leader and len(self._asked) < MAX_READ_ROUNDS:
            self._context += 1
            self._asked[self._context] = self._waiting
            self._waiting = []
            node.read_index(self._context)

    def round_answered(self, ready: Ready, state: State) -> None:
        """Handle the rounds that the core has confirmed, and those that it gave up, whose reads wait for another."""
        for context, index in ready.read_states:
            reads = self._asked.pop(context, [])
            if state.applied_index >= index:
                _allow(reads)
            elif reads:
                self._confirmed.append((index, reads))
        for context in ready.failed_reads:
            self._waiting += self._asked.pop(context, [])

    def applied(self, state: State) -> None:
        """Allow the reads that waited for no more than what is applied."""
        if self._confirmed:
            later = []
            for index, reads in self._confirmed:
                if index <= state.applied_index:
                    _allow(reads)
                else:
                    later.append((index, reads))
            self._confirmed = later
        if self._awaiting_revision:
            revision = state.revision
            allowed = [read for read in self._awaiting_revision if read.at_least <= revision]
            self._awaiting_revision = [read for read in self._awaiting_revision if read.at_least > revision]
            _allow(allowed)

    @property
    def pending(self) -> int:
        """How many reads wait. Any thread."""
        asked = sum([len(reads) for reads in list(self._asked.values())])
        confirmed = sum([len(reads) for _, reads in self._confirmed])
        return len(self._waiting) + len(self._awaiting_revision) + asked + confirmed

    @property
    def await_commits(self) -> bool:
        """Whether reads wait for entries to be applied."""
        return bool(self._confirmed or self._awaiting_revision)

    def refuse_late(self, now: float) -> None:
        """Refuse the reads whose deadline has passed."""
        before = self.pending
        self._waiting = _still_in_time(self._waiting, now)
        self._awaiting_revision = _still_in_time(self._awaiting_revision, now)
        self._confirmed = [(index, _still_in_time(reads, now)) for index, reads in self._confirmed]
        self._asked = {context: _still_in_time(reads, now) for context, reads in self._asked.items()}
        self.failed += before - self.pending

    def refuse_all(self, refused: Refused) -> None:
        """Refuse all reads: this member stops."""
        everything = [self._waiting, self._awaiting_revision]
        everything += [reads for _, reads in self._confirmed]
        everything += self._asked.values()
        self._waiting, self._awaiting_revision, self._confirmed, self._asked = [], [], [], {}
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
