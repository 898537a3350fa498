"""A cluster by way of a proxy on this node: what an operator asks of it most, without attaching to Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..actors import arguments as check
from ..actors.cluster.cluster_operations import ClusterOperations
from ..actors.cluster.cluster_report import ClusterReport
from ..actors.deadline import covering
from ..actors.leader_call import administer_as
from ..actors.member_access import MemberAccess, reach_by
from ..actors.ray_view import RayView
from ..actors.transport.relay_access import RelayAccess
from ..errors import Unavailable
from ..limits import DEFAULT_TIMEOUT_S, RELAY_TIMEOUT_S
from ..proxy_notices import ProxyNotice
from .proxy_relay import relay_calls

if TYPE_CHECKING:
    from ..actors.client.hub_pool import HubShare
    from ..actors.handles import Client
    from ..actors.transport.relay import RelayCalls


class NearCluster(ClusterReport, ClusterOperations):
    """See the module.

    Args:
        notice: of the proxy.
        calls: the connection to it.
        user: who administers the cluster, as for ``connect``; empty for nobody.
        join: attaches this process to Ray; called if the proxy ends meanwhile.
    """

    def __init__(self, notice: ProxyNotice, calls: RelayCalls, user: dict[str, Any], join: Callable[[], None]) -> None:
        self.name, self.id = notice.cluster, notice.id
        self._notice = notice
        self._calls = calls
        self._user = user
        self._join = join
        self._share: HubShare | None = None
        """What keeps the user's connection."""

    def log_in(self) -> None:
        """From now on this process administers the cluster as that user.

        Raises:
            AuthFailed: there is no such user, or this is not its password.
            OSError, Unavailable: no member answers in time.
        """
        if self._user:
            from ..actors.client.login import credentials_of
            from ..actors.cluster.administrator import administer_by
            from .relay_client import hubs_by_relay

            given = {"password": None, "password_file": None, **self._user}
            with hubs_by_relay(self._notice, self._join):
                self._share = administer_by(self.name, self.id, credentials_of(**given), RELAY_TIMEOUT_S)

    def close(self) -> None:
        """This process administers the cluster no more."""
        reach_by(self.name, None)
        administer_as(self.name, None)
        self._calls.close()

    def client(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> Client:
        """See ``Cluster.client``."""
        from .relay_client import open_by_relay

        near = open_by_relay(self._notice, check.seconds("timeout", timeout), self._user, self._join)
        if near is None:
            raise Unavailable(f"no member of cluster {self.name} serves", applied=False)
        return near

    def _ray_view(self) -> RayView:
        found = self._calls.ray_view()
        if found is None:
            from ..actors.proxy.view_ray import view_ray  # this process is attached to Ray by now

            found = view_ray(self.name, self.id)
        return found


def near_cluster(notice: ProxyNotice, user: dict[str, Any], join: Callable[[], None]) -> NearCluster | None:
    """The cluster of the proxy that has left the notice, which this process administers by way of it from now on;
    ``None`` if it has just ended, or knows no member that answers: then Ray may know more.

    For arguments see :class:`NearCluster`.

    Raises:
        AuthFailed: there is no such user, or this is not its password.
    """
    try:
        with covering(RELAY_TIMEOUT_S):
            calls = relay_calls(notice, join)
    except (OSError, Unavailable):
        return None
    try:
        access = RelayAccess(calls)
        with covering(RELAY_TIMEOUT_S):
            each = access.each_status(dict.fromkeys(calls.members()), RELAY_TIMEOUT_S)
            found = any(status.cluster == notice.id for _, status in each)
        if found:
            reach_by(notice.cluster, lambda: _access(notice.cluster, calls))
            cluster = NearCluster(notice, calls, user, join)
            cluster.log_in()
            return cluster
    except (OSError, Unavailable):
        reach_by(notice.cluster, None)
    calls.close()
    return None


def _access(name: str, calls: RelayCalls) -> MemberAccess:
    if calls.goes_by_ray:
        from ..actors.actor_access import ActorAccess

        return ActorAccess(name)
    return RelayAccess(calls)
