"""Rounds of heartbeats, and what a confirmed round allows: linearizable reads (thesis, section 6.4) and leases (6.4.1).

Rounds are numbered within a term. An answer to one round confirms all rounds before it, so the next heartbeat makes up
for a lost one. A round is confirmed once a quorum has answered it; a leader that is the only voter confirms itself. A
reader that is alone may confirm the leader without a round (:meth:`HeartbeatRounds.confirming_voters`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .core import LEADER
from .messages import Heartbeat, HeartbeatResponse, ReadIndex, ReadIndexResponse
from .progress import Progress, ProgressState
from .quorum import has_quorum, quorum_value
from .replication import Replication


class HeartbeatRounds(Replication):
    """Heartbeats, leases and reads."""

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _start_round(self, *, periodic: bool) -> None:
        """Send a heartbeat: a periodic one to every member, one that confirms reads only to voters, first to those that
        make up a quorum (see ``quorum_first``).

        Reads that wait join this round, with the current commit index. Reads that arrive later need a later round:
        this one could not show that the leader still led when they arrived.
        """
        self._round += 1
        reads = self._reads
        if reads.waiting and not reads.confirming and self.committed_in_term:
            reads.confirming, reads.waiting = reads.waiting, []
            reads.round, reads.index = self._round, self.log.commit_index
        promise = 0.0 if self._lease_dropped else self.config.promise
        if promise:
            self._rounds.add_round(self._round, promise, self.config.clock_drift, self._latest)
        voters = None if periodic else {*self.configuration.voters, *self.configuration.outgoing}
        waiting: Sequence[int] = () if periodic else self._waiting_followers()
        for member, progress in self.progress.items():
            if member == self.id:
                progress.acked_round = self._round
            elif member in waiting:
                self.sends_deferred = True
            elif voters is None or member in voters:
                self._send_heartbeat(member, progress, promise, periodic=periodic)
        self._on_rounds_answered()

    def _send_heartbeat(self, member: int, progress: Progress, promise: float, *, periodic: bool) -> None:
        commit = min(progress.match_index, self.log.commit_index)
        self._messages.append(Heartbeat(self.id, member, self.term, commit, self._round, promise))
        progress.on_heartbeat_sent(self._round, commit, self.log.last_index, self._earliest, periodic=periodic)
        progress.ask(self._latest, round_=self._round)

    def send_deferred(self) -> None:
        """Leader: send to all followers the entries that they have not been sent yet, and the heartbeat of a round that
        a quorum has not confirmed (see ``sends_deferred``)."""
        super().send_deferred()
        if self._reads.confirming:
            promise = 0.0 if self._lease_dropped else self.config.promise
            for voter in self.configuration.voters:
                progress = self.progress[voter]
                if voter != self.id and progress.sent_heartbeat[0] < self._round:
                    self._send_heartbeat(voter, progress, promise, periodic=False)

    def _on_heartbeat(self, message: Heartbeat) -> None:
        if not 0 <= message.promise <= self.config.max_promise:
            return  # malformed
        self._hear_leader(message.sender)
        if message.promise:
            self._promise.extend(message.promise, self._earliest)
        self.log.commit_to(message.leader_commit)
        snapshot_from = self._min_snapshot_index() if self.needs_snapshot else 0
        self._messages_after.append(
            HeartbeatResponse(self.id, message.sender, self.term, message.context, snapshot_from)
        )

    def _on_heartbeat_response(self, message: HeartbeatResponse) -> None:
        """A member is alive and has answered a round, with all rounds before it: it confirms this leader, and its
        promise runs from the start of that round. A sign of life is also the time to repeat what may have been lost:
        a probe, a chunk, or entries in flight.
        """
        progress = self.progress.get(message.sender)
        if progress is None or message.context > self._round:
            return
        progress.on_heartbeat_response(message.context, self._earliest)
        progress.note_answer(self._latest)
        progress.promised_until = max(progress.promised_until, self._rounds.promised_until(message.context))
        self._count_promises()
        progress.on_snapshot_wanted(message.snapshot_from)
        if progress.state is ProgressState.SNAPSHOT or progress.lost_state:
            # It is alive, but the last chunk has had no answer for a whole election timeout.
            if progress.heartbeats_since_send * self.config.heartbeat_ticks >= self.config.election_ticks:
                progress.resend_chunk()
            self._sends_due = True
        if progress.state is ProgressState.PROBE:
            self._sends_due = True
        elif progress.state is ProgressState.REPLICATE and progress.stalled:
            progress.stalled = False
            self._send_empty(message.sender, progress)
        self._on_rounds_answered()

    def _on_rounds_answered(self) -> None:
        reads = self._reads
        if not reads.confirming:
            return
        confirmed = quorum_value(self.configuration, lambda voter: self.progress[voter].acked_round)
        if confirmed >= reads.round:
            answered, reads.confirming = reads.confirming, []
            self._answer_reads(answered, reads.index)

    # -- leases -------------------------------------------------------------------------------------------------------

    def _count_promises(self) -> None:
        """Compute until when a quorum elects no other leader. This leader counts without limit: it does not vote while
        it leads."""
        if not self.config.promise:
            return
        ours, progress = self.id, self.progress
        self._lease_until = quorum_value(
            self.configuration, lambda voter: math.inf if voter == ours else progress[voter].promised_until
        )

    def _holds_lease(self) -> bool:
        """Whether no other leader can have been elected yet; see ``leader_lease``."""
        return self._latest < self._lease_until and not self._lease_dropped and self.role == LEADER

    # -- reads --------------------------------------------------------------------------------------------------------

    def read_index(self, context: int) -> None:
        """Ask for an index at which a read is linearizable. The answer comes in ``Ready.read_states``.

        Any role may ask. Without a leader the read waits for one, until the next election timeout at most.

        Args:
            context: identifies the read, or the owner's batch of reads; unique within this object.
        """
        self._reads.add_read(0, context)

    def confirming_voters(self) -> tuple[int, ...]:
        """The voters each of which makes a quorum with this leader, if it may answer a read now that the reader itself
        confirms, by asking one of them for its term. Else empty, as everywhere where one other voter is not enough.

        The reader asks that voter after the read has begun, too. So what it says confirms this leader as its answer to
        a heartbeat would, and the read is linearizable at this leader's commit index (``core/confirmed_read.py`` has
        the argument).
        """
        configuration, ours = self.configuration, self.id
        if not self.committed_in_term or self.config.promise or configuration.joint:
            return ()
        others = tuple([voter for voter in configuration.voters if voter != ours])
        if not all(has_quorum(configuration, (ours, voter)) for voter in others):
            return ()
        return others

    def _reads_due(self) -> bool:
        """Whether waiting reads can go to a round, be answered by the lease, or be sent to the leader."""
        reads = self._reads
        if not reads.waiting:
            return False
        if self.role == LEADER:
            return self.committed_in_term and (not reads.confirming or self._holds_lease())
        return self.leader != 0 and not reads.forwarded

    def _advance_reads(self) -> None:
        """Answer waiting reads by the lease, or start a round for them; a follower sends one request for all its reads.
        Its number is new, so that a late answer to an earlier request cannot be taken for this one's."""
        reads = self._reads
        if self.role == LEADER:
            if self._holds_lease():
                answered, reads.waiting = reads.waiting, []
                self._answer_reads(answered, self.log.commit_index)
            else:
                self._start_round(periodic=False)
            return
        reads.forwarded = [context for _, context in reads.waiting]
        reads.waiting = []
        reads.batch += 1
        self._forward_reads()

    def _answer_reads(self, answered: list[tuple[int, int]], index: int) -> None:
        for requester, context in answered:
            if requester:
                progress = self.progress.get(requester)
                if progress is not None:  # it runs the read once it has applied that
                    self._send_to(requester, progress, {})
                    self._tell_commit_to(requester, progress)
                self._messages.append(ReadIndexResponse(self.id, requester, self.term, context, index))
            else:
                self._reads.states.append((context, index))

    def _forward_reads(self) -> None:
        self._reads.forwarded_age = 0
        self._messages.append(ReadIndex(self.id, self.leader, self.term, self._reads.batch))

    def _tick_reads(self) -> None:
        """Ask the leader again: the request or the answer may be lost."""
        reads = self._reads
        if reads.forwarded:
            reads.forwarded_age += 1
            if reads.forwarded_age > self.config.heartbeat_ticks:
                self._forward_reads()

    def _on_read_index(self, message: ReadIndex) -> None:
        if message.sender in self.progress:
            self._reads.add_read(message.sender, message.context)

    def _on_read_index_response(self, message: ReadIndexResponse) -> None:
        reads = self._reads
        if reads.forwarded and message.context == reads.batch and message.sender == self.leader:
            reads.states += [(context, message.index) for context in reads.forwarded]
            reads.forwarded = []
