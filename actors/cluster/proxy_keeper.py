"""Which nodes have a proxy: the supervisor's part that starts those that are missing and stops those that are too many.

It compares what the cluster's settings ask for with the actors that there are, again and again, and remembers nothing
that matters: a second supervisor, or a launch that does the same, does no harm. Ray itself restarts a proxy whose
process has died, and forgets one whose node is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from ...limits import PROXY_SILENT_S, PROXY_START_RETRY_S, Settings, decode_settings
from ..naming import proxy_name
from ..proxy.proxy_actor import ProxySpec, ProxyStatus
from ..proxy.proxy_lookup import proxy_actors, proxy_statuses
from ..ray_view import RayNode
from .observe import Observation
from .proxy_handle import start_proxy, stop_proxies


class ProxyPool(Protocol):
    """The proxies of one cluster, as the keeper sees them."""

    def statuses(self) -> Mapping[str, ProxyStatus | None]:
        """Of all that there are, by node; ``None`` if one does not answer."""
        ...

    def start(self, spec: ProxySpec, node: str) -> None:
        """Start one on a node."""
        ...

    def stop(self, node: str, graceful: bool) -> None:
        """End the one on a node."""
        ...


class RayProxies:
    """The proxies that are Ray actors.

    Args:
        cluster_name: the cluster's.
    """

    def __init__(self, cluster_name: str) -> None:
        self._cluster_name = cluster_name

    def statuses(self) -> Mapping[str, ProxyStatus | None]:
        """See ``ProxyPool``."""
        return proxy_statuses(proxy_actors(self._cluster_name))

    def start(self, spec: ProxySpec, node: str) -> None:
        """See ``ProxyPool``."""
        start_proxy(spec, node)

    def stop(self, node: str, graceful: bool) -> None:
        """See ``ProxyPool``."""
        stop_proxies(self._cluster_name, [node], graceful=graceful)


class ProxyKeeper:
    """See the module. For two threads: one sets what it observes, the other keeps the proxies.

    Args:
        cluster_name, cluster: name and id of the cluster.
        pool: its proxies.
    """

    def __init__(self, cluster_name: str, cluster: int, pool: ProxyPool) -> None:
        self._cluster_name = cluster_name
        self._cluster = cluster
        self._pool = pool
        self._observed: tuple[Settings, tuple[RayNode, ...]] | None = None
        self._observations = 0
        self._suspects: dict[str, int] = {}
        """By node: how many observations there had been when its proxy was first found to be too many, or changed."""
        self._start_at: dict[str, float] = {}
        """By node: not before this a proxy is started there again."""
        self._silent_since: dict[str, float] = {}
        self._keeping = threading.Lock()
        self._stopped = False
        self.settled = False
        """Whether, when it last looked, all proxies were as they should be: each served, or had tried to and failed."""

    def set_observation(self, observation: Observation) -> None:
        """Tell it what the last observation of the cluster showed. Without a leader, the settings that are known stay
        in force."""
        settings = None if self._observed is None else self._observed[0]
        told = observation.leader or (observation.best if settings is None else None)  # others may lag
        if told is not None:
            settings = _read(told.settings) or settings
        if settings is not None:
            self._observed = settings, observation.nodes
            self._observations += 1

    def stop(self, patience: float) -> bool:
        """Start no more proxies. Waits up to ``patience`` seconds for a start in progress; ``False`` if it is not over.
        So those that are there afterwards are all that there will be."""
        self._stopped = True
        if not self._keeping.acquire(timeout=patience):
            return False
        self._keeping.release()
        return True

    def keep(self, now: float, *, start_only: bool = False) -> list[str]:
        """Start and stop proxies; returns why some do not serve, one line each.

        Args:
            start_only: stop none: another keeper is at work, which might have replaced it already.
        """
        with self._keeping:
            if self._stopped or self._observed is None:
                return []
            return self._keep(*self._observed, now, start_only)

    def _keep(self, settings: Settings, nodes: Sequence[RayNode], now: float, start_only: bool) -> list[str]:
        statuses = self._pool.statuses()
        self._note_silent(statuses, now)
        addresses = {node.id: node.address for node in nodes}
        wanted = self._wanted(settings.proxy, list(addresses), statuses, now)
        self.settled = set(statuses) == set(wanted) and all(
            status is not None and status.spec == self._spec(settings, node) and (status.url or status.failed)
            for node, status in statuses.items()
        )
        if not start_only:
            certain = self._certain(settings, wanted, statuses)
            for node in certain:
                if node not in wanted:
                    self._pool.stop(node, statuses[node] is not None)
            self._restart([node for node in certain if node in wanted], wanted, statuses)
            for node, since in self._silent_since.items():
                if node in wanted and now - since >= PROXY_SILENT_S:
                    self._pool.stop(node, False)
        for node in wanted:
            if node not in statuses and now >= self._start_at.get(node, now):
                self._start_at[node] = now + PROXY_START_RETRY_S
                if self._stopped:
                    return []
                self._pool.start(self._spec(settings, node), node)
        self._start_at = {node: at for node, at in self._start_at.items() if node in addresses}
        return [
            f"the proxy on Ray node {addresses[node]} does not serve: {status.why_not_serving}"
            for node, status in statuses.items()
            if node in wanted and status is not None and status.why_not_serving
        ]

    def _wanted(
        self, mode: str, nodes: Sequence[str], statuses: Mapping[str, ProxyStatus | None], now: float
    ) -> Collection[str]:
        """The nodes that should have a proxy. A single one stays where it is, as long as that is alive; a node where it
        could not be started is passed over for a while."""
        if mode == "all":
            return nodes
        if mode != "one":
            return ()
        there = [node for node in nodes if node in statuses]
        ready = [node for node in nodes if now >= self._start_at.get(node, now)]
        return [*there, *ready][:1]

    def _certain(
        self, settings: Settings, wanted: Collection[str], statuses: Mapping[str, ProxyStatus | None]
    ) -> list[str]:
        """The nodes whose proxy is too many, or has another spec, by two observations: when the settings have just
        changed, the first may be older than a proxy that a launch has started."""
        suspects = [
            node
            for node, status in statuses.items()
            if node not in wanted or (status is not None and status.spec != self._spec(settings, node))
        ]
        self._suspects = {node: self._suspects.get(node, self._observations) for node in suspects}
        return [node for node, first in self._suspects.items() if first < self._observations]

    def _restart(
        self, changed: Collection[str], wanted: Collection[str], statuses: Mapping[str, ProxyStatus | None]
    ) -> None:
        """Stop proxies that have another spec; they are started again the next time. Of those that serve one at a time,
        while all others answer, so that clients always find one."""
        serving = [node for node in changed if (status := statuses[node]) is not None and status.url]
        failing = [node for node in changed if node not in serving]
        if any(statuses.get(node) is None for node in wanted):
            serving = []
        for node in [*failing, *serving[:1]]:
            self._start_at.pop(node, None)
            self._pool.stop(node, True)

    def _note_silent(self, statuses: Mapping[str, ProxyStatus | None], now: float) -> None:
        silent = [node for node, status in statuses.items() if status is None]
        self._silent_since = {node: self._silent_since.get(node, now) for node in silent}

    def _spec(self, settings: Settings, node: str) -> ProxySpec:
        return ProxySpec(
            self._cluster_name,
            self._cluster,
            proxy_name(node),
            settings.proxy_listen,
            settings.proxy_advertise,
            settings.proxy_tls,
            settings.proxy_cors,
            settings.proxy_console,
        )


def _read(settings: bytes) -> Settings | None:
    """Settings from their encoding; ``None`` if a newer version wrote them."""
    try:
        return decode_settings(settings) if settings else Settings()
    except msgspec.MsgspecError:
        return None
