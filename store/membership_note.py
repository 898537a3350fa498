"""A note beside a member's databases: the newest configuration and table of members that it has applied.

A launch from existing data reads these small files to find which members to start and where, without opening a
database. A note is a hint: it may lag the databases, and safety never depends on it, because every member that starts
goes by its own log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..raft.messages import Configuration
from ..schema.member_record import MemberRecord
from .engine.interface import Disk

if TYPE_CHECKING:
    from .state.machine import State

_NAME = "membership.json"


class MembershipNote(msgspec.Struct, frozen=True):
    """The members as one member last knew them."""

    configuration: Configuration
    members: tuple[MemberRecord, ...] = ()
    """Those that are not removed."""
    removed: tuple[int, ...] = ()


def note_of(state: State) -> MembershipNote:
    """The note for the present state. For any thread."""
    table = state.members.by_id
    return MembershipNote(
        state.configuration,
        tuple(record for _, record in sorted(table.items()) if not record.removed),
        tuple(sorted(member for member, record in table.items() if record.removed)),
    )


def write_note(disk: Disk, folder: str, note: MembershipNote) -> None:
    """Write the note to a member's folder, replacing an older one."""
    data = msgspec.json.encode(note)
    try:
        if disk.read(f"{folder}/{_NAME}") == data:
            return
    except FileNotFoundError:
        pass
    disk.replace(f"{folder}/{_NAME}", data)


def read_note(disk: Disk, folder: str) -> MembershipNote | None:
    """The note in a member's folder; ``None`` if there is none, or one that cannot be decoded.

    Raises:
        OSError: the disk refuses to be read.
    """
    try:
        return msgspec.json.decode(disk.read(f"{folder}/{_NAME}"), type=MembershipNote)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return None
