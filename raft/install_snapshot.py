"""InstallSnapshot (paper, section 7): the image of a snapshot travels in chunks, one at a time for each follower.

After each chunk the receiver says which byte it wants next, and the leader sends from there. So a lost or repeated
chunk does no harm, and a transfer that the same leader, or another one with the same snapshot, starts again continues
where it was. The core moves no bytes itself: it asks ``Storage`` for them, and hands chunks to the owner in ``Ready``.

A member that has lost its state and kept its log says so in its answers to heartbeats. It gets a snapshot beside the
entries, which it continues to acknowledge. The snapshot replaces its log only if the log does not continue it.
"""

from __future__ import annotations

from .core import FOLLOWER, Core
from .log import ChunkNotReady
from .messages import AppendEntriesResponse, InstallSnapshot, InstallSnapshotResponse, SnapshotMeta
from .progress import Progress


class SnapshotTransfer(Core):
    """Sending and receiving snapshots."""

    # -- leader -------------------------------------------------------------------------------------------------------

    def _begin_snapshot(self, member: int, progress: Progress) -> None:
        """The follower needs entries that the log no longer holds."""
        meta = self._storage.snapshot(progress.min_snapshot_index)
        if meta is None:
            progress.await_answer()
            return
        progress.begin_snapshot(meta)
        self._send_chunk(member, progress)

    def _send_state_snapshot(self, member: int, progress: Progress) -> None:
        """The follower has lost its state, but not its log: send a snapshot in addition to the entries."""
        if progress.snapshot is None or progress.snapshot.index < progress.min_snapshot_index:
            meta = self._storage.snapshot(progress.min_snapshot_index)
            if meta is None:
                return  # its next answer asks again
            progress.begin_state_snapshot(meta)
        self._send_chunk(member, progress)

    def _send_chunk(self, member: int, progress: Progress) -> None:
        """Send the chunk that the follower wants next, unless it is in flight."""
        meta = progress.snapshot
        if meta is None or progress.chunk_in_flight:
            return
        offset = progress.snapshot_offset
        try:
            data = self._storage.snapshot_chunk(meta, offset, self.config.snapshot_chunk_bytes)
        except ChunkNotReady:
            return
        if data is None or (not data and offset < meta.size):
            progress.abandon_snapshot()
            return
        done = offset + len(data) >= meta.size
        self._messages.append(InstallSnapshot(self.id, member, self.term, meta, offset, data, done))
        progress.on_chunk_sent()

    def snapshot_chunk_ready(self) -> None:
        """A chunk for which ``Storage`` raised ``ChunkNotReady`` is ready now."""
        if self.progress:
            self._sends_due = True

    def _on_snapshot_response(self, message: InstallSnapshotResponse) -> None:
        """Continue, finish or give up a transfer. An answer about a snapshot other than the one being sent is late, and
        one that claims more than this leader's log is wrong; both are ignored."""
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

    # -- follower -----------------------------------------------------------------------------------------------------

    def _on_snapshot(self, message: InstallSnapshot) -> None:
        self._hear_leader(message.sender)
        if self.snapshot_is_needed(message.meta):
            self._chunk = message
        elif self.needs_snapshot:
            self._answer_snapshot(message.meta, rejected=True)  # older than the base of the log
        else:
            self._answer_snapshot(message.meta, offset=message.meta.size, installed=True)

    def snapshot_is_needed(self, meta: SnapshotMeta) -> bool:
        """Whether this node has to install this snapshot. If the log already holds its last entry, everything up to
        there is committed, and the entries after it must be kept (paper, figure 13, step 6)."""
        if self.log.matches(meta.index, meta.term):
            self.log.commit_to(meta.index)
        if self.needs_snapshot:
            return meta.index >= self._min_snapshot_index() and self.role != "leader"
        return meta.index > self.log.commit_index and self.role != "leader"

    def snapshot_keeps_log(self, meta: SnapshotMeta) -> bool:
        """Whether this snapshot, which is needed, replaces only the state: the log holds its last entry and is kept."""
        return self.needs_snapshot and self.log.matches(meta.index, meta.term)

    def _min_snapshot_index(self) -> int:
        """The lowest index of a snapshot that this node's log continues."""
        return self._storage.first_index() - 1

    def snapshot_progress(self, chunk: InstallSnapshot, next_offset: int) -> None:
        """The owner has stored a chunk, durably or not, and wants the image from byte ``next_offset`` on."""
        self._answer_snapshot(chunk.meta, offset=next_offset)

    def snapshot_installed(self, meta: SnapshotMeta, *, log_kept: bool = False) -> None:
        """The owner has durably installed a snapshot: it is the state now, and the log begins after it.

        Args:
            log_kept: the log holds the snapshot's last entry, and was kept. This is what ``snapshot_keeps_log`` said
                before the installation; a log that was replaced answers everything about that entry as if it held it.

        Raises:
            ValueError: the snapshot was not needed (call ``snapshot_is_needed`` right before).
        """
        if log_kept and self.role != "leader":
            self._state_restored(meta)
            return
        if meta.index <= self.log.commit_index or self.role == "leader":
            raise ValueError(f"a snapshot of {meta.index} replaced a state whose commit index is {self.commit_index}")
        self.log.reset(meta.index, meta.term)
        self.configuration = meta.configuration
        self.needs_snapshot = False
        if self.role != FOLLOWER:  # a candidate whose log has changed under its votes
            self._become_follower(self.term, 0)
        # Unwritten entries of the old log are gone. An answer that acknowledges them would be a false promise.
        self._messages_after = [m for m in self._messages_after if type(m) is not AppendEntriesResponse]
        self._answer_snapshot(meta, offset=meta.size, installed=True)

    def _state_restored(self, meta: SnapshotMeta) -> None:
        """The lost state is restored, as of an entry of the log. The entries after it are handed out again,
        configurations included: as after a start, the configuration in effect is the one at that entry, and this node
        does not campaign before it has applied all that are committed."""
        self.log.applied_index = meta.index
        self.log.commit_to(meta.index)
        self.configuration = meta.configuration
        self.needs_snapshot = False
        if self.role != FOLLOWER:
            self._become_follower(self.term, 0)
        self._answer_snapshot(meta, offset=meta.size, installed=True)

    def snapshot_rejected(self, chunk: InstallSnapshot) -> None:
        """The owner found the image damaged or unusable and has dropped it."""
        self._answer_snapshot(chunk.meta, rejected=True)

    def _answer_snapshot(
        self, meta: SnapshotMeta, *, offset: int = 0, installed: bool = False, rejected: bool = False
    ) -> None:
        """Answer the current leader, which need not be the sender of the chunk."""
        if self.leader and self.role == FOLLOWER:
            index = self.log.commit_index if installed else meta.index
            self._messages_after.append(
                InstallSnapshotResponse(self.id, self.leader, self.term, index, meta.id, offset, installed, rejected)
            )
