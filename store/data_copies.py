"""Which of several folders of one member is the newest, and whether a folder is a copy.

Each time a member starts to serve, it writes a note beside its databases: how often it has started to serve, and the
inode of the note itself. A disk that is mounted elsewhere, or whose host has a new address, keeps both. In a copy of
the folder the note has another inode than it says. So of several folders of one member, the one that has served most
often is the newest, and among equals the one that is not a copy.

This matters because a copy may lag: it lacks what the member has voted and acknowledged since, and a member must not
come back without that. The supervisor starts no member from a copy alone. ``launch`` does if the original is known to
be gone, or if there is no quorum otherwise (``actors/cluster/launch_rule.py``); from then on the copy is the member's
data. A disk that was copied as a whole, block by block, cannot be told from the original, except by how often it
served.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec

from .engine.private_files import open_private

Candidate = TypeVar("Candidate")

_NAME = "served.json"


class Served(msgspec.Struct, frozen=True):
    """The note in a member's folder."""

    times: int = 0
    """How often a member has started to serve from this folder, or from its original."""
    inode: int = 0
    """Inode of the note; 0 if there is none."""
    copied: bool = False
    """The note is not the file that was written. Not stored, but found out when it is read."""


def read_served(folder: str) -> Served:
    """The note in a member's folder; an empty one if there is none, or one that cannot be decoded.

    Raises:
        OSError: the disk refuses to be read, which says nothing of what the note holds.
    """
    path = os.path.join(folder, _NAME)
    try:
        with open(path, "rb") as file:
            served = msgspec.json.decode(file.read(), type=Served)
        return msgspec.structs.replace(served, copied=served.inode != os.stat(path).st_ino)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return Served()


def newest_of(candidates: Sequence[Candidate], served: Sequence[Served]) -> list[Candidate]:
    """Of several folders of one member, with their notes: those that have served most often, and of these the originals
    if there are any."""
    most = max(each.times for each in served)
    newest = [(candidate, each) for candidate, each in zip(candidates, served, strict=True) if each.times == most]
    originals = [candidate for candidate, each in newest if not each.copied]
    return originals or [candidate for candidate, _ in newest]


def note_served(folder: str) -> None:
    """Note that a member starts to serve from here. Call it under the lock on the folder, before the member promises
    anything, and not for each attempt to start that fails: the folder would look newer than one that has served.

    If the disk is full the note stays as it is: it is only a hint.

    Raises:
        OSError: the note that is there cannot be read. To begin again at 1 would make every copy look newer.
    """
    path = os.path.join(folder, _NAME)
    times = read_served(folder).times
    with suppress(OSError):
        with open(f"{path}.new", "wb", opener=open_private) as file:
            served = Served(times + 1, os.fstat(file.fileno()).st_ino)
            file.write(msgspec.json.encode(served))
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.new", path)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
