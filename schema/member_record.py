"""One record of the replicated table of members."""

from __future__ import annotations

import msgspec


class MemberRecord(msgspec.Struct, frozen=True, array_like=True):
    """What the cluster knows of one member, besides its part in the configuration."""

    id: int
    name: str
    pin: str = ""
    """The Ray resource that pins it to its node; empty if it has not told it yet."""
    base: str = ""
    """The folder of the cluster's data on its node, which contains the member's own folder."""
    version: int = 1
    """The newest version of commands that it knows (``commands.COMMANDS_VERSION``)."""
    replaces: int = 0
    """The member that it is to replace; 0 for none."""
    voter: bool = True
    """Whether it becomes a voter once it has caught up; otherwise it stays a learner until it is promoted."""
    nonce: bytes = b""
    """Identifies the request that reserved its id."""
    joined: bool = False
    """Whether it has been in a configuration."""
    removed: bool = False
