"""What a member actor is started with: everything that it must know before it can read its own disk.

Ray runs the constructor again with the same seat whenever the process died, so nothing in here may go stale in a way
that matters: what the cluster has decided since stands in the member's data.
"""

from __future__ import annotations

import msgspec

from ..store.portable import Portable

NAMESPACE = "raykeeper"
"""The Ray namespace of all actors of all clusters."""


class Seat(Portable, frozen=True):
    """Which member of which cluster an actor is, and where its data lies."""

    cluster_name: str
    cluster: int
    """Cluster id: data of another is not touched."""
    member: int
    name: str
    folder: str
    """The member's own data directory, an absolute path."""
    pin: str
    """The Ray resource that keeps the actor where its data is."""
    data_dir: str = ""
    """As the spec has it, and the places that it names: for whoever makes room for another member."""
    placement: tuple[str, ...] = ()


def actor_name(cluster_name: str, member_name: str) -> str:
    """The name that a member's actor has in ``NAMESPACE``."""
    return f"raykeeper/{cluster_name}/{member_name}"


def member_name(member: int) -> str:
    """The name of a member, from its id."""
    return f"m{member}"


encode_seat = msgspec.msgpack.Encoder().encode
decode_seat = msgspec.msgpack.Decoder(Seat).decode
