"""Taking a backup of a running cluster: one member makes an image, the caller fetches it and writes the file.

The image is a checkpoint of the state at one log index, taken in the member's loop between two turns; what takes long
(flushing before it, hashing after it) runs beside the loop, so the member goes on serving.

A backup is a linearizable read. Before its image is made, the member asks for the leader's commit index of now, which a
quorum confirms, and waits until it has applied that much; so all that was acknowledged before the call is in the
backup, whoever gives it. What counts is the index in the log and not the revision: leases, sessions, members, settings
and the memory of requests change without one. A follower is asked first, since the leader has enough to do.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from ..errors import ClusterNotFound, DataCorrupted, KeeperError, Unavailable
from ..limits import (
    BACKUP_BEGIN_TIMEOUT,
    BACKUP_CHUNK_BYTES,
    BACKUP_CHUNK_TIMEOUT,
    BACKUP_CHUNKS_AHEAD,
    BACKUP_CONFIRM_TIMEOUT,
    BACKUP_IDLE,
    POLL_PAUSE,
    REQUEST_MARGIN,
)
from ..store.backup import Header, write_backup
from ..store.checkpoint import Outgoing
from ..store.content import Content
from ..store.rocks import RocksDisk
from .client.deadline import at_most
from .clock import member_clock
from .events import BackgroundDone, ReadAsked
from .loop import Breather, Loop
from .protocol import MemberStatus, Refused
from .roster import ask_all, member_actors, pause
from .seat import member_name


class Images:
    """The images that one member has made for backups: one at a time."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._outgoing: Outgoing | None = None
        self._last_used = 0.0
        self._making = False

    def begin(self, loop: Loop, cluster_name: str, created: float, patience: float = BACKUP_CONFIRM_TIMEOUT) -> Header:
        """Make an image of the member's state as of now. Slow; for any thread but the loop's.

        Args:
            patience: seconds in which the member must have applied all that was acknowledged before this call.

        Raises:
            Unavailable: another backup is under way here, the member has not come that far or hears no quorum, or it
                has just got another state.
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

    def chunk(self, id: str, offset: int, size: int) -> bytes:
        """Bytes of the image of that id.

        Raises:
            Unavailable: it is not there any more.
        """
        outgoing = self._outgoing
        if outgoing is None or outgoing.id != id:
            raise Unavailable("the image for the backup is gone")
        self._last_used = time.monotonic()
        return outgoing.chunk(offset, size)

    def end(self, id: str) -> None:
        """Remove the image of that id."""
        with self._guard:
            if self._outgoing is not None and self._outgoing.id == id:
                self._drop()

    def drop_idle(self) -> None:
        """Remove an image that nobody fetches any more: it holds disk space."""
        with self._guard:
            if not self._is_fresh():
                self._drop()

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._last_used < BACKUP_IDLE

    def _drop(self) -> None:
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.remove()


def _catch_up(loop: Loop, patience: float) -> None:
    """Come back once the member has applied all that was committed anywhere when this was called."""
    outcome: list[Refused | None] = []
    ready = threading.Event()

    def done(refused: Refused | None) -> None:
        outcome.append(refused)
        ready.set()

    loop.inbox.put_own(ReadAsked(member_clock() + patience, done))
    if not ready.wait(patience + REQUEST_MARGIN) or outcome[0] is not None:
        raise Unavailable(f"within {patience:.1f} s it did not reach what a quorum had committed")


def _make(loop: Loop, cluster_name: str, created: float) -> tuple[Outgoing, Header]:
    loop.server.state.flush()  # makes the checkpoint in the loop short
    taken: list[tuple[Outgoing, Content] | Exception] = []
    ready = threading.Event()

    def take() -> None:
        folder = loop.server.folder
        try:
            outgoing = folder.new_outgoing()
            folder.state.checkpoint(outgoing.source)
            taken.append((outgoing, Content(folder.state)))
        except Exception as error:
            taken.append(error)
        ready.set()

    loop.inbox.put_own(BackgroundDone(take))
    if not ready.wait(BACKUP_BEGIN_TIMEOUT):
        raise Unavailable("the member's loop did not answer")
    result = taken[0]
    if isinstance(result, Exception):
        raise result
    outgoing, content = result
    try:
        outgoing.pack()
        header = Header(
            cluster_name=cluster_name,
            cluster=loop.server.folder.identity.cluster,
            member=loop.server.folder.identity.member,
            revision=content.revision,
            compact_revision=content.compact_revision,
            index=content.index,
            term=content.term,
            image=outgoing.id,
            image_bytes=outgoing.size,
            content=content.digest(Breather()),
            created=created,
        )
    except BaseException:
        outgoing.remove()
        raise
    return outgoing, header


# --- the caller's side -----------------------------------------------------------------------------------------------


def take_backup(cluster_name: str, cluster: int, path: Callable[[Header], str], deadline: float) -> tuple[Header, int]:
    """Write a backup of a running cluster to a file of this machine; all that was acknowledged before is in it.

    Args:
        path: gives the absolute path of the file.
        deadline: by ``time.monotonic``.

    Returns:
        the header, and the size of the file.

    Raises:
        Unavailable: no member gave one in time.
        ClusterNotFound: no member runs.
        NoSpace, OSError: the file cannot be written.
    """
    problem = "no member serves"
    while True:
        for member, actor in _candidates(cluster_name, cluster):
            if time.monotonic() >= deadline:
                break
            try:
                return _fetch(actor, path, deadline)
            except (ray.exceptions.RayError, TimeoutError, Unavailable, DataCorrupted) as error:
                problem = f"{member_name(member)}: {_cause(error)}"
        if time.monotonic() >= deadline:
            raise Unavailable(f"no backup of cluster {cluster_name} was taken: {problem}")
        pause(POLL_PAUSE)


def _candidates(cluster_name: str, cluster: int) -> list[tuple[int, Any]]:
    """Members that serve, those who are furthest on first, and the leader last."""
    actors = member_actors(cluster_name)
    if not actors:
        raise ClusterNotFound(f"no cluster {cluster_name} runs in this Ray cluster")
    statuses: dict[int, MemberStatus] = ask_all(actors, "status")
    able = [status for status in statuses.values() if status.cluster == cluster and not status.why_not_serving]
    able.sort(key=lambda status: (status.role == "leader", -status.applied_index))
    return [(status.member, actors[status.member]) for status in able]


def _fetch(actor: Any, path: Callable[[Header], str], deadline: float) -> tuple[Header, int]:
    remaining = at_most(max(0.0, deadline - time.monotonic()))
    begun = actor.begin_backup.remote(time.time(), min(BACKUP_CONFIRM_TIMEOUT, remaining))
    header: Header = ray.get(begun, timeout=min(BACKUP_BEGIN_TIMEOUT, remaining))
    try:
        chunks = _chunks(actor, header, deadline)
        left = bytearray()

        def chunk(offset: int, size: int) -> bytes:
            if not left:
                left.extend(next(chunks, b""))
            data = bytes(left[:size])
            del left[:size]
            return data

        return header, write_backup(RocksDisk(), path(header), header, chunk)
    finally:
        actor.end_backup.remote(header.image)


def _chunks(actor: Any, header: Header, deadline: float) -> Iterator[bytes]:
    """The image from its beginning to its end; a few chunks are asked for ahead."""

    def ask(offset: int) -> Any:
        return actor.backup_chunk.remote(header.image, offset, BACKUP_CHUNK_BYTES)

    offsets = iter(range(0, header.image_bytes, BACKUP_CHUNK_BYTES))
    asked = [ask(offset) for offset in itertools.islice(offsets, BACKUP_CHUNKS_AHEAD)]
    while asked:
        yield ray.get(asked.pop(0), timeout=max(0.0, min(BACKUP_CHUNK_TIMEOUT, deadline - time.monotonic())))
        asked += [ask(offset) for offset in itertools.islice(offsets, 1)]


def _cause(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    return str(cause if isinstance(cause, KeeperError) else error).strip().splitlines()[-1]
