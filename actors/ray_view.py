"""What there is around the members of a cluster, as Ray knows it: nodes, the supervisor, proxies.

A status needs it besides what the members say. A process that is attached to Ray can ask (``proxy/view_ray.py``); a
shell that is not asks the proxy on its node, which then sends a :class:`RayView`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec


class RayNode(msgspec.Struct, frozen=True):
    """A Ray node that is alive: its id, its address, and the names of the resources that it offers, without those that
    an actor cannot be pinned by."""

    id: str
    address: str
    resources: frozenset[str]

    @property
    def own_pin(self) -> str:
        """The resource that every Ray node offers for its address, and only nodes at that address offer."""
        return f"node:{self.address}"

    def pin(self, wished: Sequence[str]) -> str:
        """The resource to pin a member here with: one of ``wished``, or the node's own."""
        return next((pin for pin in wished if pin in self.resources), self.own_pin)


def may_hold(node: RayNode, placement: Sequence[str]) -> bool:
    """Whether members may live on a node: it offers one of the resources, or any node may."""
    return not placement or any(pin in node.resources for pin in placement)


@dataclass(frozen=True)
class ProxyInfo:
    """The status of one proxy.

    Attributes:
        name: of its actor, without the cluster's; "foreground" for one that `raykeeper proxy` runs.
        url: what etcd's clients reach it by; empty while it does not serve.
        node: id of the Ray node that it runs on.
        pid: of its process, 0 if unknown.
        member: id of the member that it speaks for, 0 if it does not serve.
        connections: how many are open; ``None`` if unknown.
        why_not_serving: empty if it serves.
        actor: its Ray actor handle, ``None`` for one in the foreground.
    """

    name: str
    url: str
    node: str = ""
    pid: int = 0
    member: int = 0
    connections: int | None = None
    why_not_serving: str = ""
    actor: Any = None


@dataclass(frozen=True)
class RayView:
    """See the module.

    Attributes:
        nodes: Ray nodes that are alive.
        placement: resources that members may be pinned by, as in the cluster's spec; empty for any node.
        alarms: what the supervisor has noticed; empty as well if it does not answer.
        situation: what it waits for; ``None`` if it does not answer.
        proxies: all of them.
    """

    nodes: tuple[RayNode, ...]
    placement: tuple[str, ...]
    alarms: tuple[str, ...]
    situation: tuple[str, ...] | None
    proxies: tuple[ProxyInfo, ...]


encode_ray_view = msgspec.msgpack.Encoder().encode
decode_ray_view = msgspec.msgpack.Decoder(RayView).decode
