"""A client handle by way of a proxy on this node, for a command that then need not attach to Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ..actors.client import hub_pool
from ..actors.connect import connect
from ..actors.deadline import covering
from ..actors.handles import Client
from ..actors.transport.client_lanes import LaneTransport
from ..actors.transport.client_transport import ClientTransport
from ..actors.transport.lane import HAS_LANES
from ..errors import ClusterNotFound, Unavailable
from ..limits import RELAY_TIMEOUT_S
from ..proxy_notices import ProxyNotice
from .proxy_relay import relay_calls


@contextlib.contextmanager
def hubs_by_relay(notice: ProxyNotice, join: Callable[[], None]) -> Iterator[None]:
    """In this context a hub that is opened has such a connection for its transport. If the context fails, the
    connections are closed. Raises as :func:`relay_calls`."""
    made: list[ClientTransport] = []

    def make(name: str) -> ClientTransport:
        calls = relay_calls(notice, join)
        made.append(LaneTransport(calls) if HAS_LANES else calls)
        return made[-1]

    by_actors, hub_pool.make_transport = hub_pool.make_transport, make
    try:
        yield
    except BaseException:
        for each in made:
            each.close()
        raise
    finally:
        hub_pool.make_transport = by_actors


def open_by_relay(notice: ProxyNotice, timeout: float, user: dict[str, Any], join: Callable[[], None]) -> Client | None:
    """A handle for the cluster of the proxy that has left the notice; ``None`` if it has just ended, or finds no member
    that serves within ``RELAY_TIMEOUT_S``: then Ray may know more.

    Args:
        timeout: seconds for each of the handle's calls.
        user: as for ``connect``.
        join: as for :func:`relay_calls`.
    """
    try:
        with covering(RELAY_TIMEOUT_S), hubs_by_relay(notice, join):
            near = connect(notice.cluster, timeout=timeout, **user)
    except (OSError, ClusterNotFound, Unavailable):
        return None
    if near.cluster_id != notice.id:
        near.close()
        return None
    return near
