"""A leader's knowledge of one follower (etcd's ``tracker.Progress``), and flow control for it.

A follower is in one of three states, and only the methods here change the state:

    probe      it is not known where the logs agree: one AppendEntries at a time, then wait for the answer
    replicate  it is known: entries are streamed as far as the window of messages and bytes allows
    snapshot   it needs entries that the leader's log no longer holds: a snapshot is sent, chunk by chunk

``match_index`` and ``next_index`` are the paper's (figure 2); ``match_index < next_index`` always holds.
"""

from __future__ import annotations

import enum
import math
from collections import deque

from .messages import SnapshotMeta


class Inflights:
    """The AppendEntries in flight: a window bounded in messages and in bytes."""

    __slots__ = ("_bytes", "_max_bytes", "_max_messages", "_window")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._window: deque[tuple[int, int]] = deque()
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether nothing more may be sent. One message alone may exceed the bound on bytes, or a large one could never
        be sent."""
        return len(self._window) >= self._max_messages or self._bytes >= self._max_bytes

    def add(self, last_index: int, size: int) -> None:
        """A message with entries up to ``last_index`` has been sent."""
        self._window.append((last_index, size))
        self._bytes += size

    def free_to(self, index: int) -> None:
        """The follower has everything up to ``index``."""
        window = self._window
        while window and window[0][0] <= index:
            self._bytes -= window.popleft()[1]

    def clear(self) -> None:
        """Forget all messages in flight."""
        self._window.clear()
        self._bytes = 0


class ProgressState(enum.Enum):
    """The state of a follower; see the top of this file."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower as the leader knows it.

    Args:
        next_index: the first entry to send.
        inflights: an empty window.
    """

    __slots__ = (
        "_asked_at",
        "_asked_index",
        "_asked_round",
        "_inflights",
        "_match_at_heartbeat",
        "_probe_sent",
        "_response_time",
        "_timed_from",
        "_timed_round",
        "acked_round",
        "chunk_in_flight",
        "heartbeats_since_send",
        "known_commit",
        "match_index",
        "min_snapshot_index",
        "next_index",
        "promised_until",
        "recent_active",
        "round_trip",
        "sent_commit",
        "sent_heartbeat",
        "snapshot",
        "snapshot_offset",
        "stalled",
        "state",
        "wants_commits",
    )

    def __init__(self, next_index: int, inflights: Inflights) -> None:
        self.match_index = 0
        self.next_index = next_index
        self.state = ProgressState.PROBE
        self.recent_active = True
        """It has answered since the last check-quorum; true for a new one."""
        self.sent_commit = 0
        """The highest commit index that it was sent."""
        self.wants_commits = True
        """It wants to be told each new commit index at once."""
        self.acked_round = 0
        """The last confirmation round that it has answered."""
        self.promised_until = -math.inf
        """Until when, on the leader's clock, it elects no other leader (see ``leader_lease``)."""
        self.sent_heartbeat = (0, 0)
        """Round and commit index of the last heartbeat sent to it."""
        self.known_commit = 0
        """A commit index that it has learned from a heartbeat for certain."""
        self.stalled = False
        """It lacks entries, and its match index has not moved between two heartbeats: a message may be lost."""
        self.snapshot: SnapshotMeta | None = None
        self.snapshot_offset = 0
        self.chunk_in_flight = False
        self.heartbeats_since_send = 0
        """Periodic heartbeats since a message that awaits an answer was sent: a probe or a chunk."""
        self.min_snapshot_index = 0
        """It has lost its state and needs a snapshot of at least this index, besides entries as usual; 0: it has its
        state."""
        self._inflights = inflights
        self._probe_sent = False
        self._match_at_heartbeat = 0
        self._response_time = 0.0
        self._asked_at = math.inf
        self._asked_index = self._asked_round = 0
        self._timed_round = 0
        self._timed_from = 0.0
        self.round_trip = -1.0
        """Seconds from the last periodic heartbeat that it has answered to the answer; negative before the first. Only
        metrics depend on it."""

    @property
    def lost_state(self) -> bool:
        """Whether it has said that it has lost its state machine, but not its log."""
        return self.min_snapshot_index > 0

    @property
    def paused(self) -> bool:
        """Whether no entries may be sent now."""
        if self.state is ProgressState.REPLICATE:
            return self._inflights.full
        return self._probe_sent or self.state is ProgressState.SNAPSHOT

    # -- how fast it answers ------------------------------------------------------------------------------------------

    def response_time(self, now: float) -> float:
        """Seconds that it takes to answer an AppendEntries, its write included: a moving average, or for how long it
        owes an answer by now, if that is longer. 0 before its first answer."""
        return max(self._response_time, now - self._asked_at)

    def ask(self, now: float, *, index: int = 0, round_: int = 0) -> None:
        """It owes an answer to entries up to ``index``, or to a heartbeat. Only the oldest such message is timed."""
        if self._asked_at == math.inf:
            self._asked_at, self._asked_index, self._asked_round = now, index, round_

    def note_answer(self, now: float) -> None:
        """It has answered something; see whether that was what is timed."""
        if self._asked_index:
            if self.match_index >= self._asked_index:
                took = now - self._asked_at
                self._response_time += (took - self._response_time) / 8 if self._response_time else took
                self._asked_at, self._asked_index = math.inf, 0
        elif self.acked_round >= self._asked_round:
            self._asked_at = math.inf

    # -- sending ------------------------------------------------------------------------------------------------------

    def on_sent(self, count: int, size: int, commit: int) -> None:
        """An AppendEntries with ``count`` entries of ``size`` bytes, from ``next_index`` on, has been sent."""
        self.sent_commit = commit
        if self.state is ProgressState.PROBE:
            self.await_answer()
        elif count:
            self.next_index += count
            self._inflights.add(self.next_index - 1, size)

    def await_answer(self) -> None:
        """Send nothing until it answers, or shows another sign of life after the next heartbeat."""
        self._probe_sent = True
        self.heartbeats_since_send = 0

    # -- answers ------------------------------------------------------------------------------------------------------

    def on_success(self, index: int, first_index: int) -> bool:
        """It holds the leader's log up to ``index``; the leader's own log begins at ``first_index``.

        Returns:
            Whether this told the leader anything new.
        """
        advanced = index > self.match_index
        if advanced:
            self.match_index = index
            self.stalled = False
            if self.next_index <= index:
                self.next_index = index + 1
        if self.state is ProgressState.REPLICATE:
            self._inflights.free_to(index)
        elif self.state is ProgressState.PROBE:
            # A repeated answer is enough: it says where the logs agree, which is all that a probe asks.
            if index == self.match_index:
                self._become_replicate()
                return True
        elif self.match_index + 1 >= first_index:
            self._become_replicate()  # it no longer needs the snapshot: the log holds what it lacks
        return advanced

    def on_reject(self, rejected: int, hint: int) -> bool:
        """It lacks entry ``rejected``; the logs may agree at ``hint``.

        Returns:
            Whether this told the leader anything new. The answer to any but the last message does not.
        """
        if self.state is ProgressState.REPLICATE:
            # It holds everything up to match_index. What was sent after that was lost or reordered.
            if rejected <= self.match_index:
                return False
            self._become_probe(self.match_index + 1)
            return True
        if self.state is ProgressState.SNAPSHOT or self.next_index - 1 != rejected:
            return False
        self.next_index = max(min(rejected, hint + 1), self.match_index + 1)
        self._probe_sent = False
        return True

    def on_heartbeat_response(self, round_: int, now: float = 0.0) -> None:
        """It is alive, and has answered heartbeat ``round_`` and all before it."""
        self.recent_active = True
        if self.heartbeats_since_send:  # the probe, or its answer, may be lost
            self._probe_sent = False
        if round_ > self.acked_round:
            self.acked_round = round_
        if round_ == self._timed_round:
            self._timed_round = 0
            self.round_trip = now - self._timed_from
        if round_ == self.sent_heartbeat[0] and self.sent_heartbeat[1] > self.known_commit:
            self.known_commit = self.sent_heartbeat[1]

    def on_unreachable(self) -> None:
        """Messages to it were lost: stop streaming, and probe."""
        if self.state is ProgressState.REPLICATE:
            self._become_probe(self.match_index + 1)

    def on_heartbeat_sent(self, round_: int, commit: int, last_index: int, now: float = 0.0, *, periodic: bool) -> None:
        """A heartbeat has been sent: a periodic one, whose round trip is timed, or one that confirms reads."""
        self.sent_heartbeat = (round_, commit)
        self.sent_commit = max(self.sent_commit, commit)
        if periodic:
            self._timed_round, self._timed_from = round_, now
            self.stalled = self.match_index < last_index and self.match_index == self._match_at_heartbeat
            self._match_at_heartbeat = self.match_index
            self.heartbeats_since_send += 1

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def begin_snapshot(self, meta: SnapshotMeta) -> None:
        """It needs this snapshot in place of entries."""
        self.state = ProgressState.SNAPSHOT
        self.snapshot = meta
        self.snapshot_offset = 0
        self.chunk_in_flight = False
        self._inflights.clear()

    def on_snapshot_wanted(self, index: int) -> None:
        """It needs a snapshot of at least this index for the state that it has lost; 0: it has its state."""
        self.min_snapshot_index = index
        if not index and self.state is not ProgressState.SNAPSHOT:
            self.snapshot = None

    def begin_state_snapshot(self, meta: SnapshotMeta) -> None:
        """It gets this snapshot for the state that it has lost, and continues to get entries."""
        self.snapshot = meta
        self.snapshot_offset = 0
        self.chunk_in_flight = False

    def on_chunk_sent(self) -> None:
        """The chunk at ``snapshot_offset`` has been sent."""
        self.chunk_in_flight = True
        self.heartbeats_since_send = 0

    def on_chunk_response(self, offset: int) -> None:
        """The receiver wants the image from ``offset`` on. An offset that has been sent already is ignored, because the
        answer may be a repeated one; a chunk that is really lost is sent again when no answer follows. At the end of
        the image there is nothing to send: the receiver checks it, and says when it is installed."""
        assert self.snapshot is not None
        if offset != self.snapshot_offset and 0 <= offset <= self.snapshot.size:
            self.snapshot_offset = offset
            self.chunk_in_flight = offset == self.snapshot.size

    def on_installed(self, index: int) -> None:
        """The snapshot is in place there, and its log equals the leader's up to ``index``."""
        self.match_index = max(self.match_index, index)
        self.min_snapshot_index = 0
        if self.state is ProgressState.REPLICATE:
            self.snapshot = None
        else:
            self._become_replicate()

    def resend_chunk(self) -> None:
        """Count the last chunk, or its answer, as lost."""
        self.chunk_in_flight = False

    def abandon_snapshot(self) -> None:
        """The snapshot is gone or was rejected: at its next sign of life, find out again what the follower needs."""
        if self.state is ProgressState.SNAPSHOT:
            self._become_probe(self.match_index + 1)
            self.await_answer()
        else:
            self.snapshot = None

    # -- transitions --------------------------------------------------------------------------------------------------

    def _become_probe(self, next_index: int) -> None:
        self.state = ProgressState.PROBE
        self.next_index = next_index
        self.snapshot = None
        self._probe_sent = False
        self._asked_at, self._asked_index = math.inf, 0
        self._inflights.clear()

    def _become_replicate(self) -> None:
        self.state = ProgressState.REPLICATE
        self.next_index = self.match_index + 1
        self.snapshot = None
        self._probe_sent = False
        self._inflights.clear()
