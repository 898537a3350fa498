"""Snapshots of the state on their way from member to member.

An image is a checkpoint of the state database, packed into one stream of bytes with a hash over each file. The sender
makes one only when a follower needs what its log no longer holds, keeps it while somebody fetches from it, and keeps
the log behind it. The receiver stores chunks as they come, checks the whole, and then swaps it in by the rules of the
disk (``store.folder``). What takes long (flushing, hashing, checking) runs in the background; what must be atomic with
the loop (taking the checkpoint, swapping) runs in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..limits import SNAPSHOT_IDLE, Limits
from ..store.checkpoint import Incoming, Outgoing
from ..store.folder import MemberFolder
from .raft import Node, SnapshotMeta
from .raft.messages import Entry, InstallSnapshot


class Background(Protocol):
    """Runs work outside the loop."""

    def __call__(self, work: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        """Run ``work`` on another thread; afterwards run ``then`` in the loop, with the error that ended the work."""
        ...


class Snapshots:
    """The images that one member sends and receives.

    Args:
        folder: the member's data.
        limits: the cluster's limits.
        background: where slow work runs.
        clock: the server's clock.
    """

    def __init__(
        self, folder: MemberFolder, limits: Limits, background: Background, clock: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._background = background
        self._clock = clock
        self._outgoing: Outgoing | None = None
        self._meta: SnapshotMeta | None = None
        self._making = False
        self._last_used = 0.0
        self._incoming: Incoming | None = None
        self._checking = ""
        """The id of the image that is being checked, empty for none."""

    # -- sending ------------------------------------------------------------------------------------------------------

    def offer(self, at_least: int = 0) -> SnapshotMeta | None:
        """The image to send, one of this index or later that the log continues; ``None`` while there is none."""
        state, wanted = self._folder.state, max(at_least, self._folder.log.first_index() - 1)
        if self._meta is not None and self._meta.index >= wanted:
            self._last_used = self._clock()
            return self._meta
        if not self._making and not state.lost and state.applied_index >= wanted:
            self._make()
        return None

    def chunk(self, meta: SnapshotMeta, offset: int, size: int) -> bytes | None:
        """Bytes of the image, ``None`` if it is gone."""
        if self._meta is None or self._outgoing is None or meta.id != self._meta.id:
            return None
        self._last_used = self._clock()
        return self._outgoing.chunk(offset, size)

    def needed_from(self) -> int | None:
        """The log is not cut beyond this index, so that it continues the image under way; ``None`` if there is none."""
        return self._meta.index if self._meta is not None else None

    def drop_idle(self) -> None:
        """Remove an image that nobody fetches any more: it holds disk space and log."""
        if self._meta is not None and self._clock() - self._last_used >= SNAPSHOT_IDLE:
            self._drop()

    def rejected(self, metas: Sequence[SnapshotMeta]) -> None:
        """A receiver found these images damaged: if one of them is ours, the next is made anew."""
        if self._meta is not None and any(meta.id == self._meta.id for meta in metas):
            self._drop()

    def _drop(self) -> None:
        if self._outgoing is not None:
            self._outgoing.remove()
        self._outgoing, self._meta = None, None

    def _make(self) -> None:
        self._making = True
        self._drop()
        self._background(self._folder.state.flush, self._take)

    def _take(self, error: Exception | None) -> None:
        """In the loop, just after a flush: take the checkpoint while applied index and content belong together."""
        if error is not None:
            self._making = False
            return
        state = self._folder.state
        index, term, configuration = state.applied_index, state.applied_term, state.configuration
        outgoing = self._folder.new_outgoing()
        state.checkpoint(outgoing.source)

        def publish(error: Exception | None) -> None:
            self._making = False
            if error is not None:
                outgoing.remove()
                return
            self._outgoing = outgoing
            self._meta = SnapshotMeta(index, term, configuration, outgoing.id, outgoing.size)
            self._last_used = self._clock()

        self._background(outgoing.pack, publish)

    @property
    def arrival(self) -> str:
        """How far an image that is arriving has come, for people. For any thread."""
        incoming = self._incoming
        if incoming is None:
            return "of which nothing has come yet"
        return f"of which {incoming.received} of {incoming.meta.size} bytes have come"

    # -- receiving ----------------------------------------------------------------------------------------------------

    def receive(self, chunk: InstallSnapshot, node: Node, replaced: Callable[[], None]) -> None:
        """Store a chunk and tell the core how far the image is; once it is whole, check it and swap it in.

        ``replaced`` is called after a swap.
        """
        if self._checking:
            return  # the image is whole and being checked: more chunks change nothing
        if self._incoming is None or self._incoming.id != chunk.meta.id:
            if self._incoming is not None:
                self._incoming.remove()
            self._incoming = self._folder.new_incoming(chunk.meta)
        incoming = self._incoming
        offset = incoming.accept(chunk.offset, chunk.data)
        node.snapshot_progress(chunk, offset)
        if offset < chunk.meta.size:
            return
        self._checking = chunk.meta.id

        def install(error: Exception | None) -> None:
            self._checking, self._incoming = "", None
            if error is not None:
                incoming.remove()
                node.snapshot_rejected(chunk)
                return
            if not node.snapshot_is_needed(chunk.meta):
                incoming.remove()
                return
            keep_log = node.snapshot_keeps_log(chunk.meta)
            if keep_log and chunk.meta.index > self._folder.log.last_index():
                # The log holds the image's last entry, but not on disk yet: after this turn it does.
                self._checking, self._incoming = chunk.meta.id, incoming
                self._background(lambda: None, install)
                return
            self._drop()
            self._folder.install(incoming, keep_log=keep_log)
            node.snapshot_installed(chunk.meta)
            replaced()

        self._background(incoming.unpack, install)


class MemberStorage:
    """What the core reads of what is durable: the member's log, and the image for those too far behind it."""

    def __init__(self, folder: MemberFolder, snapshots: Snapshots) -> None:
        self._log = folder.log
        self._snapshots = snapshots
        self.first_index = self._log.first_index
        self.last_index = self._log.last_index
        self.term = self._log.term

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries from ``low`` up to but without ``high``: as many as fit, at least one."""
        return self._log.entries(low, high, max_bytes)

    def snapshot(self, at_least: int = 0) -> SnapshotMeta | None:
        """The image to send; ``None`` while it is being made."""
        return self._snapshots.offer(at_least)

    def snapshot_chunk(self, meta: SnapshotMeta, offset: int, max_bytes: int) -> bytes | None:
        """Bytes of an image; ``None`` if it is gone."""
        return self._snapshots.chunk(meta, offset, max_bytes)
