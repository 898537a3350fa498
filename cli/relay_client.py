"""A client handle by way of a proxy on this node, for a command that then need not attach to Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..actors.client import hub_pool
from ..actors.connect import connect
from ..actors.deadline import covering
from ..actors.handles import Client
from ..actors.transport.client_lanes import ActorCalls, LaneTransport
from ..actors.transport.client_transport import ClientTransport
from ..actors.transport.lane import HAS_LANES
from ..actors.transport.relay import RelayCalls
from ..errors import ClusterNotFound, Unavailable
from ..limits import RELAY_TIMEOUT_S
from ..proxy_notices import ProxyNotice


def open_by_relay(notice: ProxyNotice, timeout: float, user: dict[str, Any], join: Callable[[], None]) -> Client | None:
    """A handle for the cluster of the proxy that has left the notice; ``None`` if it has just ended, or finds no member
    that serves within ``RELAY_TIMEOUT_S``: then Ray may know more.

    Args:
        timeout: seconds for each of the handle's calls.
        user: as for ``connect``.
        join: attaches this process to Ray; called if the proxy ends while the handle is in use.
    """

    def attach_to_ray() -> ActorCalls:
        join()
        from ..actors.transport.client_actor import ActorTransport

        return ActorTransport(notice.cluster)

    made: list[ClientTransport] = []

    def make(name: str) -> ClientTransport:
        calls = RelayCalls(notice.relay, attach_to_ray)
        made.append(LaneTransport(calls) if HAS_LANES else calls)
        return made[-1]

    by_actors, hub_pool.make_transport = hub_pool.make_transport, make
    try:
        with covering(RELAY_TIMEOUT_S):
            near = connect(notice.cluster, timeout=timeout, **user)
    except (OSError, ClusterNotFound, Unavailable):
        for each in made:
            each.close()
        return None
    finally:
        hub_pool.make_transport = by_actors
    if near.cluster_id != notice.id:
        near.close()
        return None
    return near
