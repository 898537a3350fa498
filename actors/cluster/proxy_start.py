"""Proxies of a cluster that is launched or upgraded: they are there when the caller is told so."""

from __future__ import annotations

import time

from ...limits import PROXY_START_TIMEOUT_S
from ..deadline import at_most, wait_for
from ..proxy.proxy_lookup import proxy_actors, proxy_statuses
from .observe import observe_cluster
from .proxy_handle import start_proxy, stop_proxies
from .proxy_keeper import ProxyKeeper, RayProxies


def settle_proxies(cluster_name: str, cluster: int, deadline: float, *, supervised: bool) -> None:
    """Start the proxies that the settings ask for, and wait until each serves or says why it does not, but no longer
    than ``PROXY_START_TIMEOUT_S``.

    Args:
        deadline: by ``time.monotonic``.
        supervised: a supervisor stops those that have to go. Without one, only a launch does.
    """
    keeper = ProxyKeeper(cluster_name, cluster, RayProxies(cluster_name))

    def settled() -> bool:
        keeper.set_observation(observe_cluster(cluster_name))
        keeper.keep(time.monotonic(), start_only=supervised)
        return keeper.settled

    wait_for(settled, min(deadline, time.monotonic() + at_most(PROXY_START_TIMEOUT_S)))


def restart_proxies(cluster_name: str, deadline: float) -> None:
    """Restart all proxies with the code that is installed now, one by one, each once the one before serves."""
    for node, status in proxy_statuses(proxy_actors(cluster_name)).items():
        stop_proxies(cluster_name, [node])
        if status is not None:
            start_proxy(status.spec, node)
            wait_for(
                lambda: _serves(cluster_name, node),  # noqa: B023 - called before the next turn
                min(deadline, time.monotonic() + at_most(PROXY_START_TIMEOUT_S)),
            )


def _serves(cluster_name: str, node: str) -> bool:
    actors = {found: actor for found, actor in proxy_actors(cluster_name).items() if found == node}
    status = proxy_statuses(actors).get(node)
    return status is not None and bool(status.url or status.failed)
