"""A note beside a member's databases: the newest configuration and table of members that it has applied.

A launch over data that nobody has open reads these small files to see whom to start and where, without opening any
database. A note is a hint: it may be behind what the databases hold, and nothing that matters for safety rests on it,
because every member that is started goes by its own log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ..actors.raft.messages import Configuration
from .engine import Disk
from .members import Description

if TYPE_CHECKING:
    from .state import State

_NAME = "membership.json"


class MembershipNote(msgspec.Struct, frozen=True):
    """What a member knew of all members."""

    configuration: Configuration
    members: tuple[Description, ...] = ()
    """Those that are not removed."""
    removed: tuple[int, ...] = ()


def note_of(state: State) -> MembershipNote:
    """What a state machine knows now. For any thread."""
    table = state.members.by_id
    return MembershipNote(
        state.configuration,
        tuple(description for _, description in sorted(table.items()) if not description.removed),
        tuple(sorted(member for member, description in table.items() if description.removed)),
    )


def write_note(disk: Disk, folder: str, note: MembershipNote) -> None:
    """Leave the note in a member's folder, in the place of an older one."""
    data = msgspec.json.encode(note)
    try:
        if disk.read(f"{folder}/{_NAME}") == data:
            return
    except FileNotFoundError:
        pass
    disk.replace(f"{folder}/{_NAME}", data)


def read_note(disk: Disk, folder: str) -> MembershipNote | None:
    """The note in a member's folder; ``None`` if there is none that can be read."""
    try:
        return msgspec.json.decode(disk.read(f"{folder}/{_NAME}"), type=MembershipNote)
    except (OSError, msgspec.MsgspecError):
        return None
