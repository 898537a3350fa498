"""Where a proxy runs, as far as others are told."""

from __future__ import annotations

from typing import Any, NamedTuple

import ray

_util: Any = ray.util  # which has no types


class ProxyPlace(NamedTuple):
    """See the module.

    Attributes:
        node: id of its Ray node.
        node_address: IP address of that.
        name: of its actor, without the cluster's; empty for one in the foreground.
        ray: address of the Ray that it is in; empty if shells on the node shall not find it.
    """

    node: str
    node_address: str
    name: str = ""
    ray: str = ""


def proxy_place(name: str = "") -> ProxyPlace:
    """The place of a proxy in this process, which is attached to Ray."""
    context = ray.get_runtime_context()
    return ProxyPlace(context.get_node_id(), _util.get_node_ip_address(), name, context.gcs_address)
