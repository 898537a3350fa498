"""The member's side of a backup: it makes a snapshot, which the caller fetches and writes to a file.

The snapshot is a checkpoint of the state at one log index, taken in the member's loop between two turns. What takes
long (flushing before it, hashing after it) runs beside the loop, so the member goes on serving.

A backup is a linearizable read. Before the snapshot is taken, the member gets the leader's commit index, confirmed by a
quorum, and waits until it has applied that much. So whatever was acknowledged before the call is in the backup,
whichever member makes it. The log index counts, not the revision: leases, sessions, members, settings and request ids
change without a revision. Callers ask a follower first, to spare the leader.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from ...errors import Unavailable
from ...limits import (
    BACKUP_BEGIN_TIMEOUT_S,
    BACKUP_CONFIRM_TIMEOUT_S,
    BACKUP_IDLE_S,
    REQUEST_MARGIN_S,
)
from ...schema.frames import Refused
from ...store.backup_file import Header
from ...store.snapshot_file import SnapshotSource
from ...store.state.content_hash import ContentHasher
from .clock import member_clock
from .events import BackgroundDone, ReadAsked
from .inbox import Inbox
from .replica import Replica
from .throttle import Throttle


class BackedUp(Protocol):
    """The member."""

    @property
    def inbox(self) -> Inbox:
        """Of its loop."""
        ...

    @property
    def replica(self) -> Replica:
        """What its loop drives."""
        ...


class BackupSource:
    """The snapshot that one member has made for a backup: one at a time."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._outgoing: SnapshotSource | None = None
        self._last_used = 0.0
        self._making = False

    def begin_backup(
        self, loop: BackedUp, cluster_name: str, created: float, patience: float = BACKUP_CONFIRM_TIMEOUT_S
    ) -> Header:
        """Make a snapshot of the member's present state. Slow; for any thread but the loop's.

        Args:
            patience: seconds in which the member must have applied all that was acknowledged before this call.

        Raises:
            Unavailable: another backup is being made here, the member lags or hears from no quorum, or a snapshot has
                just replaced its state.
            DataCorrupted: the state is damaged.
        """
        with self._guard:
            if self._making or (self._outgoing is not None and self._is_fresh()):
                raise Unavailable("another backup is being taken from this member")
            self._drop()
            self._making = True
        try:
            _catch_up(loop, patience)
            outgoing, header = _make(loop, cluster_name, created)
            with self._guard:
                self._outgoing, self._last_used = outgoing, time.monotonic()
            return header
        finally:
            self._making = False

    def read_chunk(self, id: str, offset: int, size: int) -> bytes:
        """Bytes of the snapshot with that id.

        Raises:
            Unavailable: it is gone.
        """
        outgoing = self._outgoing
        if outgoing is None or outgoing.id != id:
            raise Unavailable("the snapshot for the backup is gone")
        self._last_used = time.monotonic()
        return outgoing.read_chunk(offset, size)

    def end_backup(self, id: str) -> None:
        """Remove the snapshot with that id."""
        with self._guard:
            if self._outgoing is not None and self._outgoing.id == id:
                self._drop()

    def drop_idle(self) -> None:
        """Remove a snapshot that is no longer fetched: it takes disk space."""
        with self._guard:
            if not self._is_fresh():
                self._drop()

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._last_used < BACKUP_IDLE_S

    def _drop(self) -> None:
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.remove()


def _catch_up(loop: BackedUp, patience: float) -> None:
    """Wait until the member has applied everything that was committed when this was called."""
    outcome: list[Refused | None] = []
    ready = threading.Event()

    def done(refused: Refused | None) -> None:
        outcome.append(refused)
        ready.set()

    loop.inbox.put_own(ReadAsked(member_clock() + patience, done))
    if not ready.wait(patience + REQUEST_MARGIN_S) or outcome[0] is not None:
        raise Unavailable(f"within {patience:.1f} s it did not reach what a quorum had committed")


def _make(loop: BackedUp, cluster_name: str, created: float) -> tuple[SnapshotSource, Header]:
    """Take the checkpoint in the loop, where applied index and content belong together; flush before it and hash after
    it on this thread, so that the loop is held up only briefly."""
    loop.replica.state.flush()
    taken: list[tuple[SnapshotSource, ContentHasher] | Exception] = []
    ready = threading.Event()

    def take() -> None:
        folder = loop.replica.folder
        try:
            outgoing = folder.new_snapshot_source()
            folder.state.checkpoint(outgoing.source)
            taken.append((outgoing, ContentHasher(folder.state)))
        except Exception as error:
            taken.append(error)
        ready.set()

    loop.inbox.put_own(BackgroundDone(take))
    if not ready.wait(BACKUP_BEGIN_TIMEOUT_S):
        raise Unavailable("the member's loop did not answer")
    result = taken[0]
    if isinstance(result, Exception):
        raise result
    outgoing, content = result
    try:
        outgoing.pack()
        header = Header(
            cluster_name=cluster_name,
            cluster=loop.replica.folder.identity.cluster,
            member=loop.replica.folder.identity.member,
            revision=content.revision,
            compact_revision=content.compact_revision,
            index=content.index,
            term=content.term,
            image=outgoing.id,
            image_bytes=outgoing.size,
            content=content.digest(Throttle()),
            created=created,
        )
    except BaseException:
        outgoing.remove()
        raise
    return outgoing, header
