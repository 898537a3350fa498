"""Files of the real disk: syncing them, and writing to them in place.

After a failed fsync the content of the disk is unknown (the kernel may have dropped the dirty pages). So it ends the
process, and the next start reads what the disk really holds.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from ...errors import NoSpace
from .private_files import FILE_MODE
from .sync_journal import SyncJournal

FATAL_EXIT = 74
"""Exit status of a process whose fsync failed (EX_IOERR)."""
_ZEROS = bytes(1 << 20)


def exists(path: str) -> bool:
    """Whether there is a file or a folder. ``os.path.exists`` says that there is none if the disk refuses to tell.

    Raises:
        OSError: the disk refuses to tell.
    """
    return _mode(path) is not None


def is_folder(path: str) -> bool:
    """Whether there is a folder. ``os.path.isdir`` says that there is none if the disk refuses to tell.

    Raises:
        OSError: the disk refuses to tell.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: str) -> int | None:
    """What kind of file there is; ``None`` if there is none."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def free_bytes(path: str) -> int:
    """Bytes that this process may still write to the file system of a path."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def exit_on_failed_fsync(what: str, error: Exception) -> NoReturn:
    """End the process: after a failed fsync it does not know what is on its disk, so it must not promise anything."""
    with suppress(Exception):
        sys.stderr.write(f"raykeeper: fsync of {what} failed, ending the process: {error}\n")
        sys.stderr.flush()
    os._exit(FATAL_EXIT)


def sync_path(path: str, flags: int = os.O_RDONLY) -> None:
    """Make a file's content durable."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        exit_on_failed_fsync(path, error)
    finally:
        os.close(descriptor)


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    sync_path(path or ".", os.O_RDONLY | os.O_DIRECTORY)


@contextmanager
def named_if_full(path: str) -> Iterator[None]:
    """Raise ``NoSpace`` for an error of the system that means this. Any call that makes a file, a folder or a name may
    find the disk full."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpace(f"{path}: {error}") from error
        raise


class OsFile:
    """A file of the system (``interface.BlockFile``)."""

    def __init__(self, path: str, size: int | None, journal: SyncJournal | None) -> None:
        self._path = path
        self._journal = journal
        with named_if_full(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (0 if size is None else os.O_CREAT), FILE_MODE)
            try:
                if size is not None:
                    os.posix_fallocate(self._descriptor, 0, size)
                    os.ftruncate(self._descriptor, size)
                self.size = os.fstat(self._descriptor).st_size
            except OSError:
                os.close(self._descriptor)
                raise

    def read(self, offset: int, size: int) -> bytes:
        """As ``BlockFile.read``."""
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += more  # a single read may return less than there is
        return data

    def write(self, offset: int, data: bytes) -> None:
        """As ``BlockFile.write``."""
        if offset + len(data) > self.size:
            raise ValueError(f"{self._path}: a write up to byte {offset + len(data)} of {self.size}")
        try:
            written = os.pwrite(self._descriptor, data, offset)
            while written < len(data):
                written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)
        except OSError:
            with named_if_full(self._path):
                raise

    def write_zeros(self, start: int, end: int) -> None:
        """As ``BlockFile.write_zeros``."""
        for offset in range(start, end, len(_ZEROS)):
            self.write(offset, _ZEROS[: end - offset])

    def sync(self, end: int) -> None:
        """As ``BlockFile.sync``. The file's length and blocks are on disk already, so ``fdatasync`` writes data only;
        it releases the GIL."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            exit_on_failed_fsync(self._path, error)
        if self._journal is not None:
            self._journal.synced({self._path: end})

    def close(self) -> None:
        """As ``BlockFile.close``."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def in_background(work: Callable[[], None], name: str) -> Callable[[], None]:
    """As ``Disk.in_background``."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()

    def wait() -> None:
        thread.join()
        if failure:
            raise failure[0]

    return wait
