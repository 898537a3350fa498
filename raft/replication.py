"""Log replication (paper, section 5.3), the leader's side and the follower's.

The leader does not send at each event. It notes that sending is due, and ``ready`` then sends once for everything that
has gathered. Thus many proposals share one AppendEntries. A new commit index travels with the next entries or the next
heartbeat; only followers that want to know it at once are told by a message of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from .core import FOLLOWER, ProposalRefused
from .install_snapshot import SnapshotTransfer
from .log import ENTRY_OVERHEAD, EntryCompacted, LogInconsistent, can_follow, entries_size
from .messages import AppendEntries, AppendEntriesResponse, Entry, EntryKind, TimeoutNow
from .progress import Progress, ProgressState
from .quorum import majority_value
from .quorum_first import waiting_followers


class Replication(SnapshotTransfer):
    """Appending, sending and committing entries."""

    # -- leader -------------------------------------------------------------------------------------------------------

    def _append_own(self, datas: Sequence[bytes], kind: EntryKind = EntryKind.NORMAL) -> int:
        """Append entries of this leader's term. Returns the index of the first."""
        first, term = self.log.last_index + 1, self.term
        entries = [Entry(index, term, kind, data) for index, data in enumerate(datas, first)]
        size = entries_size(entries)
        self._uncommitted.append((entries[-1].index, size))
        self._uncommitted_bytes += size
        self.log.append(entries)
        self._sends_due = True
        return first

    def _check_uncommitted(self, datas: Sequence[bytes]) -> None:
        """Refuse proposals beyond the bound. One that alone exceeds it is accepted when nothing else is uncommitted."""
        if not self._uncommitted_bytes:
            return
        size = sum(map(len, datas)) + len(datas) * ENTRY_OVERHEAD
        if self._uncommitted_bytes + size > self.config.max_uncommitted_bytes:
            raise ProposalRefused("too many bytes are proposed and not yet committed")

    def _send_appends(self) -> None:
        """Send what their windows allow to the followers that need it now, and note whether others need it, too."""
        self._sends_due = self.commit_untold = False
        log, waiting = self.log, self._waiting_followers()
        batches: dict[int, tuple[tuple[Entry, ...], int]] = {}
        for member, progress in self.progress.items():
            if member in waiting:
                if progress.next_index <= log.last_index:
                    self.sends_deferred = True
                elif progress.sent_commit < log.commit_index:
                    self.commit_untold = True
            elif member != self.id:
                self._send_to(member, progress, batches)

    def _waiting_followers(self) -> Sequence[int]:
        """Those to which nothing has to be sent at once (see ``quorum_first``)."""
        if not self.config.quorum_first or self.transfer_target:
            return ()
        return waiting_followers(self.id, self.configuration, self.progress, self.log.last_index, self._latest)

    def send_deferred(self) -> None:
        """Leader: send to all followers what they have not been sent yet (see ``sends_deferred``)."""
        self.sends_deferred = False
        batches: dict[int, tuple[tuple[Entry, ...], int]] = {}
        for member, progress in self.progress.items():
            if member != self.id:
                self._send_to(member, progress, batches)

    def _send_to(self, member: int, progress: Progress, batches: dict[int, tuple[tuple[Entry, ...], int]]) -> None:
        """Fill one follower's window. ``batches`` keeps what was read from the log, by first index, for the other
        followers: most need the same entries.

        A probing follower gets one message, empty if need be, to find where the logs agree. Entries that the log no
        longer holds turn it into one that needs a snapshot.
        """
        log = self.log
        if progress.state is ProgressState.SNAPSHOT:
            self._send_chunk(member, progress)
            return
        if progress.lost_state:
            self._send_state_snapshot(member, progress)
        while progress.next_index <= log.last_index or progress.state is not ProgressState.REPLICATE:
            if progress.paused:
                break
            next_index = progress.next_index
            try:
                prev_term = log.term(next_index - 1)
                batch = batches.get(next_index)
                if batch is None:
                    found = log.entries(next_index, log.last_index + 1, self.config.max_append_bytes)
                    batch = batches[next_index] = (tuple(found), entries_size(found))
            except EntryCompacted:
                self._begin_snapshot(member, progress)
                return
            self._send_append(member, progress, prev_term, *batch)
        if progress.state is ProgressState.REPLICATE and progress.sent_commit < log.commit_index:
            if progress.wants_commits:
                self._send_empty(member, progress, commit_only=True)
            else:
                self.commit_untold = True

    def tell_commit(self) -> None:
        """Leader: tell the commit index to all followers that do not know it (see ``commit_untold``)."""
        self.commit_untold = False
        for member, progress in self.progress.items():
            if member != self.id:
                self._tell_commit_to(member, progress)

    def _tell_commit_to(self, member: int, progress: Progress) -> None:
        if progress.state is ProgressState.REPLICATE and progress.sent_commit < self.log.commit_index:
            self._send_empty(member, progress, commit_only=True)

    def _needs_message(self, progress: Progress) -> bool:
        """Whether a follower that has just answered may need a message; ``_send_to`` decides."""
        return (
            progress.next_index <= self.log.last_index
            or progress.state is not ProgressState.REPLICATE
            or progress.lost_state
            or (progress.wants_commits and progress.sent_commit < self.log.commit_index)
        )

    def _send_append(
        self,
        member: int,
        progress: Progress,
        prev_term: int,
        entries: tuple[Entry, ...],
        size: int,
        *,
        commit_only: bool = False,
    ) -> None:
        """Send entries that follow ``next_index - 1``. The receiver checks the same for each entry (``can_follow``).

        Raises:
            LogInconsistent: they do not.
        """
        commit = self.log.commit_index
        prev_index = progress.next_index - 1
        if entries:
            first, last = entries[0], entries[-1]
            if (first.index, last.index) != (prev_index + 1, prev_index + len(entries)) or not (
                prev_term <= first.term <= last.term <= self.term
            ):
                raise LogInconsistent(f"entries {first} to {last} cannot follow entry {prev_index} of term {prev_term}")
        self._messages.append(
            AppendEntries(self.id, member, self.term, prev_index, prev_term, commit, entries, commit_only)
        )
        progress.on_sent(len(entries), size, commit)
        if entries:
            progress.ask(self._latest, index=entries[-1].index)

    def _send_empty(self, member: int, progress: Progress, *, commit_only: bool = False) -> None:
        """Find out whether what was sent has arrived, or (``commit_only``) only tell the commit index. Not subject to
        the window."""
        try:
            self._send_append(member, progress, self.log.term(progress.next_index - 1), (), 0, commit_only=commit_only)
        except EntryCompacted:
            self._begin_snapshot(member, progress)

    def _on_append_response(self, message: AppendEntriesResponse) -> None:
        """Move the follower's progress (paper, 5.3), and commit what a quorum now holds.

        Nothing in the message is trusted beyond the leader's own log: a success past its end says that some member has
        lost its data, and is ignored. A refusal of entry 0 means that no entry will do: the follower needs a snapshot.
        """
        progress = self.progress.get(message.sender)
        if progress is None:
            return
        progress.recent_active = True
        if message.success:
            progress.wants_commits = message.wants_commits
            if progress.wants_commits and progress.sent_commit < self.log.commit_index:
                self._sends_due = True
        else:
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
        progress.note_answer(self._latest)
        self._sends_due = self._sends_due or self._needs_message(progress)
        self._maybe_commit(message.index)
        if message.sender == self.transfer_target and progress.match_index == self.log.last_index:
            self._messages.append(TimeoutNow(self.id, message.sender, self.term))

    def _maybe_commit(self, reached: int) -> None:
        """A member's log has reached an index: commit what a quorum holds, if it is of this term (paper, 5.4.2)."""
        if reached <= self.log.commit_index:
            return
        progress = self.progress
        configuration = self.configuration
        index = majority_value([progress[voter].match_index for voter in configuration.voters])
        if configuration.outgoing:
            index = min(index, majority_value([progress[voter].match_index for voter in configuration.outgoing]))
        # From its no-op on, this leader's log holds only entries of its own term.
        if index >= self._term_start and self.log.commit_to(index):
            for member, each in progress.items():
                if member != self.id:
                    self.commit_untold = True
                    self._sends_due = self._sends_due or each.wants_commits
            uncommitted = self._uncommitted
            while uncommitted and uncommitted[0][0] <= index:
                self._uncommitted_bytes -= uncommitted.popleft()[1]

    def _count_own_append(self) -> None:
        """Count this leader's own log towards the quorum, as far as it is on disk."""
        progress = self.progress.get(self.id)
        if progress is not None and self.log.stable_index > progress.match_index:
            progress.on_success(self.log.stable_index, self.log.stable_index)
            self._maybe_commit(self.log.stable_index)

    # -- follower -----------------------------------------------------------------------------------------------------

    def _on_append(self, message: AppendEntries) -> None:
        """Make the log equal to the leader's, as far as the message goes (paper, figure 2: AppendEntries).

        Two invariants: committed entries are never replaced, and an answer leaves only after the entries that it
        acknowledges are on disk (``_messages_after``). The commit index rises only to entries that this message has
        shown to equal the leader's.
        """
        self._hear_leader(message.sender)
        entries, prev_index = message.entries, message.prev_log_index
        if entries and not can_follow(prev_index, message.prev_log_term, entries, message.term):
            return  # malformed
        log = self.log
        if prev_index < log.commit_index:
            # Late or repeated: up to its commit index this log equals the leader's (Leader Completeness).
            if not message.commit_only:
                self._acknowledge(message.sender, log.commit_index)
            return
        if not self.configuration.voters:
            # A new member without a configuration cannot apply changes to one. Every log continues entry 0, so refusing
            # that entry tells the leader that only a snapshot will do.
            self._messages_after.append(AppendEntriesResponse(self.id, message.sender, self.term, False, prev_index))
            return
        last_new = log.append_from_leader(prev_index, message.prev_log_term, entries)
        if last_new is not None:
            log.commit_to(min(message.leader_commit, last_new))
            if not message.commit_only:
                self._acknowledge(message.sender, last_new)
            return
        hint = log.find_conflict(prev_index, message.prev_log_term)
        try:
            hint_term = log.term(hint)
        except EntryCompacted:
            hint_term = 0
        self._messages_after.append(
            AppendEntriesResponse(self.id, message.sender, self.term, False, prev_index, hint, hint_term)
        )

    def _acknowledge(self, leader: int, index: int) -> None:
        """Promise that everything up to ``index`` is on disk and equals the leader's log.

        Answers that gather until the next write are merged: the highest index covers the others.
        """
        after = self._messages_after
        if after:
            last = after[-1]
            if type(last) is AppendEntriesResponse and last.success and last.to == leader and last.term == self.term:
                index = max(index, last.index)
                after.pop()
        after.append(AppendEntriesResponse(self.id, leader, self.term, True, index, wants_commits=self._wants_commits))

    def want_commits(self, wanted: bool) -> bool:
        """Say whether something at this node waits for what is committed next. If nothing does, the leader saves itself
        and this node the messages that tell nothing but a new commit index. A node that begins to want them says so at
        once: what is committed already is in every leader's log, so it can be acknowledged.

        Returns:
            Whether this node has something to send now.
        """
        if wanted is self._wants_commits:
            return False
        self._wants_commits = wanted
        if not wanted or not self.leader or self.role != FOLLOWER:
            return False
        self._acknowledge(self.leader, self.log.commit_index)
        return True

    def _refuse_stale_leader(self, sender: int) -> None:
        """Tell a deposed leader the newer term. It might never learn of it otherwise, since with pre-vote and
        stickiness no candidate may tell it (thesis, section 9.6)."""
        self._messages_after.append(AppendEntriesResponse(self.id, sender, self.term, False, -1))
