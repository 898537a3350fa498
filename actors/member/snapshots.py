"""Snapshots of the state, sent from member to member (paper, section 7).

A snapshot is a checkpoint of the state database, packed into one stream of bytes with a hash of each file. The sender
makes one only when a follower needs entries that its log no longer holds, and keeps it, and the log after it, while a
follower fetches it. The receiver stores chunks as they arrive, verifies the whole, and then installs it
(``DataDir.install_snapshot``). What takes a long time (flushing, hashing, verifying) runs in the background; what must
be atomic with the loop (taking the checkpoint, installing) runs in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ...errors import DataCorrupted, NoSpace
from ...limits import SNAPSHOT_FETCHED_CHUNKS, SNAPSHOT_IDLE_S, SNAPSHOT_INLINE_BYTES, SNAPSHOT_RETRY_S, Limits
from ...raft import Node, SnapshotMeta
from ...raft.log import ChunkNotReady
from ...raft.messages import InstallSnapshot
from ...store.data_dir import DataDir
from ...store.snapshot_file import SnapshotSink, SnapshotSource
from ...telemetry import WORK_BUCKETS, Histogram
from ..logs import MemberLog


class Background(Protocol):
    """Runs work outside the loop."""

    def __call__(self, work: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        """Run ``work`` on another thread; afterwards run ``then`` in the loop, with the error that ended the work."""
        ...


class Snapshots:
    """The snapshots that one member sends and receives.

    Args:
        folder: the member's data.
        limits: the cluster's limits.
        background: runs slow work.
        clock: the replica's clock.
    """

    def __init__(self, folder: DataDir, limits: Limits, background: Background, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._log = MemberLog("member", folder.identity.cluster_name, folder.identity.name)
        self.limits = limits
        self._background = background
        self._clock = clock
        self._outgoing: SnapshotSource | None = None
        self._meta: SnapshotMeta | None = None
        self._making = False
        self._last_used = 0.0
        self._verify_first = False
        """A receiver rejected our snapshot: our own state is verified before another is made."""
        self._fetched: dict[tuple[int, int], bytes | None] = {}
        """Chunks of the snapshot that were read and wait to be sent, by offset and size; ``None`` while being read."""
        self._next_send = 0.0
        """When the next chunk may be sent under the limit on bytes per second."""
        self._asked = False
        """The core asked for a chunk that was not ready."""
        self._incoming: SnapshotSink | None = folder.find_snapshot_sink()
        self._last_chunk = clock()
        self._storing = False
        """A chunk is being written."""
        self._checking = ""
        """The id of the snapshot that is being verified, empty for none."""
        self._paused_until = 0.0
        """No snapshot is made or received before this time: our disk has failed."""
        self.made = self.installed = 0
        """How many there were; for metrics."""
        self.pack_times = Histogram(WORK_BUCKETS)
        """Seconds from a checkpoint to the snapshot made of it."""

    # -- sending ------------------------------------------------------------------------------------------------------

    def offer_snapshot(self, at_least: int = 0) -> SnapshotMeta | None:
        """The snapshot to send: of this index or later, and continued by the log. ``None`` while it is being made."""
        state, wanted = self._folder.state, max(at_least, self._folder.log.first_index() - 1)
        if self._meta is not None and self._meta.index >= wanted:
            self._last_used = self._clock()
            return self._meta
        able = not state.lost and state.applied_index >= wanted and self._clock() >= self._paused_until
        if able and not self._making:
            self._make_snapshot()
        return None

    def read_chunk(self, meta: SnapshotMeta, offset: int, size: int) -> bytes | None:
        """Bytes of the snapshot, ``None`` if it is gone. Small chunks are read in the loop, large ones in the
        background.

        Raises:
            ChunkNotReady: it is not read yet, or may not be sent yet; ``chunk_due`` says when to ask again.
        """
        outgoing = self._outgoing
        if self._meta is None or outgoing is None or meta.id != self._meta.id:
            return None
        now = self._last_used = self._clock()
        data: bytes | None = None
        if size > SNAPSHOT_INLINE_BYTES:
            data = self._fetched.get((offset, size))
            if data is None:
                self._fetch(outgoing, offset, size)
        elif now >= self._next_send:
            data = self._read(outgoing, offset, size)
            if data is None:
                return None
        if data is None or now < self._next_send:
            self._asked = True
            raise ChunkNotReady
        self._fetched.pop((offset, size), None)
        self._next_send = max(now, self._next_send) + len(data) / self.limits.snapshot_bytes_per_second
        if size > SNAPSHOT_INLINE_BYTES and offset + size < meta.size:
            self._fetch(outgoing, offset + size, size)  # read ahead
        return data

    def _read(self, outgoing: SnapshotSource, offset: int, size: int) -> bytes | None:
        try:
            return outgoing.read_chunk(offset, size)
        except (OSError, DataCorrupted) as error:
            self._drop_unreadable(error)
            return None

    def _fetch(self, outgoing: SnapshotSource, offset: int, size: int) -> None:
        """Read a chunk in the background: a disk may be slow. If the snapshot was dropped meanwhile, so is the
        chunk."""
        if (offset, size) in self._fetched:
            return
        while len(self._fetched) >= SNAPSHOT_FETCHED_CHUNKS:
            self._fetched.pop(next(iter(self._fetched)))
        self._fetched[offset, size] = None
        read: list[bytes] = []

        def fetched(error: Exception | None) -> None:
            if self._outgoing is not outgoing:
                return
            if error is not None:
                self._drop_unreadable(error)
            elif (offset, size) in self._fetched:
                self._fetched[offset, size] = read[0]

        self._background(lambda: read.append(outgoing.read_chunk(offset, size)), fetched)

    def chunk_due(self, now: float) -> bool:
        """Whether a chunk that was not ready is ready now; true once."""
        if not self._asked or now < self._next_send or (self._meta is not None and None in self._fetched.values()):
            return False
        self._asked = False
        return True

    @property
    def next_due(self) -> float | None:
        """The clock time at which to call ``chunk_due`` again; ``None`` if that depends on an event."""
        return self._next_send if self._asked and None not in self._fetched.values() else None

    def needed_from(self) -> int | None:
        """The log must keep the entries after this index, so that it continues the snapshot being sent; ``None`` if
        there is none, or the log is too large to wait."""
        if self._meta is None or self._folder.log.size_bytes >= self.limits.log_hold_bytes:
            return None
        return self._meta.index

    def drop_idle(self) -> None:
        """Remove snapshots that no member fetches or sends any more: they take disk space, and keep the log long."""
        now = self._clock()
        if self._meta is not None and now - self._last_used >= SNAPSHOT_IDLE_S:
            self._drop_outgoing()
        busy = self._checking or self._storing
        if self._incoming is not None and not busy and now - self._last_chunk >= SNAPSHOT_IDLE_S:
            self._log.info("a snapshot is given up, %s: nothing more of it has come for a while", self.arrival)
            self._incoming.remove()
            self._incoming = None

    def snapshot_rejected(self, metas: Sequence[SnapshotMeta]) -> None:
        """A receiver found these snapshots damaged; if one of them is ours, another is made."""
        if self._meta is not None and any(meta.id == self._meta.id for meta in metas):
            self._verify_first = True
            self._log.warning("the snapshot of index %d has arrived damaged; another is made", self._meta.index)
            self._drop_outgoing()

    def _drop_unreadable(self, error: Exception) -> None:
        self._log.warning("its snapshot cannot be read, and is made again if it is needed: %s", error)
        self._drop_outgoing()

    def _drop_outgoing(self) -> None:
        if self._outgoing is not None:
            self._outgoing.remove()
        self._outgoing, self._meta = None, None
        self._fetched.clear()

    def _make_snapshot(self) -> None:
        self._making = True
        self._drop_outgoing()
        state, verify_first = self._folder.state, self._verify_first

        def prepare() -> None:
            if verify_first:
                state.verify()
            state.flush()

        self._background(prepare, self._take_checkpoint)

    def _take_checkpoint(self, error: Exception | None) -> None:
        """In the loop, just after a flush: take the checkpoint while applied index and content belong together. Then
        pack it in the background, and publish it only when that has succeeded."""
        self._making = False
        if error is not None:
            self._pause_after(error)
            return
        self._verify_first = False
        state = self._folder.state
        index, term, configuration = state.applied_index, state.applied_term, state.configuration
        outgoing: SnapshotSource | None = None
        try:
            outgoing = self._folder.new_snapshot_source()
            state.checkpoint(outgoing.source)
        except (NoSpace, OSError) as failure:
            if outgoing is not None:
                outgoing.remove()
            self._pause_after(failure)
            return
        self._making = True
        made, began = outgoing, self._clock()

        def publish(error: Exception | None) -> None:
            self._making = False
            if error is not None:
                made.remove()
                self._pause_after(error)
                return
            self._outgoing = made
            self._meta = SnapshotMeta(index, term, configuration, made.id, made.size)
            self._last_used = self._clock()
            self.pack_times.observe(self._last_used - began)
            self.made += 1
            self._log.info("has made a snapshot of index %d, %d bytes", index, made.size)

        self._background(outgoing.pack, publish)

    def _pause_after(self, error: Exception) -> None:
        """The disk failed to store a snapshot or to read one: try again later."""
        self._log.warning("a snapshot can be neither made nor stored now: %s", error)
        self._paused_until = self._clock() + SNAPSHOT_RETRY_S

    # -- receiving ----------------------------------------------------------------------------------------------------

    @property
    def is_receiving(self) -> bool:
        """Whether a snapshot arrives, or is verified. For any thread."""
        return self._incoming is not None or bool(self._checking)

    @property
    def arrival(self) -> str:
        """How much of a snapshot has arrived, as text. For any thread."""
        incoming = self._incoming
        if incoming is None:
            return "of which nothing has arrived yet"
        return f"of which {incoming.received} of {incoming.meta.size} bytes have arrived"

    def receive_chunk(self, chunk: InstallSnapshot, node: Node, replaced: Callable[[], None]) -> None:
        """Store a chunk and tell the core how much has arrived; once the snapshot is whole, verify and install it.

        A chunk is ignored while another is being stored or the snapshot verified: the leader repeats it if needed.

        Args:
            replaced: called after the snapshot has replaced the state.
        """
        now = self._last_chunk = self._clock()
        if self._checking or self._storing or now < self._paused_until:
            return
        try:
            incoming = self._incoming_for(chunk.meta)
        except (NoSpace, OSError) as error:
            self._give_up_incoming(error)
            return

        def stored(error: Exception | None) -> None:
            self._storing = False
            if error is not None:
                self._give_up_incoming(error)
                return
            node.snapshot_progress(chunk, incoming.received)
            if incoming.received == chunk.meta.size:
                self._verify_and_install(chunk, incoming, node, replaced)

        def store() -> None:
            incoming.write_chunk(chunk.offset, chunk.data)

        if len(chunk.data) > SNAPSHOT_INLINE_BYTES and chunk.offset == incoming.received:
            self._storing = True
            self._background(store, stored)
            return
        try:
            store()
        except (NoSpace, OSError) as error:
            stored(error)
        else:
            stored(None)

    def _incoming_for(self, meta: SnapshotMeta) -> SnapshotSink:
        """The snapshot that is arriving, if it is this one; else a new one in its place."""
        incoming = self._incoming
        if incoming is None or incoming.id != meta.id:
            if incoming is not None:
                incoming.remove()
            incoming = self._incoming = self._folder.new_snapshot_sink(meta)
            self._log.info("a snapshot of index %d arrives, %d bytes", meta.index, meta.size)
        return incoming

    def _verify_and_install(
        self, chunk: InstallSnapshot, incoming: SnapshotSink, node: Node, replaced: Callable[[], None]
    ) -> None:
        """The snapshot is whole: verify every byte in the background, and then install it.

        The log may be kept only if it holds the snapshot's last entry on disk (paper, section 7); while that entry is
        not written yet, the installation waits for the next turn."""
        self._checking = chunk.meta.id

        def install(error: Exception | None) -> None:
            """In the loop again. The log has grown while the bytes were checked, so the core is asked afresh whether
            the snapshot is needed. It is told of the installation only once that is durable."""
            self._checking, self._incoming = "", None
            if isinstance(error, DataCorrupted):
                self._log.warning("a snapshot of index %d has arrived damaged: %s", chunk.meta.index, error)
                incoming.remove()
                node.snapshot_rejected(chunk)
                return
            if error is not None:  # not the snapshot's fault
                self._incoming = incoming
                self._give_up_incoming(error)
                return
            if not node.snapshot_is_needed(chunk.meta):
                incoming.remove()
                return
            keep_log = node.snapshot_keeps_log(chunk.meta)
            if keep_log and chunk.meta.index > self._folder.log.last_index():
                # The log holds the snapshot's last entry, but not on disk yet: after this turn it does.
                self._checking, self._incoming = chunk.meta.id, incoming
                self._background(lambda: None, install)
                return
            self._drop_outgoing()
            self._folder.install_snapshot(incoming, keep_log=keep_log)
            self.installed += 1
            self._log.info("has taken over a snapshot of index %d, %d bytes", chunk.meta.index, chunk.meta.size)
            node.snapshot_installed(chunk.meta, log_kept=keep_log)
            replaced()

        self._background(incoming.unpack, install)

    def _give_up_incoming(self, error: Exception) -> None:
        """The disk has failed: remove what arrived, and accept nothing for a while."""
        if self._incoming is not None:
            self._incoming.remove()
            self._incoming = None
        self._pause_after(error)


class MemberStorage:
    """What the core reads of durable state: the member's log, and the snapshot for followers that need what was
    trimmed."""

    def __init__(self, folder: DataDir, snapshots: Snapshots) -> None:
        self._log = folder.log
        self._snapshots = snapshots
        self.first_index = self._log.first_index
        self.last_index = self._log.last_index
        self.term = self._log.term
        self.entries = self._log.entries

    def snapshot(self, at_least: int = 0) -> SnapshotMeta | None:
        """The snapshot to send; ``None`` while it is being made."""
        return self._snapshots.offer_snapshot(at_least)

    def snapshot_chunk(self, meta: SnapshotMeta, offset: int, max_bytes: int) -> bytes | None:
        """Bytes of a snapshot; ``None`` if it is gone."""
        return self._snapshots.read_chunk(meta, offset, max_bytes)
