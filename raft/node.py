"""A Raft node without I/O, clock, threads or randomness of its own (the interface of etcd's ``RawNode``).

The inputs are ``tick``, ``step``, ``propose``, ``read_index`` and a few more; the output is ``Ready``. The owner's
loop:

    node.step(message) / node.propose(...) / node.tick() ...
    while node.has_ready():
        ready = node.ready()
        send(ready.messages)
        log.append(ready.entries, ready.hard_state, sync=ready.must_sync)
        send(ready.messages_after)
        apply(ready.committed)
        node.advance(ready)

Between ``ready`` and ``advance`` only ``apply_configuration`` and the ``snapshot_...`` methods may be called. The same
inputs give the same outputs. This file holds the checks of address and term that every message passes, and the tables
of handlers by role. A message whose type the table of the role does not list is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .core import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE
from .elections import Elections
from .log import LogInconsistent
from .messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)
from .ready import Ready

MAX_TERM_LEAP = 1 << 32
"""How far the term of a message may be ahead: more than a century of elections. A node that followed one further ahead
would take all others with it, and terms could run out."""
_FROM_LEADERS = (AppendEntries, Heartbeat, InstallSnapshot)
"""Sent only by the leader of their term."""


class Node(Elections):
    """One member of the consensus.

    Args:
        config: its settings.
        storage: the durable state; read, never written.
        hard_state: as last written.
        configuration: the one in effect at ``applied``. Empty for a new member that has to learn it.
        applied: the last entry that the state machine has applied; may be ahead of ``hard_state.commit``.
        rng: for election timeouts. Must differ between members and between starts of one member.
        now: the owner's clock (see ``set_time``).
        needs_snapshot: the state machine was lost. Then ``applied`` is the base of the log (or later), and
            ``configuration`` is the one in effect there. Of the committed entries, only configurations need to be
            applied. After a snapshot all entries after it are handed out again.

    Raises:
        LogInconsistent: log, hard state and applied index do not belong together.
    """

    # -- input --------------------------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Handle a message. Late, repeated, reordered and misdirected ones do no harm.

        The order of the checks matters: a vote request that is ignored must not raise the term, and a message
        is handled in its own term only.

        Raises:
            LogInconsistent: it contradicts a committed entry: some member has lost data that it had acknowledged.
        """
        sender, term = message.sender, message.term
        if message.to != self.id or sender == self.id or sender < 1 or term - self.term > MAX_TERM_LEAP:
            return
        if type(message) is RequestVote:
            if self._ignores_candidate(message):
                return
        elif type(message) is RequestVoteResponse and message.commit_index:
            self._learn_commit(message)
        if term != self.term:
            if term < self.term:
                self._on_old_term(message)
                return
            if not self._enter_term(message):
                return
        handler = _HANDLERS[self.role].get(type(message))
        if handler is not None:
            handler(self, message)

    def _on_old_term(self, message: Message) -> None:
        """Let a deposed leader know the newer term, and answer a pre-vote; ignore the rest."""
        if isinstance(message, _FROM_LEADERS):
            self._refuse_stale_leader(message.sender)
        elif type(message) is RequestVote and message.pre_vote:
            self._on_vote_request(message)

    def _enter_term(self, message: Message) -> bool:
        """Enter the newer term of a message, if its type calls for that. Returns whether to handle the message."""
        if isinstance(message, _FROM_LEADERS):
            self._become_follower(message.term, message.sender)
            return True
        if type(message) is RequestVote:
            if not message.pre_vote:
                self._become_follower(message.term, 0)
            return True
        if message.sender not in self.configuration.members:
            return False  # a removed member may have any term; it must not disturb the others
        if type(message) is RequestVoteResponse and message.pre_vote and message.vote_granted:
            return True  # carries the term that was asked about, which no member has entered
        self._become_follower(message.term, 0)
        return True

    def propose(self, datas: Sequence[bytes]) -> int:
        """Append commands to the log: all or none.

        Returns:
            The index of the first. The entry committed there is this one only if its term is this node's ``term`` now.

        Raises:
            NotLeader: this node does not lead.
            ProposalRefused: leadership is being transferred, or too much is uncommitted.
        """
        self._check_proposable()
        if not datas:
            raise ValueError("nothing to propose")
        self._check_uncommitted(datas)
        return self._append_own(datas)

    def report_unreachable(self, member: int) -> None:
        """The owner could not send to a member: do not stream to it until it answers again."""
        progress = self.progress.get(member)
        if progress is not None and member != self.id:
            progress.on_unreachable()

    # -- output -------------------------------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether ``ready`` has anything to hand out."""
        log, saved, reads = self.log, self._saved, self._reads
        return bool(
            self._messages
            or self._messages_after
            or log.unstable
            or self._sends_due
            or log.applied_index < log.commit_index
            or saved.term != self.term
            or saved.commit != log.commit_index
            or saved.vote != self.vote
            or saved.promise < self._promise.length
            or (self._election_elapsed >= self._election_timeout and self._campaign_due())
            or self._chunk is not None
            or reads.states
            or reads.failed
            or self._rejected_snapshots
            or (reads.waiting and self._reads_due())
        )

    def ready(self) -> Ready:
        """What the owner has to do now. ``advance`` must follow.

        The hard state is written with every batch of entries, and covers the commit index of what is handed out to be
        applied. The write is synced if a promise depends on it: entries, term, vote, a longer promise to a leader, or
        the commit index of a configuration that is about to take effect.
        """
        log, saved, reads = self.log, self._saved, self._reads
        if self._election_elapsed >= self._election_timeout and self._campaign_due():
            self._time_out()
        if reads.waiting and self._reads_due():
            self._advance_reads()
        if self._sends_due:
            self._send_appends()
        entries, commit, promise = log.unstable[:], log.commit_index, self._promise.length
        hard_state: HardState | None = None
        must_sync = bool(entries) or saved.term != self.term or saved.vote != self.vote or saved.promise < promise
        if must_sync or saved.commit != commit:
            hard_state = self._saved = HardState(self.term, self.vote, commit, promise)
        committed: list[Entry] = []
        if log.applied_index < commit:
            committed += log.entries(log.applied_index + 1, commit + 1, self.config.max_apply_bytes)
            if not must_sync and committed[-1].index > self._synced_commit:
                must_sync = EntryKind.CONFIGURATION in [entry.kind for entry in committed]
        ready = Ready(self._messages, entries, hard_state, must_sync, self._messages_after, committed)
        self._messages, self._messages_after = [], []
        if self._chunk is not None or self._rejected_snapshots:
            ready.chunk, ready.rejected_snapshots = self._chunk, self._rejected_snapshots
            self._chunk, self._rejected_snapshots = None, []
        if reads.states or reads.failed:
            ready.read_states, ready.failed_reads = reads.states, reads.failed
            reads.states, reads.failed = [], []
        return ready

    def advance(self, ready: Ready) -> None:
        """The owner has done everything in ``ready``. Entries that it has removed from the end of ``committed``, for
        lack of time, are handed out again.

        Raises:
            LogInconsistent: it has applied what is not committed.
        """
        log = self.log
        if ready.must_sync:
            self._synced_commit = self._saved.commit
        if ready.entries:
            last = ready.entries[-1]
            log.stable_to(last.index, last.term)
        if ready.committed:
            log.applied_index = max(log.applied_index, ready.committed[-1].index)
            if log.applied_index > log.commit_index:
                raise LogInconsistent(f"entry {log.applied_index} is applied, but only {log.commit_index} committed")
        if self.role == LEADER:
            self._count_own_append()
            self._leave_joint_when_due()
            self._retire_when_due()
        elif self.role == CANDIDATE:
            self._count_own_vote()


_Handler = Callable[[Any, Any], None]

_BY_ALL: dict[type, _Handler] = {
    RequestVote: Node._on_vote_request,
}

_FROM_LEADER: dict[type, _Handler] = {
    AppendEntries: Node._on_append,
    Heartbeat: Node._on_heartbeat,
    InstallSnapshot: Node._on_snapshot,
}

_HANDLERS: dict[str, dict[type, _Handler]] = {
    FOLLOWER: {
        **_BY_ALL,
        **_FROM_LEADER,
        ReadIndexResponse: Node._on_read_index_response,
        TimeoutNow: Node._on_timeout_now,
    },
    PRE_CANDIDATE: {
        **_BY_ALL,
        **_FROM_LEADER,
        RequestVoteResponse: Node._on_vote_response,
    },
    CANDIDATE: {
        **_BY_ALL,
        **_FROM_LEADER,
        RequestVoteResponse: Node._on_vote_response,
    },
    LEADER: {
        **_BY_ALL,
        AppendEntriesResponse: Node._on_append_response,
        HeartbeatResponse: Node._on_heartbeat_response,
        InstallSnapshotResponse: Node._on_snapshot_response,
        ReadIndex: Node._on_read_index,
    },
}
