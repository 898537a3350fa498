"""What a leader knows of one follower, and how it may send to it.

A follower is in one of three states, and only the methods here move it between them:

    probe      where its log meets the leader's is not known: one AppendEntries at a time, then wait for its answer
    replicate  it is known: entries are streamed as far as the window of messages and bytes allows
    snapshot   it needs what the leader's log no longer holds: an image travels, chunk by chunk

``match_index`` and ``next_index`` are the paper's (figure 2); ``match_index < next_index`` always holds.
"""

from __future__ import annotations

import enum
import math
from collections import deque

from .messages import SnapshotMeta


class Inflights:
    """AppendEntries that are on their way: a window bounded in messages and in bytes."""

    __slots__ = ("_bytes", "_max_bytes", "_max_messages", "_window")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._window: deque[tuple[int, int]] = deque()
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether nothing more may be sent. One message may overshoot the bound on bytes, or it could never go."""
        return len(self._window) >= self._max_messages or self._bytes >= self._max_bytes

    @property
    def count(self) -> int:
        """Messages on their way."""
        return len(self._window)

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
        """Nothing is on its way that counts any more."""
        self._window.clear()
        self._bytes = 0


class ProgressState(enum.Enum):
    """How a follower is being sent to."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower in the eyes of the leader.

    Args:
        next_index: where to begin sending.
        inflights: an empty window.
    """

    __slots__ = (
        "_inflights",
        "_match_mark",
        "_probe_sent",
        "acked_round",
        "chunk_in_flight",
        "known_commit",
        "match_index",
        "next_index",
        "promised_until",
        "quiet",
        "recent_active",
        "sent_commit",
        "sent_heartbeat",
        "snapshot",
        "snapshot_offset",
        "stalled",
        "state",
        "wanted",
    )

    def __init__(self, next_index: int, inflights: Inflights) -> None:
        self.match_index = 0
        self.next_index = next_index
        self.state = ProgressState.PROBE
        self.recent_active = True
        """It has answered since the last check of the quorum; a new one gets the benefit of the doubt."""
        self.sent_commit = 0
        """The commit index that its last AppendEntries carried."""
        self.acked_round = 0
        """The last confirmation round that it has answered."""
        self.promised_until = -math.inf
        """Until when, on the leader's clock, it is to be counted on (see ``lease``)."""
        self.sent_heartbeat = (0, 0)
        """Round and commit index of the last heartbeat sent to it."""
        self.known_commit = 0
        """A commit index that it is known to have learned from a heartbeat."""
        self.stalled = False
        """It lacks entries, and nothing has moved between two heartbeats: something may be lost."""
        self.snapshot: SnapshotMeta | None = None
        self.snapshot_offset = 0
        self.chunk_in_flight = False
        self.quiet = 0
        """Periodic heartbeats since something went out that waits for its answer: a probe, or a chunk."""
        self.wanted = 0
        """It has lost its state, and wants an image of at least this index, beside the entries that it gets as ever;
        0 for none."""
        self._inflights = inflights
        self._probe_sent = False
        self._match_mark = 0

    @property
    def paused(self) -> bool:
        """Whether no entries may be sent now."""
        if self.state is ProgressState.REPLICATE:
            return self._inflights.full
        return self._probe_sent or self.state is ProgressState.SNAPSHOT

    @property
    def inflight_count(self) -> int:
        """AppendEntries on their way."""
        return self._inflights.count

    # -- sending ------------------------------------------------------------------------------------------------------

    def sent(self, count: int, size: int, commit: int) -> None:
        """An AppendEntries with ``count`` entries of ``size`` bytes from ``next_index`` on has gone out."""
        self.sent_commit = commit
        if self.state is ProgressState.PROBE:
            self.wait()
        elif count:
            self.next_index += count
            self._inflights.add(self.next_index - 1, size)

    def wait(self) -> None:
        """Send nothing before an answer, or another sign of life after the next heartbeat."""
        self._probe_sent = True
        self.quiet = 0

    # -- answers ------------------------------------------------------------------------------------------------------

    def on_success(self, index: int, first_index: int) -> bool:
        """It has the leader's log up to ``index``; the leader's own begins at ``first_index``.

        Returns:
            Whether that was news.
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
            # A repeated answer is enough: it says where the logs meet, which is all that a probe wants to know.
            if index == self.match_index:
                self._become_replicate()
                return True
        elif self.match_index + 1 >= first_index:
            self._become_replicate()  # it no longer needs the image: what it lacks is in the log
        return advanced

    def on_reject(self, rejected: int, hint: int) -> bool:
        """It does not have entry ``rejected``; the logs may meet at ``hint``.

        Returns:
            Whether that was news: an answer to an older message than the last one is not.
        """
        if self.state is ProgressState.REPLICATE:
            # Anything up to match_index is known to be there. What was sent behind it got lost or overtaken.
            if rejected <= self.match_index:
                return False
            self._become_probe(self.match_index + 1)
            return True
        if self.state is ProgressState.SNAPSHOT or self.next_index - 1 != rejected:
            return False
        self.next_index = max(min(rejected, hint + 1), self.match_index + 1)
        self._probe_sent = False
        return True

    def on_heartbeat_response(self, round_: int) -> None:
        """It is alive; heartbeat ``round_`` and all before it are answered."""
        self.recent_active = True
        if self.quiet:  # the probe, or its answer, may be lost
            self._probe_sent = False
        if round_ > self.acked_round:
            self.acked_round = round_
        if round_ == self.sent_heartbeat[0] and self.sent_heartbeat[1] > self.known_commit:
            self.known_commit = self.sent_heartbeat[1]

    def on_unreachable(self) -> None:
        """Messages to it were lost: do not stream into the void."""
        if self.state is ProgressState.REPLICATE:
            self._become_probe(self.match_index + 1)

    def on_heartbeat_sent(self, round_: int, commit: int, last_index: int, *, periodic: bool) -> None:
        """A heartbeat has gone out, in its time or for the sake of reads."""
        self.sent_heartbeat = (round_, commit)
        if periodic:
            self.stalled = self.match_index < last_index and self.match_index == self._match_mark
            self._match_mark = self.match_index
            self.quiet += 1

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def begin_snapshot(self, meta: SnapshotMeta) -> None:
        """It needs this image."""
        self.state = ProgressState.SNAPSHOT
        self.snapshot = meta
        self.snapshot_offset = 0
        self.chunk_in_flight = False
        self._inflights.clear()

    def on_image_wanted(self, index: int) -> None:
        """It wants an image of at least this index for the state that it has lost; 0: it has one."""
        self.wanted = index
        if not index and self.state is not ProgressState.SNAPSHOT:
            self.snapshot = None

    def begin_image(self, meta: SnapshotMeta) -> None:
        """It gets this image for the state that it has lost, and goes on getting entries."""
        self.snapshot = meta
        self.snapshot_offset = 0
        self.chunk_in_flight = False

    def chunk_sent(self) -> None:
        """The chunk at ``snapshot_offset`` has gone out."""
        self.chunk_in_flight = True
        self.quiet = 0

    def on_chunk_response(self, offset: int) -> None:
        """The receiver wants to go on at ``offset``. That we sent it already may mean that the answer is a repeated
        one; if a chunk is really lost, the silence that follows sends it again. At the end of the image there is
        nothing to send: the receiver checks it, and says when it is installed."""
        assert self.snapshot is not None
        if offset != self.snapshot_offset and 0 <= offset <= self.snapshot.size:
            self.snapshot_offset = offset
            self.chunk_in_flight = offset == self.snapshot.size

    def on_installed(self, index: int) -> None:
        """The image is in place there, and the log equals the leader's up to ``index``."""
        self.match_index = max(self.match_index, index)
        self.wanted = 0
        if self.state is ProgressState.REPLICATE:
            self.snapshot = None
        else:
            self._become_replicate()

    def resend_chunk(self) -> None:
        """The last chunk, or its answer, must be taken for lost."""
        self.chunk_in_flight = False

    def abandon_snapshot(self) -> None:
        """The image is gone or was rejected: find out anew what the follower needs, at its next sign of life."""
        if self.state is ProgressState.SNAPSHOT:
            self._become_probe(self.match_index + 1)
            self.wait()
        else:
            self.snapshot = None

    # -- transitions --------------------------------------------------------------------------------------------------

    def _become_probe(self, next_index: int) -> None:
        self.state = ProgressState.PROBE
        self.next_index = next_index
        self.snapshot = None
        self._probe_sent = False
        self._inflights.clear()

    def _become_replicate(self) -> None:
        self.state = ProgressState.REPLICATE
        self.next_index = self.match_index + 1
        self.snapshot = None
        self._probe_sent = False
        self._inflights.clear()
