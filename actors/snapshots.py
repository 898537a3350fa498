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

from ..errors import DataCorrupted, NoSpace
from ..limits import SNAPSHOT_FETCHED_CHUNKS, SNAPSHOT_IDLE, SNAPSHOT_INLINE_BYTES, SNAPSHOT_PAUSE, Limits
from ..store.checkpoint import Incoming, Outgoing
from ..store.folder import MemberFolder
from .raft import Node, SnapshotMeta
from .raft.log import Later
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
        self.limits = limits
        self._background = background
        self._clock = clock
        self._outgoing: Outgoing | None = None
        self._meta: SnapshotMeta | None = None
        self._making = False
        self._last_used = 0.0
        self._doubted = False
        """Somebody could not use an image of ours: our own state is looked through before the next one is made."""
        self._fetched: dict[tuple[int, int], bytes | None] = {}
        """Chunks of the image by offset and size: read, and waiting to be sent; ``None`` while being read."""
        self._next_send = 0.0
        """When the next chunk may go, so that the limit on bytes a second is kept."""
        self._asked = False
        """A chunk was asked for that could not be given at once."""
        self._incoming: Incoming | None = folder.left_incoming()
        self._last_chunk = clock()
        self._storing = False
        """A chunk is being written."""
        self._checking = ""
        """The id of the image that is being checked, empty for none."""
        self._rest_until = 0.0
        """Nothing is made or received before: our own disk did not take it."""

    # -- sending ------------------------------------------------------------------------------------------------------

    def offer(self, at_least: int = 0) -> SnapshotMeta | None:
        """The image to send, one of this index or later that the log continues; ``None`` while there is none."""
        state, wanted = self._folder.state, max(at_least, self._folder.log.first_index() - 1)
        if self._meta is not None and self._meta.index >= wanted:
            self._last_used = self._clock()
            return self._meta
        able = not state.lost and state.applied_index >= wanted and self._clock() >= self._rest_until
        if able and not self._making:
            self._make()
        return None

    def chunk(self, meta: SnapshotMeta, offset: int, size: int) -> bytes | None:
        """Bytes of the image, ``None`` if it is gone.

        Raises:
            Later: they are not read yet, or may not be sent yet: ``due`` says when to ask again.
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
            raise Later
        self._fetched.pop((offset, size), None)
        self._next_send = max(now, self._next_send) + len(data) / self.limits.snapshot_bytes_per_second
        if size > SNAPSHOT_INLINE_BYTES and offset + size < meta.size:
            self._fetch(outgoing, offset + size, size)  # it will be asked for soon
        return data

    def _read(self, outgoing: Outgoing, offset: int, size: int) -> bytes | None:
        try:
            return outgoing.chunk(offset, size)
        except (OSError, DataCorrupted):
            self._drop()
            return None

    def _fetch(self, outgoing: Outgoing, offset: int, size: int) -> None:
        """Read a chunk in the background: a disk may take its time."""
        if (offset, size) in self._fetched:
            return
        while len(self._fetched) >= SNAPSHOT_FETCHED_CHUNKS:
            self._fetched.pop(next(iter(self._fetched)))
        self._fetched[offset, size] = None
        read: list[bytes] = []

        def there(error: Exception | None) -> None:
            if self._outgoing is not outgoing:
                return
            if error is not None:
                self._drop()
            elif (offset, size) in self._fetched:
                self._fetched[offset, size] = read[0]

        self._background(lambda: read.append(outgoing.chunk(offset, size)), there)

    def due(self, now: float) -> bool:
        """Whether a chunk that was asked for in vain may be had now; true once."""
        if not self._asked or now < self._next_send or (self._meta is not None and None in self._fetched.values()):
            return False
        self._asked = False
        return True

    @property
    def next_due(self) -> float | None:
        """The clock time at which ``due`` should be asked again; ``None`` if that needs an event."""
        return self._next_send if self._asked and None not in self._fetched.values() else None

    def needed_from(self) -> int | None:
        """The log is not cut beyond this index, so that it continues the image under way; ``None`` if there is none."""
        if self._meta is None or self._folder.log.size_bytes >= self.limits.log_hold_bytes:
            return None
        return self._meta.index

    def drop_idle(self) -> None:
        """Remove images that nobody fetches or sends any more: they hold disk space, and log."""
        now = self._clock()
        if self._meta is not None and now - self._last_used >= SNAPSHOT_IDLE:
            self._drop()
        busy = self._checking or self._storing
        if self._incoming is not None and not busy and now - self._last_chunk >= SNAPSHOT_IDLE:
            self._incoming.remove()
            self._incoming = None

    def rejected(self, metas: Sequence[SnapshotMeta]) -> None:
        """A receiver found these images damaged: if one of them is ours, the next is made anew."""
        if self._meta is not None and any(meta.id == self._meta.id for meta in metas):
            self._doubted = True
            self._drop()

    def _drop(self) -> None:
        if self._outgoing is not None:
            self._outgoing.remove()
        self._outgoing, self._meta = None, None
        self._fetched.clear()

    def _make(self) -> None:
        self._making = True
        self._drop()
        state, doubted = self._folder.state, self._doubted

        def prepare() -> None:
            if doubted:
                state.verify()
            state.flush()

        self._background(prepare, self._take)

    def _take(self, error: Exception | None) -> None:
        """In the loop, just after a flush: take the checkpoint while applied index and content belong together."""
        self._making = False
        if error is not None:
            self._rest()
            return
        self._doubted = False
        state = self._folder.state
        index, term, configuration = state.applied_index, state.applied_term, state.configuration
        outgoing: Outgoing | None = None
        try:
            outgoing = self._folder.new_outgoing()
            state.checkpoint(outgoing.source)
        except (NoSpace, OSError):
            if outgoing is not None:
                outgoing.remove()
            self._rest()
            return
        self._making = True
        made = outgoing

        def publish(error: Exception | None) -> None:
            self._making = False
            if error is not None:
                made.remove()
                self._rest()
                return
            self._outgoing = made
            self._meta = SnapshotMeta(index, term, configuration, made.id, made.size)
            self._last_used = self._clock()

        self._background(outgoing.pack, publish)

    def _rest(self) -> None:
        self._rest_until = self._clock() + SNAPSHOT_PAUSE

    # -- receiving ----------------------------------------------------------------------------------------------------

    @property
    def arrival(self) -> str:
        """How far an image that is arriving has come, for people. For any thread."""
        incoming = self._incoming
        if incoming is None:
            return "of which nothing has come yet"
        return f"of which {incoming.received} of {incoming.meta.size} bytes have come"

    def receive(self, chunk: InstallSnapshot, node: Node, replaced: Callable[[], None]) -> None:
        """Store a chunk and tell the core how far the image is; once it is whole, check it and swap it in.

        ``replaced`` is called after a swap.
        """
        now = self._last_chunk = self._clock()
        if self._checking or self._storing or now < self._rest_until:
            return  # more chunks change nothing
        try:
            incoming = self._arriving(chunk.meta)
        except (NoSpace, OSError):
            self._give_up_incoming()
            return

        def stored(error: Exception | None) -> None:
            self._storing = False
            if error is not None:
                self._give_up_incoming()
                return
            node.snapshot_progress(chunk, incoming.received)
            if incoming.received == chunk.meta.size:
                self._check(chunk, incoming, node, replaced)

        def store() -> None:
            incoming.accept(chunk.offset, chunk.data)

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

    def _arriving(self, meta: SnapshotMeta) -> Incoming:
        """The image that is arriving, if it is this one, or a place for it instead."""
        incoming = self._incoming
        if incoming is None or incoming.id != meta.id:
            if incoming is not None:
                incoming.remove()
            incoming = self._incoming = self._folder.new_incoming(meta)
        return incoming

    def _check(self, chunk: InstallSnapshot, incoming: Incoming, node: Node, replaced: Callable[[], None]) -> None:
        """The image is whole: look at every byte, in the background, and then make it the state."""
        self._checking = chunk.meta.id

        def install(error: Exception | None) -> None:
            self._checking, self._incoming = "", None
            if isinstance(error, DataCorrupted):
                incoming.remove()
                node.snapshot_rejected(chunk)
                return
            if error is not None:  # which is no fault of the image
                self._incoming = incoming
                self._give_up_incoming()
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

    def _give_up_incoming(self) -> None:
        """The disk takes no more: free what there is, and be silent for a while."""
        if self._incoming is not None:
            self._incoming.remove()
            self._incoming = None
        self._rest()


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
