"""Taking a backup of a running cluster: choosing the member to ask, and fetching the file from it in chunks.

The member's side is ``actors/member/backup_source.py``; the format of the file is ``store/backup_file.py``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from ...errors import AuthFailed, ClusterNotFound, DataCorrupted, KeeperError, PermissionDenied, Unavailable
from ...limits import (
    BACKUP_BEGIN_TIMEOUT_S,
    BACKUP_CHUNK_BYTES,
    BACKUP_CHUNK_TIMEOUT_S,
    BACKUP_CHUNKS_AHEAD,
    BACKUP_CONFIRM_TIMEOUT_S,
    BACKUP_END_TIMEOUT_S,
    POLL_PAUSE_S,
)
from ...schema.operator_frames import MemberStatus
from ...store.backup_file import Header, write_backup
from ...store.engine.rocks import RocksDisk
from ..deadline import at_most, pause_between_checks
from ..discovery import ask_all, member_actors
from ..leader_call import token_for
from ..naming import member_name
from ..steps import count


def take_backup(cluster_name: str, cluster: int, path: Callable[[Header], str], deadline: float) -> tuple[Header, int]:
    """Write a backup of a running cluster to a file on this machine; it holds all that was acknowledged before.

    Args:
        path: returns the absolute path of the file.
        deadline: by ``time.monotonic``.

    Returns:
        the header, and the size of the file.

    Raises:
        AuthFailed, PermissionDenied: users are needed, and this process does not act for one with the role root.
        Unavailable: no member provided one in time.
        ClusterNotFound: no member runs.
        NoSpace, OSError: the file cannot be written.
    """
    problem = "no member serves"
    while True:
        for member, actor in _candidates(cluster_name, cluster):
            if time.monotonic() >= deadline:
                break
            try:
                return _fetch(cluster_name, actor, path, deadline)
            except (AuthFailed, PermissionDenied) as error:
                raise (PermissionDenied if isinstance(error, PermissionDenied) else AuthFailed)(_cause(error)) from None
            except (ray.exceptions.RayError, TimeoutError, Unavailable, DataCorrupted) as error:
                problem = f"{member_name(member)}: {_cause(error)}"
        if time.monotonic() >= deadline:
            raise Unavailable(f"no backup of cluster {cluster_name} was taken: {problem}")
        pause_between_checks(POLL_PAUSE_S)


def _candidates(cluster_name: str, cluster: int) -> list[tuple[int, Any]]:
    """Members that serve, by descending applied index, and the leader last: a backup takes work from the cluster."""
    actors = member_actors(cluster_name)
    if not actors:
        raise ClusterNotFound(f"no cluster {cluster_name} runs in this Ray cluster")
    statuses: dict[int, MemberStatus] = ask_all(actors, "status")
    able = [status for status in statuses.values() if status.cluster == cluster and not status.why_not_serving]
    able.sort(key=lambda status: (status.role == "leader", -status.applied_index))
    return [(status.member, actors[status.member]) for status in able]


def _fetch(cluster_name: str, actor: Any, path: Callable[[Header], str], deadline: float) -> tuple[Header, int]:
    """Have one member make the image of a backup, and write the file from its chunks. The member is told when the image
    is not needed any more, however that ends; otherwise it would drop it only after ``BACKUP_IDLE_S``. It is waited
    for, so that it makes another one for the next who asks."""
    remaining = at_most(max(0.0, deadline - time.monotonic()))
    patience = min(BACKUP_CONFIRM_TIMEOUT_S, remaining)
    begun = actor.begin_backup.remote(time.time(), patience, token_for(cluster_name, actor))
    header: Header = ray.get(begun, timeout=min(BACKUP_BEGIN_TIMEOUT_S, remaining))
    try:
        chunks = _chunks(actor, header, deadline)
        left = bytearray()

        def chunk(offset: int, size: int) -> bytes:
            if not left:
                left.extend(next(chunks, b""))
            data = bytes(left[:size])
            del left[:size]
            count(offset + len(data), header.image_bytes)
            return data

        return header, write_backup(RocksDisk(), path(header), header, chunk)
    finally:
        ray.wait([actor.end_backup.remote(header.image)], timeout=at_most(BACKUP_END_TIMEOUT_S))


def _chunks(actor: Any, header: Header, deadline: float) -> Iterator[bytes]:
    """The chunks of the image in order; a few are requested ahead."""

    def ask(offset: int) -> Any:
        return actor.backup_chunk.remote(header.image, offset, BACKUP_CHUNK_BYTES)

    offsets = iter(range(0, header.image_bytes, BACKUP_CHUNK_BYTES))
    asked = [ask(offset) for offset in itertools.islice(offsets, BACKUP_CHUNKS_AHEAD)]
    while asked:
        yield ray.get(asked.pop(0), timeout=max(0.0, min(BACKUP_CHUNK_TIMEOUT_S, deadline - time.monotonic())))
        asked += [ask(offset) for offset in itertools.islice(offsets, 1)]


def _cause(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    return str(cause if isinstance(cause, KeeperError) else error).strip().splitlines()[-1]
