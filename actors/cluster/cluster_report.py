"""What a cluster reports of itself to an operator: its status, its members, its proxies, its health.

``Cluster`` inherits it (``cluster.py``), and so does what a shell has that asks by a proxy (``cli/near_cluster.py``).
Members are asked by the process's access to them; what Ray knows beside them comes from a process attached to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import KeeperError
from ...limits import DEFAULT_TIMEOUT_S, STATUS_TIMEOUT_S
from ..deadline import at_most, covered
from ..member_access import access_to, answering, member_statuses
from ..ray_view import ProxyInfo, RayView
from .health import HealthCheck, health_of
from .newest_status import best_status, configuration_of
from .status import ClusterStatus, MemberInfo, status_of

if TYPE_CHECKING:
    from ..handles import Client


class ClusterReport(ABC):
    """See the module."""

    name: str
    id: int

    @abstractmethod
    def client(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> Client:
        """A client handle whose calls have this timeout."""

    @abstractmethod
    def _ray_view(self) -> RayView:
        """What Ray knows now."""

    @covered
    def status(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> ClusterStatus:
        """Ask every member for its status; a silent member costs a few seconds.

        Args:
            timeout: seconds.

        Raises:
            Unavailable: Ray does not answer in time.
        """
        around = self._ray_view()  # first: silent members may take all the time there is
        access = access_to(self.name)
        members = access.members()
        statuses = access.statuses(members, at_most(STATUS_TIMEOUT_S))
        found = status_of(self.name, self.id, members, statuses, around.nodes, around.placement, around.alarms)
        unwell = (
            f"{each.name} does not serve: {each.why_not_serving}" for each in around.proxies if each.why_not_serving
        )
        found = replace(found, proxies=around.proxies, alarms=(*found.alarms, *unwell))
        if found.leader and not any(member.why_not_serving for member in found.members):
            return found
        said = around.situation
        if said is None and not found.leader:
            said = ("it does not answer, so members are not started where their data is now; `raykeeper up` does that",)
        return replace(found, alarms=(*found.alarms, *(f"supervisor: {line}" for line in said or ())))

    @covered
    def health(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> tuple[HealthCheck, ...]:
        """Check that the cluster serves as it should: reads, alarms, disks (see ``actors/cluster/health.py``).

        Args:
            timeout: seconds.

        Raises:
            Unavailable: Ray does not answer in time.
        """
        statuses = member_statuses(self.name)
        known = answering(statuses)
        why = ""
        try:
            with self.client(timeout=at_most(STATUS_TIMEOUT_S)) as kv:
                kv.revision()
        except KeeperError as error:
            why = str(error)
        best = best_status(known.values())
        taking_part = () if best is None else configuration_of(best).members
        return health_of({*statuses, *taking_part}, known, why)

    def members(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> tuple[MemberInfo, ...]:
        """All members, including missing ones. Raises as :meth:`status`."""
        return self.status(timeout=timeout).members

    @covered
    def proxies(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> tuple[ProxyInfo, ...]:
        """The proxies that speak etcd's API: those that the cluster runs, and those in the foreground that are
        registered. One that has just died may be among the latter for some seconds.

        Args:
            timeout: seconds.

        Raises:
            Unavailable: Ray does not answer in time.
        """
        return self._ray_view().proxies
