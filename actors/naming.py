"""What a member actor is started with: all that it must know before it can read its own disk.

Ray runs the constructor again with the same spec whenever the process has died. So nothing in it may become stale in a
way that matters: what the cluster has decided since is in the member's data.
"""

from __future__ import annotations

import msgspec

from ..schema.portable import Portable

NAMESPACE = "raykeeper"
"""The Ray namespace of all actors of all clusters."""
SUPERVISOR = "supervisor"
"""The name of a cluster's supervisor, without the cluster's."""
GAVE_UP = "not serving"
"""The role of a member that neither serves nor votes; its status says why."""


class MemberSpec(Portable, frozen=True):
    """Which member of which cluster an actor is, and where its data is."""

    cluster_name: str
    cluster: int
    """Cluster id: data of another one is not touched."""
    member: int
    name: str
    folder: str
    """The member's own data directory, an absolute path."""
    pin: str
    """The Ray resource that keeps the actor on the node with its data."""
    data_dir: str = ""
    """As in the cluster's spec, like ``placement``: needed to create another member."""
    placement: tuple[str, ...] = ()


def actor_name(cluster_name: str, member_name: str) -> str:
    """The name that a member's actor has in ``NAMESPACE``."""
    return f"raykeeper/{cluster_name}/{member_name}"


def member_name(member: int) -> str:
    """The name of a member, from its id."""
    return f"m{member}"


def proxy_name(node: str) -> str:
    """The name of the proxy on a node, without the cluster's."""
    return f"proxy-{node}"


encode_member_spec = msgspec.msgpack.Encoder().encode
decode_member_spec = msgspec.msgpack.Decoder(MemberSpec).decode
