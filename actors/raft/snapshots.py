"""InstallSnapshot (paper, section 7): images travel in chunks, one at a time for each follower.

The receiver says after each chunk where it wants to go on, and the leader sends from there: so a lost or repeated chunk
does no harm, and a transfer goes on where it stood when the leader, or another that offers the same image, starts it
again. The core moves no bytes itself: it asks ``Storage`` for them, and hands chunks to the owner in ``Ready``.

A member that has lost its state and kept its log says so in its answers to heartbeats. It gets an image too, but beside
the entries, which it goes on acknowledging; and the image takes the place of its log only where the two do not meet.
"""

from __future__ import annotations

from .core import FOLLOWER, Core
from .log import Later
from .messages import AppendEntriesResponse, InstallSnapshot, InstallSnapshotResponse, SnapshotMeta
from .progress import Progress


class SnapshotTransfer(Core):
    """Sending and receiving images."""

    # -- leader -------------------------------------------------------------------------------------------------------

    def _begin_snapshot(self, member: int, progress: Progress) -> None:
        """The follower needs what the log no longer holds."""
        meta = self._storage.snapshot(progress.wanted)
        if meta is None:
            progress.wait()
            return
        progress.begin_snapshot(meta)
        self._send_chunk(member, progress)

    def _send_image(self, member: int, progress: Progress) -> None:
        """The follower has lost its state, but not its log."""
        if progress.snapshot is None or progress.snapshot.index < progress.wanted:
            meta = self._storage.snapshot(progress.wanted)
            if meta is None:
                return  # its next answer asks again
            progress.begin_image(meta)
        self._send_chunk(member, progress)

    def _send_chunk(self, member: int, progress: Progress) -> None:
        """Send the chunk that the follower wants next, unless it is on its way."""
        meta = progress.snapshot
        if meta is None or progress.chunk_in_flight:
            return
        offset = progress.snapshot_offset
        try:
            data = self._storage.snapshot_chunk(meta, offset, self.config.snapshot_chunk_bytes)
        except Later:
            return
        if data is None or (not data and offset < meta.size):
            progress.abandon_snapshot()
            return
        done = offset + len(data) >= meta.size
        self._messages.append(InstallSnapshot(self.id, member, self.term, meta, offset, data, done))
        progress.chunk_sent()

    def snapshot_chunk_ready(self) -> None:
        """A chunk that ``Storage`` did not have at hand can be had now."""
        if self.progress:
            self._sends_due = True

    def _on_snapshot_response(self, message: InstallSnapshotResponse) -> None:
        progress = self.progress.get(message.sender)
        if progress is None:
            return
        progress.recent_active = True
        meta = progress.snapshot
        if meta is None or message.id != meta.id:
            return
        if message.rejected:
            self._rejected_snapshots.append(meta)
            progress.abandon_snapshot()
        elif message.installed:
            if message.index > self.log.last_index:
                return
            progress.on_installed(max(meta.index, message.index))
        else:
            progress.on_chunk_response(message.offset)
        self._sends_due = True

    def travelling_snapshots(self) -> list[SnapshotMeta]:
        """Leader: the images that are being sent; the log right behind them will be needed."""
        return [progress.snapshot for progress in self.progress.values() if progress.snapshot is not None]

    # -- follower -----------------------------------------------------------------------------------------------------

    def _on_snapshot(self, message: InstallSnapshot) -> None:
        self._hear_leader(message.sender)
        if self.snapshot_is_needed(message.meta):
            self._chunk = message
        elif self.needs_image:
            self._answer_snapshot(message.meta, rejected=True)  # older than what the log begins with
        else:
            self._answer_snapshot(message.meta, offset=message.meta.size, installed=True)

    def snapshot_is_needed(self, meta: SnapshotMeta) -> bool:
        """Whether this image tells the node anything. If the log already holds its last entry, then all up to there is
        committed, and what follows it must not be thrown away (paper, figure 13, step 6)."""
        if self.log.matches(meta.index, meta.term):
            self.log.commit_to(meta.index)
        if self.needs_image:
            return meta.index >= self._image_from() and self.role != "leader"
        return meta.index > self.log.commit_index and self.role != "leader"

    def snapshot_keeps_log(self, meta: SnapshotMeta) -> bool:
        """Whether this image, which is needed, takes the place of the state alone, and the log goes on behind it."""
        return self.needs_image and self.log.matches(meta.index, meta.term)

    def _image_from(self) -> int:
        """The lowest index of an image that this node's log continues."""
        return self._storage.first_index() - 1

    def snapshot_progress(self, chunk: InstallSnapshot, next_offset: int) -> None:
        """The owner has stored a chunk, durably or not, and wants the image from ``next_offset`` on."""
        self._answer_snapshot(chunk.meta, offset=next_offset)

    def snapshot_installed(self, meta: SnapshotMeta) -> None:
        """The owner has put an image in place, durably: it is the state, and the log begins behind it, or holds its
        last entry (``snapshot_keeps_log``).

        Raises:
            ValueError: the image was not needed (ask ``snapshot_is_needed`` right before).
        """
        if self.snapshot_keeps_log(meta) and self.role != "leader":
            self._state_restored(meta)
            return
        # By now the durable log begins behind the image, so whether it holds the image's last entry says nothing.
        if meta.index <= self.log.commit_index or self.role == "leader":
            raise ValueError(f"a snapshot of {meta.index} replaced a state whose commit index is {self.commit_index}")
        self.log.reset(meta.index, meta.term)
        self.configuration = meta.configuration
        self.needs_image = False
        if self.role != FOLLOWER:  # a candidate whose log has changed under its votes
            self._become_follower(self.term, 0)
        # Entries of the old log that were never written are gone, and with them what was to be said about them.
        self._messages_after = [m for m in self._messages_after if type(m) is not AppendEntriesResponse]
        self._answer_snapshot(meta, offset=meta.size, installed=True)

    def _state_restored(self, meta: SnapshotMeta) -> None:
        """The lost state is there again, as of an entry of the log; what follows it is handed out anew. So is each
        configuration: in effect is again what was at that entry, as after a start, and until all that are committed
        have been applied this node does not campaign."""
        self.log.applied_index = meta.index
        self.log.commit_to(meta.index)
        self.configuration = meta.configuration
        self.needs_image = False
        if self.role != FOLLOWER:
            self._become_follower(self.term, 0)
        self._answer_snapshot(meta, offset=meta.size, installed=True)

    def snapshot_rejected(self, chunk: InstallSnapshot) -> None:
        """The owner found the image damaged or unusable, and has dropped it."""
        self._answer_snapshot(chunk.meta, rejected=True)

    def _answer_snapshot(
        self, meta: SnapshotMeta, *, offset: int = 0, installed: bool = False, rejected: bool = False
    ) -> None:
        """Answer whoever leads now: that need not be who sent the chunk."""
        if self.leader and self.role == FOLLOWER:
            index = self.log.commit_index if installed else meta.index
            self._messages_after.append(
                InstallSnapshotResponse(self.id, self.leader, self.term, index, meta.id, offset, installed, rejected)
            )
