"""Whatever this project writes is for its owner alone: folders 0700, files 0600, whatever the umask.

What RocksDB makes follows the umask, which a member's process sets (``actors/process.py``). Other processes keep their
umask, so files that RocksDB makes there, while a backup is restored, may be wider until the member opens its folder and
calls :func:`narrow`. Nobody can reach them meanwhile, because their folder is 0700.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

FOLDER_MODE = 0o700
FILE_MODE = 0o600


def open_private(path: str, flags: int) -> int:
    """An ``opener`` of :func:`open`: as ``os.open``, and a file that is made is its owner's alone."""
    return os.open(path, flags, FILE_MODE)


def narrow(path: str, *, deep: bool) -> bool:
    """Take the rights of everybody but the owner from a folder; ``deep`` also from all that is in it.

    Returns:
        Whether others could enter the folder.

    Raises:
        PermissionError: the folder belongs to somebody else, who let everybody in.
    """
    mode = stat.S_IMODE(os.stat(path).st_mode)
    was_open = bool(mode & 0o077)
    if was_open:
        os.chmod(path, mode & 0o700)
    for folder, folders, files in os.walk(path) if deep else ():
        for name in [*folders, *files]:
            with suppress(FileNotFoundError):
                inner = os.path.join(folder, name)
                seen = os.lstat(inner)
                if not stat.S_ISLNK(seen.st_mode) and seen.st_mode & 0o077:
                    os.chmod(inner, stat.S_IMODE(seen.st_mode) & 0o700)
    return was_open
