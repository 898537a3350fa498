"""An operator's calls that members answer: settings, a comparison of members, clients, events, load, promotion.

``Cluster`` inherits them (``cluster.py``), and so does what a shell has that asks by a proxy (``cli/near_cluster.py``):
they need only access to the members, and no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...errors import InvalidArgument, Unavailable
from ...limits import (
    CHECK_TIMEOUT_S,
    DEFAULT_TIMEOUT_S,
    MEMBERSHIP_STEP_TIMEOUT_S,
    MEMBERSHIP_TIMEOUT_S,
    POLL_PAUSE_S,
    STATUS_TIMEOUT_S,
    Settings,
    decode_settings,
    encode_settings,
)
from ...raft.messages import ChangeKind, MemberChange
from ...schema.answers import Failed, Reason
from ...schema.commands import Configure
from ...schema.operator_frames import MemberStatus
from .. import arguments as check
from ..client.client_info import ClientInfo, client_info
from ..client.load_tables import ClusterTop
from ..consistency import Comparison, compare_contents
from ..deadline import at_most, covered, pause_between_checks, wait_for
from ..leader_call import administer, ask_clients, ask_events, change_membership, expect
from ..member_access import access_to, answering, member_statuses
from ..naming import member_name
from .cluster_load import cluster_load
from .newest_status import best_status, configuration_of, leader_of


class EventInfo(msgspec.Struct, frozen=True):
    """Something that has happened to the cluster.

    Attributes:
        number: grows from one event to the next.
        at: when, in seconds since 1970, by the clock of the process that saw it.
        kind: ``"election"``, ``"lost"``, ``"back"``, ``"alarm"``, ``"alarm over"``, ``"configuration"``, or
            ``"supervisor"`` for a step that the supervisor has begun.
        member: the id of the member that it is about, of an election the leader; 0 for none.
        text: for people, one line.
    """

    number: int
    at: float
    kind: str
    member: int
    text: str


class ClusterOperations:
    """Base of ``Cluster``."""

    name: str
    id: int

    @covered
    def configure(
        self,
        *,
        timings: Mapping[str, float] | None = None,
        limits: Mapping[str, int] | None = None,
        compaction: Mapping[str, Any] | None = None,
        lanes: bool | str | None = None,
        lane_ports: str | None = None,
        lane_interface: str | None = None,
        proxy: str | None = None,
        proxy_listen: str | None = None,
        proxy_advertise: str | None = None,
        proxy_cors: Sequence[str] | None = None,
        proxy_console: str | None = None,
        proxy_tls: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Settings:
        """Change timings, limits, compaction, lanes and proxies of the running cluster. What is not named stays as it
        is, even if another caller changes it at the same time. Fixed for good are only ``lease_reads`` and
        ``clock_drift``.

        Members follow within a heartbeat, except for the bounds of their queues of requests (``max_inbox_...``) and for
        lanes, which they take when they start: :meth:`~raykeeper.Cluster.upgrade` restarts one after the other. The
        supervisor starts and stops proxies as soon as it sees the change; those that
        would listen or be found elsewhere are started again.

        Args:
            lanes, lane_ports, lane_interface, proxy, proxy_listen, proxy_advertise,
                proxy_cors, proxy_console, proxy_tls: as in the spec.
            timeout: seconds.

        Returns:
            the new settings.

        Raises:
            SpecError: a field is unknown, or a value is not valid.
            Unavailable, RequestTimeout: see :class:`KeeperError`.
        """
        fields = {
            "timings": timings,
            "limits": limits,
            "compaction": compaction,
            "lanes": lanes,
            "lane_ports": lane_ports,
            "lane_interface": lane_interface,
            "proxy": proxy,
            "proxy_listen": proxy_listen,
            "proxy_advertise": proxy_advertise,
            "proxy_cors": proxy_cors,
            "proxy_console": proxy_console,
            "proxy_tls": proxy_tls,
        }
        from ...spec import ClusterSpec, check_fields  # and with it YAML

        changed = {name: change for name, change in fields.items() if change is not None}
        check_fields("arguments", changed)  # first what can be checked without the cluster
        deadline = time.monotonic() + at_most(timeout)
        while True:
            best = self._best_status()
            now = decode_settings(best.settings) if best.settings else Settings()
            spec = ClusterSpec(
                name=self.name,
                timings=now.timings,
                limits=now.limits,
                compaction=now.compaction,
                lanes=now.lanes,
                lane_ports=now.lane_ports,
                lane_interface=now.lane_interface,
                lease_reads=now.lease_reads,
                clock_drift=now.clock_drift,
                proxy=now.proxy,
                proxy_listen=now.proxy_listen,
                proxy_advertise=now.proxy_advertise,
                proxy_cors=now.proxy_cors,
                proxy_console=now.proxy_console,
                proxy_tls=now.proxy_tls,
            )
            settings = ClusterSpec.load(spec, **changed).settings
            answer = administer(self.name, self.id, Configure(encode_settings(settings), best.settings), deadline)
            changed_meanwhile = isinstance(answer, Failed) and answer.reason is Reason.CHANGED
            if not changed_meanwhile or time.monotonic() >= deadline:
                expect(answer)
                return settings
            pause_between_checks(POLL_PAUSE_S)  # and again, on top of the other change

    @covered
    def settings(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> Settings:
        """The settings of the running cluster: timings, limits and the like, as :meth:`configure` has left them.

        Args:
            timeout: seconds.

        Raises:
            Unavailable: no member serves, or Ray does not answer in time.
        """
        best = self._best_status()
        return decode_settings(best.settings) if best.settings else Settings()

    @covered
    def check(self, *, timeout: float = CHECK_TIMEOUT_S) -> Comparison:
        """Have all members hash their contents at one index of the log, and compare (see ``Comparison``).

        The cluster serves meanwhile. The leader does the same every ``check_interval``.

        Args:
            timeout: seconds; a member that has not answered by then is ``silent`` in the result.

        Raises:
            Unavailable, RequestTimeout: no leader accepted the request.
        """
        return compare_contents(self.name, self.id, time.monotonic() + at_most(timeout))

    @covered
    def clients(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> list[ClientInfo]:
        """The processes that are clients of the cluster: those that have a session, and those whose session has ended
        while leases last that they made. A process that has only read has no session, and is not among them.

        Args:
            timeout: seconds.

        Raises:
            PermissionDenied, AuthFailed: users are needed, and this one does not have the role root.
            Unavailable, RequestTimeout: no member answers.
        """
        return [client_info(each) for each in ask_clients(self.name, self.id, time.monotonic() + at_most(timeout))]

    @covered
    def events(self, *, after: int = 0, timeout: float = DEFAULT_TIMEOUT_S) -> list[EventInfo]:
        """What has happened to the cluster: elections, members that were lost and came back, alarms, changes of the
        configuration, and what the supervisor did; the last thousand, oldest first. They are kept in the replicated
        state, so they outlive all processes, and Ray.

        Args:
            after: only events with a greater number.
            timeout: seconds.

        Raises:
            PermissionDenied, AuthFailed: users are needed, and this one does not have the role root.
            Unavailable, RequestTimeout: no member answers.
        """
        check.whole_number("after", after)
        found = ask_events(self.name, self.id, after, time.monotonic() + at_most(timeout))
        return [EventInfo(number, each.at, each.kind, each.member, each.text) for number, each in found]

    @covered
    def top(self, *, limit: int = 20, timeout: float = DEFAULT_TIMEOUT_S) -> ClusterTop:
        """What loads the cluster: puts, gets, watch events and bytes a second by client and by prefix, as an average
        over the last five seconds, and the last requests that were slow.

        A member that has more than some hundred requests a second counts a sample of them.

        Args:
            limit: how many clients, and how many prefixes, at most.
            timeout: seconds.

        Raises:
            PermissionDenied, AuthFailed: users are needed, and this one does not have the role root.
            Unavailable: no member answers.
        """
        check.whole_number("limit", limit, 1)
        return cluster_load(self.name, self.id, limit, timeout)

    @covered
    def promote(self, id: int, *, timeout: float = MEMBERSHIP_TIMEOUT_S) -> None:
        """Make a learner a voter.

        Args:
            timeout: seconds.

        Raises:
            InvalidArgument: the cluster has no such member.
            NotCaughtUp: it has not caught up with the leader's log yet.
            Unavailable: there is no leader, or too few voters can be heard.
        """
        check.whole_number("a member's id", id, 1)
        if id not in configuration_of(self._best_status()).members:
            raise InvalidArgument(f"cluster {self.name} has no member {id}")
        change = MemberChange(ChangeKind.ADD_VOTER, id)
        expect(change_membership(self.name, self.id, [change], time.monotonic() + MEMBERSHIP_STEP_TIMEOUT_S))

    @covered
    def move_leader(self, id: int, *, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """Transfer leadership to a member; returns once it leads.

        Args:
            timeout: seconds.

        Raises:
            InvalidArgument: there is no such member.
            Unavailable: there is no leader, or the member does not take over in time.
        """
        check.whole_number("a member's id", id, 1)
        deadline = time.monotonic() + at_most(timeout)
        while True:
            access = access_to(self.name)
            members = access.members()
            statuses = access.statuses(members, at_most(STATUS_TIMEOUT_S)).values()
            best, leader = best_status(statuses), leader_of(statuses)
            if id not in {*members, *(() if best is None else configuration_of(best).members)}:
                raise InvalidArgument(f"cluster {self.name} has no member {id}")
            if leader is not None and leader.member == id:
                return
            if time.monotonic() >= deadline:
                raise Unavailable(f"{member_name(id)} did not become leader within {timeout:g} s")
            if leader is None or not access.move_leader(leader.member, id):
                pause_between_checks(POLL_PAUSE_S)  # there is none, or leadership has moved: ask again
                continue
            wait_for(lambda: self._leads(id), min(deadline, time.monotonic() + 1.0))

    def _leads(self, member: int) -> bool:
        leader = leader_of(answering(member_statuses(self.name)).values())
        return leader is not None and leader.member == member

    def _best_status(self) -> MemberStatus:
        best = best_status(answering(member_statuses(self.name)).values())
        if best is None:
            raise Unavailable(f"no member of cluster {self.name} serves; `raykeeper status` says why")
        return best
