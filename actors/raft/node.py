"""A Raft node without I/O, clock, threads or randomness of its own.

Inputs are ``tick``, ``step``, ``propose``, ``read_index`` and a few more; the output is ``Ready``. The owner's loop is

    node.step(message) / node.propose(...) / node.tick() ...
    while node.has_ready():
        ready = node.ready()
        send(ready.messages)
        log.append(ready.entries, ready.hard_state, sync=ready.must_sync)
        send(ready.messages_after)
        apply(ready.committed)
        node.advance(ready)

and nothing else may be called between ``ready`` and ``advance`` but ``apply_configuration`` and the ``snapshot_...``
calls. The same inputs give the same outputs. This file holds what every message passes through: the checks of address
and term, and the tables that say which role listens to what. Whatever a table does not list is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .core import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE
from .elections import Elections
from .messages import (
    AppendEntries,
    AppendEntriesResponse,
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
"""Terms by which a message may be ahead: more than a century of elections. Whoever followed one that is further ahead
would take all others along, to where no term is left."""
_FROM_LEADERS = (AppendEntries, Heartbeat, InstallSnapshot)
"""Only the leader of a term sends these in it."""


class Node(Elections):
    """One member of the consensus.

    Args:
        config: how it runs.
        storage: what is durable; read, never written.
        hard_state: as last written.
        configuration: the one in effect at ``applied``. Empty for a member that waits to be told.
        applied: how far the state machine has applied; may be ahead of ``hard_state.commit``.
        rng: for election timeouts. Must differ between members and between starts of one member.
        now: what the owner's clock shows (see ``set_time``).
        needs_image: the state machine was lost. Then ``applied`` is where the log begins (or later), and
            ``configuration`` the one that the log knows; what is handed out as committed has to be applied only as far
            as configurations go. After an image all entries behind it are handed out anew.

    Raises:
        LogInconsistent: log, hard state and applied index do not belong together.
    """

    # -- input --------------------------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take a message in. Late, repeated, reordered and misdirected ones do no harm.

        Raises:
            LogInconsistent: it contradicts what is committed: some member has lost its data or its mind.
        """
        sender, term = message.sender, message.term
        if message.to != self.id or sender == self.id or sender < 1 or term - self.term > MAX_TERM_LEAP:
            return
        if type(message) is RequestVote:
            if self._ignores_candidate(message):
                return
        elif type(message) is RequestVoteResponse and message.commit_index:
            self._learn_commit(message)
        if term > self.term:
            if not self._enter_term(message):
                return
        elif term < self.term:
            if isinstance(message, _FROM_LEADERS):
                self._refuse_stale_leader(sender)
            elif type(message) is RequestVote and message.pre_vote:
                self._on_vote_request(message)
            return
        handler = _LISTENS[self.role].get(type(message))
        if handler is not None:
            handler(self, message)

    def _enter_term(self, message: Message) -> bool:
        """Follow a message into its newer term, if its kind calls for that; whether to go on with it."""
        if isinstance(message, _FROM_LEADERS):
            self._become_follower(message.term, message.sender)
            return True
        if type(message) is RequestVote:
            if not message.pre_vote:
                self._become_follower(message.term, 0)
            return True
        if message.sender not in self.configuration.members:
            return False  # a member that was removed may have any term; it must not disturb
        if type(message) is RequestVoteResponse and message.pre_vote and message.vote_granted:
            return True  # bears the term that was asked about, which nobody has entered
        self._become_follower(message.term, 0)
        return True

    def propose(self, datas: Sequence[bytes]) -> int:
        """Append commands to the log: all of them or none.

        Returns:
            The index of the first. The entry that is committed there is this one only if it also has this ``term``.

        Raises:
            NotLeader: another node has to be asked.
            ProposalRefused: leadership is being handed over, or too much is uncommitted.
        """
        self._check_proposable()
        if not datas:
            raise ValueError("nothing to propose")
        self._check_uncommitted(datas)
        return self._append_own(datas)

    def report_unreachable(self, member: int) -> None:
        """The owner could not send to a member: do not stream to it until it is heard of again."""
        progress = self.progress.get(member)
        if progress is not None and member != self.id:
            progress.on_unreachable()

    # -- output -------------------------------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether ``ready`` has something to hand out."""
        log, saved = self.log, self._saved
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
            or self._campaign_due()
            or self._chunk is not None
            or self._reads.states
            or self._reads.failed
            or self._rejected_snapshots
            or self._reads_due()
        )

    def ready(self) -> Ready:
        """What is to be done now. ``advance`` must follow."""
        if self._campaign_due():
            self._time_out()
        if self._reads_due():
            self._move_reads()
        if self._sends_due:
            self._send_appends()
        log, saved, reads = self.log, self._saved, self._reads
        entries = log.unstable[:]
        must_sync = bool(entries)
        hard_state: HardState | None = None
        promise = self._promise.length
        if saved.term != self.term or saved.vote != self.vote or saved.promise < promise:
            must_sync = True
        if must_sync or saved.commit != log.commit_index:
            hard_state = self._saved = HardState(self.term, self.vote, log.commit_index, promise)
        committed = list(log.entries(log.applied_index + 1, log.commit_index + 1, self.config.max_apply_bytes))
        if not must_sync and committed and committed[-1].index > self._synced_commit:
            must_sync = any(entry.kind is EntryKind.CONFIGURATION for entry in committed)
        ready = Ready(
            messages=self._messages,
            entries=entries,
            hard_state=hard_state,
            must_sync=must_sync,
            messages_after=self._messages_after,
            committed=committed,
            chunk=self._chunk,
            read_states=reads.states,
            failed_reads=reads.failed,
            rejected_snapshots=self._rejected_snapshots,
        )
        self._messages, self._messages_after, self._rejected_snapshots = [], [], []
        reads.states, reads.failed = [], []
        self._chunk = None
        return ready

    def advance(self, ready: Ready) -> None:
        """The owner has done everything that was in ``ready``. What it has cut off from the end of ``committed`` for
        want of time is handed out again."""
        log = self.log
        if ready.must_sync:
            self._synced_commit = self._saved.commit
        if ready.entries:
            last = ready.entries[-1]
            log.stable_to(last.index, last.term)
        if ready.committed:
            log.applied_index = max(log.applied_index, ready.committed[-1].index)
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

_LISTENS: dict[str, dict[type, _Handler]] = {
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
