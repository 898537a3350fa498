"""What an operator asks of one member, by frames: a hash of its keys, its disk space back, or a backup.

Each reads or writes all of the data. They run beside the loop, one at a time on a thread of their own, and few may
wait. To be told when compaction is done is an event of the loop's, where that runs (``compaction_pacer.py``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ...errors import KeeperError, Unavailable
from ...limits import BACKUP_CONFIRM_TIMEOUT_S, MAX_BACKUP_PART_BYTES, MAX_OPERATOR_REQUESTS
from ...schema.answers import Done, Failed, Reason
from ...schema.frames import Refusal, Refused, Reply, Written
from ...schema.operator_frames import BackupBegun, BackupPart, KeysHashed
from ...store.backup_file import encode_header
from ...store.state.key_hash import hash_keys
from ...telemetry import WORK_BUCKETS, Histogram
from .backup_source import BackedUp, BackupSource
from .snapshots import Background


class TooLate(KeeperError):
    """The request's deadline has passed."""


class OperatorRequests:
    """Serves one member's operators. For any thread; ``done`` is called in the loop, or at once.

    Args:
        member: the replica, and the inbox of its loop.
        background: runs slow work outside the loop, one after the other, and no other work.
        throttle: called after each slice of work; gives way to other work.
        clock: the member's.
    """

    def __init__(
        self, member: BackedUp, background: Background, throttle: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._member = member
        self._replica = member.replica
        self.backups = BackupSource()
        """Of this member."""
        self._background = background
        self._throttle = throttle
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = 0
        """Requests that run or wait."""
        self.hash_times = Histogram(WORK_BUCKETS)
        """Seconds of hashing keys, of defragmentation, and how many of these run; for metrics."""
        self.defragment_times = Histogram(WORK_BUCKETS)
        self.defragmenting = 0

    def hash_keys(self, revision: int, deadline: float, done: Callable[[Reply], None]) -> None:
        """Hash the keys up to a revision; 0 for the newest."""

        def work() -> Reply:
            state, began = self._replica.state, self._clock()
            found = hash_keys(state, revision, lambda: self._give_way(deadline))
            self.hash_times.observe(self._clock() - began)
            if isinstance(found, Failed):
                return Written((found,), self._replica.term)
            return KeysHashed(found.hash, found.revision, found.compact_revision, state.revision, self._replica.term)

        self._begin(work, deadline, done)

    def defragment(self, deadline: float, done: Callable[[Reply], None]) -> None:
        """Return the space of what was deleted to the disk. What has begun is not broken off at the deadline."""

        def work() -> Reply:
            state, began = self._replica.state, self._clock()
            self.defragmenting = 1
            try:
                room = state.reclaim(self._replica.folder.free_bytes(), least=0.0)
            finally:
                self.defragmenting = 0
            self.defragment_times.observe(self._clock() - began)
            if not room:
                why = "there is not as much room on the disk as the data takes"
                return Written((Failed(Reason.NO_SPACE, message=why),), self._replica.term)
            return Written((Done(state.revision),), self._replica.term)

        self._begin(work, deadline, done)

    def begin_backup(self, created: float, deadline: float, done: Callable[[Reply], None]) -> None:
        """Make a backup, to be read by ``read_backup``."""

        def work() -> Reply:
            name = self._replica.folder.identity.cluster_name
            patience = min(BACKUP_CONFIRM_TIMEOUT_S, deadline - self._clock())
            try:
                header = self.backups.begin_backup(self._member, name, created, patience)
            except Unavailable as error:
                return Refused(Refusal.OVERLOADED, message=str(error))
            return BackupBegun(header.image, header.image_bytes, encode_header(header), header.revision)

        self._begin(work, deadline, done)

    def read_backup(self, snapshot: str, offset: int, size: int) -> Reply:
        """Bytes of its image. Slow; not for the loop."""
        try:
            return BackupPart(self.backups.read_chunk(snapshot, offset, min(size, MAX_BACKUP_PART_BYTES)))
        except (Unavailable, OSError) as error:
            return Refused(Refusal.LOST, message=str(error))

    def end_backup(self, snapshot: str) -> Reply:
        """Remove it. Slow; not for the loop."""
        self.backups.end_backup(snapshot)
        return Written((Done(self._replica.state.revision),), self._replica.term)

    def _give_way(self, deadline: float) -> None:
        if self._clock() >= deadline:
            raise TooLate("its deadline has passed")
        self._throttle()

    def _begin(self, work: Callable[[], Reply], deadline: float, done: Callable[[Reply], None]) -> None:
        with self._lock:
            full = self._begun >= MAX_OPERATOR_REQUESTS
            self._begun += not full
        if full:
            done(Refused(Refusal.OVERLOADED, message="the member has enough to hash and to defragment"))
            return
        replies: list[Reply] = []

        def run() -> None:
            if self._clock() >= deadline:
                raise TooLate("others were before it")
            replies.append(work())

        def then(error: Exception | None) -> None:
            with self._lock:
                self._begun -= 1
            if error is None:
                done(replies[0])
            elif isinstance(error, TooLate):
                done(Refused(Refusal.TIMED_OUT, message=str(error)))
            else:
                done(Refused(Refusal.NOT_SERVING, message=f"{type(error).__name__}: {error}"))

        self._background(run, then)
