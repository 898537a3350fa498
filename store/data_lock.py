"""The lock on a member's folder: one process at a time, whatever Ray knows of the actor's name."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Unavailable
from .engine.private_files import FILE_MODE
from .engine.rocks import RocksDisk

SYNC_JOURNAL = "RAYKEEPER_SYNC_JOURNAL"
"""Environment variable: a folder in which each process records what its syncs made durable, for tests of durability."""


def member_disk() -> RocksDisk:
    """The disk of this process."""
    journal = os.environ.get(SYNC_JOURNAL)
    return RocksDisk(sync_journal=os.path.join(journal, str(os.getpid())) if journal else None)


@contextmanager
def locked(base: str, member: str) -> Iterator[None]:
    """Hold the lock on a member's folder.

    Raises:
        Unavailable: another process holds it.
    """
    fd = try_lock(base, member)
    if fd is None:
        raise Unavailable(f"another process holds {lock_path(base, member)}")
    try:
        yield
    finally:
        os.close(fd)


def try_lock(base: str, member: str) -> int | None:
    """Lock a member's folder until the returned file descriptor is closed; ``None`` if another process holds the lock.

    The lock lasts exactly as long as the process: it holds where the name of an actor does not.
    """
    fd = os.open(lock_path(base, member), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:  # a file system without locks, say: it may be tried again and again
        os.close(fd)
        raise
    return fd


def lock_path(base: str, member: str) -> str:
    """The file that is locked. It lies next to the member's folder, so that the folder can be replaced under the
    lock."""
    return os.path.join(base, f"{member}.lock")
