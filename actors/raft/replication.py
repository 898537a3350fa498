"""Log replication (paper, section 5.3), as seen from the leader and from the follower.

The leader does not send when something happens, it notes that sending is due; ``ready`` then sends once for all that
has gathered. So many proposals travel in one AppendEntries, and a moved commit index travels with the next entries.
"""

from __future__ import annotations

from collections.abc import Sequence

from .core import ProposalRefused
from .log import ENTRY_OVERHEAD, Compacted, entries_size
from .messages import AppendEntries, AppendEntriesResponse, Entry, EntryKind, TimeoutNow
from .progress import Progress, ProgressState
from .quorum import majority_value
from .snapshots import SnapshotTransfer


class Replication(SnapshotTransfer):
    """Appending, sending and committing entries."""

    # -- leader -------------------------------------------------------------------------------------------------------

    def _append_own(self, datas: Sequence[bytes], kind: EntryKind = EntryKind.NORMAL) -> int:
        """Add entries of this leader's term; the index of the first."""
        first, term = self.log.last_index + 1, self.term
        entries = [Entry(index, term, kind, data) for index, data in enumerate(datas, first)]
        size = entries_size(entries)
        self._uncommitted.append((entries[-1].index, size))
        self._uncommitted_bytes += size
        self.log.append(entries)
        self._sends_due = True
        return first

    def _check_uncommitted(self, datas: Sequence[bytes]) -> None:
        """Refuse proposals beyond the bound; but what alone exceeds it goes when nothing else is under way."""
        if not self._uncommitted_bytes:
            return
        size = sum(map(len, datas)) + len(datas) * ENTRY_OVERHEAD
        if self._uncommitted_bytes + size > self.config.max_uncommitted_bytes:
            raise ProposalRefused("too many bytes are proposed and not yet committed")

    def _send_appends(self) -> None:
        """Send every follower what it may get now."""
        self._sends_due = False
        batches: dict[int, tuple[tuple[Entry, ...], int]] = {}
        for member, progress in self.progress.items():
            if member != self.id:
                self._send_to(member, progress, batches)

    def _send_to(self, member: int, progress: Progress, batches: dict[int, tuple[tuple[Entry, ...], int]]) -> None:
        """Fill one follower's window. ``batches`` keeps what was read from the log, by first index, for the others."""
        log = self.log
        if progress.state is ProgressState.SNAPSHOT:
            self._send_chunk(member, progress)
            return
        if progress.wanted:
            self._send_image(member, progress)
        while not progress.paused:
            next_index = progress.next_index
            if next_index > log.last_index and progress.state is ProgressState.REPLICATE:
                break
            try:
                prev_term = log.term(next_index - 1)
                batch = batches.get(next_index)
                if batch is None:
                    found = log.entries(next_index, log.last_index + 1, self.config.max_append_bytes)
                    batch = batches[next_index] = (tuple(found), entries_size(found))
            except Compacted:
                self._begin_snapshot(member, progress)
                return
            self._send_append(member, progress, prev_term, *batch)
        if progress.state is ProgressState.REPLICATE and progress.sent_commit < log.commit_index:
            self._send_empty(member, progress, quiet=True)

    def _send_append(
        self,
        member: int,
        progress: Progress,
        prev_term: int,
        entries: tuple[Entry, ...],
        size: int,
        *,
        quiet: bool = False,
    ) -> None:
        commit = self.log.commit_index
        prev_index = progress.next_index - 1
        self._messages.append(AppendEntries(self.id, member, self.term, prev_index, prev_term, commit, entries, quiet))
        progress.sent(len(entries), size, commit)

    def _send_empty(self, member: int, progress: Progress, *, quiet: bool = False) -> None:
        """Find out whether what was sent has arrived, or (``quiet``) only tell the commit index; no window holds this
        back."""
        try:
            self._send_append(member, progress, self.log.term(progress.next_index - 1), (), 0, quiet=quiet)
        except Compacted:
            self._begin_snapshot(member, progress)

    def _on_append_response(self, message: AppendEntriesResponse) -> None:
        progress = self.progress.get(message.sender)
        if progress is None:
            return
        progress.recent_active = True
        if not message.success:
            hint = message.hint_index
            if message.hint_term > 0:
                hint = self.log.find_conflict(hint, message.hint_term)
            if progress.on_reject(message.index, hint):
                if message.index == 0:
                    self._begin_snapshot(message.sender, progress)
                self._sends_due = True
            return
        if message.index > self.log.last_index or not progress.on_success(message.index, self._storage.first_index()):
            return
        self._sends_due = True
        self._maybe_commit(message.index)
        if message.sender == self.transfer_target and progress.match_index == self.log.last_index:
            self._messages.append(TimeoutNow(self.id, message.sender, self.term))

    def _maybe_commit(self, reached: int) -> None:
        """Somebody has reached an index: commit what a quorum has, if it is of our own term (paper, 5.4.2)."""
        if reached <= self.log.commit_index:
            return
        progress = self.progress
        configuration = self.configuration
        index = majority_value([progress[voter].match_index for voter in configuration.voters])
        if configuration.outgoing:
            index = min(index, majority_value([progress[voter].match_index for voter in configuration.outgoing]))
        # From the no-op on the log holds nothing but entries of our own term.
        if index >= self._term_start and self.log.commit_to(index):
            self._sends_due = True
            uncommitted = self._uncommitted
            while uncommitted and uncommitted[0][0] <= index:
                self._uncommitted_bytes -= uncommitted.popleft()[1]

    def _count_own_append(self) -> None:
        """What this leader has on disk counts as its own."""
        progress = self.progress.get(self.id)
        if progress is not None and self.log.stable_index > progress.match_index:
            progress.on_success(self.log.stable_index, self.log.stable_index)
            self._maybe_commit(self.log.stable_index)

    # -- follower -----------------------------------------------------------------------------------------------------

    def _on_append(self, message: AppendEntries) -> None:
        self._hear_leader(message.sender)
        entries, prev_index = message.entries, message.prev_log_index
        if entries and not _continues(prev_index, message.prev_log_term, entries, message.term):
            return  # malformed
        log = self.log
        if prev_index < log.commit_index:
            # Old or repeated: what is committed here equals the leader's log.
            if not message.quiet:
                self._acknowledge(message.sender, log.commit_index)
            return
        if not self.configuration.voters:
            # Changes of a configuration mean nothing to one who does not know the first. Every log continues entry 0,
            # so refusing it tells the leader that nothing but an image will do.
            self._messages_after.append(AppendEntriesResponse(self.id, message.sender, self.term, False, prev_index))
            return
        last_new = log.accept(prev_index, message.prev_log_term, entries)
        if last_new is not None:
            log.commit_to(min(message.leader_commit, last_new))
            if not message.quiet:
                self._acknowledge(message.sender, last_new)
            return
        hint = log.find_conflict(prev_index, message.prev_log_term)
        try:
            hint_term = log.term(hint)
        except Compacted:
            hint_term = 0
        self._messages_after.append(
            AppendEntriesResponse(self.id, message.sender, self.term, False, prev_index, hint, hint_term)
        )

    def _acknowledge(self, leader: int, index: int) -> None:
        """Promise that everything up to ``index`` is on disk and as the leader has it.

        Answers that gather until the next write are merged: the highest says it all.
        """
        after = self._messages_after
        if after:
            last = after[-1]
            if type(last) is AppendEntriesResponse and last.success and last.to == leader and last.term == self.term:
                if last.index >= index:
                    return
                after.pop()
        after.append(AppendEntriesResponse(self.id, leader, self.term, True, index))

    def _refuse_stale_leader(self, sender: int) -> None:
        """Show a deposed leader the newer term, or it would never learn of it: pre-vote and stickiness keep others
        from telling (thesis, section 9.6)."""
        self._messages_after.append(AppendEntriesResponse(self.id, sender, self.term, False, -1))


def _continues(index: int, term: int, entries: Sequence[Entry], newest: int) -> bool:
    """Whether entries can follow an entry of this index and term in the log of a leader of the term ``newest``."""
    for entry in entries:
        index += 1
        if entry.index != index or not term <= entry.term <= newest:
            return False
        term = entry.term
    return True
