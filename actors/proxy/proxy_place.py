"""Where a proxy runs, as far as others are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from ..ray_calls import in_time

_util: Any = ray.util  # which has no types


class ProxyPlace(NamedTuple):
    """See the module.

    Attributes:
        node: id of its Ray node.
        node_address: IP address of that.
        name: of its actor, without the cluster's; empty for one in the foreground.
        ray: address of the Ray that it is in; empty if shells on the node shall not find it.
        pins: the resources that this node alone offers: a member that is pinned by one of them belongs here.
    """

    node: str
    node_address: str
    name: str = ""
    ray: str = ""
    pins: frozenset[str] = frozenset()


def node_addresses() -> dict[str, str]:
    """The addresses of Ray's nodes by their ids, also of those that are gone. It may block."""
    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    return {node["NodeID"]: node["NodeManagerAddress"] for node in in_time(list_nodes)}


def proxy_place(name: str = "") -> ProxyPlace:
    """The place of a proxy in this process, which is attached to Ray."""
    context = ray.get_runtime_context()
    node = context.get_node_id()
    return ProxyPlace(node, _util.get_node_ip_address(), name, context.gcs_address, _pins_of(node))


def _pins_of(node: str) -> frozenset[str]:
    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    offered = {each["NodeID"]: frozenset(each["Resources"]) for each in in_time(list_nodes) if each["Alive"]}
    return offered.pop(node, frozenset()).difference(*offered.values())
