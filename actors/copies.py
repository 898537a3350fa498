"""Which of two folders of one member is the newer, and whether a folder is the member's data or a copy of it.

Each time a member begins to serve, it leaves a note beside its databases: how often it has done so by now, and the
inode of that very note. A disk that is mounted somewhere else, or whose host has another address, keeps both; in a copy
of the folder the note has another inode than it says. So of two folders of one member the one that has served more
often is the newer, and of two that did equally often the one that is no copy.

That matters because a copy may be behind: what the member has voted and acknowledged since is not in it, and a member
must not come back without that. The supervisor starts none from a copy alone; ``launch`` does where the original is
known to be gone, or nothing else makes a quorum (``recovery.py``); then it is the member's data from there on. A disk
that was copied as a whole, block by block, cannot be told from the original, except by how often it has served.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec

Candidate = TypeVar("Candidate")

_NAME = "served.json"


class Served(msgspec.Struct, frozen=True):
    """What is noted in a member's folder."""

    times: int = 0
    """How often a member has begun to serve from this folder, or from what it is a copy of."""
    inode: int = 0
    """Of the note; 0 if there is none."""
    copied: bool = False
    """The note is not where it was written. Never written, but found out."""


def read_served(folder: str) -> Served:
    """The note in a member's folder; one of nothing if there is none that can be read."""
    path = os.path.join(folder, _NAME)
    try:
        with open(path, "rb") as file:
            served = msgspec.json.decode(file.read(), type=Served)
        return msgspec.structs.replace(served, copied=served.inode != os.stat(path).st_ino)
    except (OSError, msgspec.MsgspecError):
        return Served()


def newest_of(candidates: Sequence[Candidate], served: Sequence[Served]) -> list[Candidate]:
    """Of several folders of one member, with their notes: those that have served most often, and of these the ones that
    are no copies, if there are such."""
    most = max(each.times for each in served)
    newest = [(candidate, each) for candidate, each in zip(candidates, served, strict=True) if each.times == most]
    originals = [candidate for candidate, each in newest if not each.copied]
    return originals or [candidate for candidate, _ in newest]


def note_served(folder: str) -> None:
    """Note that a member begins to serve from here. To be called under the lock on the folder, before it promises
    anything.

    Where there is no room for that, the note stays as it is: it is worth no more than a hint.
    """
    path = os.path.join(folder, _NAME)
    with suppress(OSError):
        with open(f"{path}.new", "wb") as file:
            served = Served(read_served(folder).times + 1, os.fstat(file.fileno()).st_ino)
            file.write(msgspec.json.encode(served))
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.new", path)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
