"""Changing who is a member: the calls of ``Cluster`` that add, promote and remove (``membership.py`` has the steps).

A new member is a learner until it has caught up (thesis 4.2.1). What is reserved as a voter becomes one whatever
happens to the caller: it is promoted here, or by the supervisor.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence

from ...errors import InvalidArgument, NotCaughtUp, RequestTimeout, Unavailable
from ...limits import DEFAULT_TIMEOUT_S, MEMBERSHIP_TIMEOUT_S, POLL_PAUSE_S
from ...schema.member_record import MemberRecord
from .. import arguments as check
from ..deadline import at_most, covered, pause_between_checks, wait_for
from ..discovery import first_member_spec, member_actors
from ..naming import member_name
from ..steps import count, is_counted, step
from .membership import MembershipOps
from .observe import Observation, homes, observe_cluster
from .placement import Placement, choose_placement
from .status import MemberInfo


class ClusterMembership(ABC):
    """Base of ``Cluster``."""

    name: str
    id: int
    _data_dir: str

    @abstractmethod
    def members(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> tuple[MemberInfo, ...]:
        """All members, including missing ones."""

    @covered
    def add_member(
        self, node: str | None = None, *, promote: bool = True, timeout: float = MEMBERSHIP_TIMEOUT_S
    ) -> MemberInfo:
        """Add a member: a learner until it has caught up with the others, then a voter.

        Args:
            node: where it is to live: a Ray node's id or address, or a resource that nodes offer. By default the node
                with the fewest members, of those that the spec's ``placement`` allows.
            promote: make it a voter; otherwise it stays a learner (see ``promote``).
            timeout: seconds.

        Raises:
            InvalidArgument: no Ray node that is alive matches ``node``, or it is not text; or the member was removed
                before it had caught up.
            Unavailable: the cluster has no leader, or the node cannot be used.
            RequestTimeout: the member was added and has not caught up in time. It continues, and the supervisor
                promotes it once it has.
        """
        deadline = time.monotonic() + at_most(timeout)
        check.flag("promote", promote)
        if node is not None:
            check.text("a node", node)
        with step("starting the new member"):
            new = self._add_learner(node, voter=promote, timeout=timeout)
        if promote:
            with step(f"{member_name(new)} catches up"):
                self._promote_once_caught_up(new, timeout=timeout)
        # A learner may only just have been started.
        wait_for(lambda: self._member(new).role not in ("silent", "starting"), deadline)
        return self._member(new)

    @covered
    def _add_learner(self, node: str | None, *, voter: bool, timeout: float = MEMBERSHIP_TIMEOUT_S) -> int:
        """Place a new member, start it, and add it to the configuration; its id. Raises as :meth:`add_member`.

        Args:
            voter: whether it is to become one. The supervisor sees to that, if nobody else does before.
        """
        ops, observation = self._membership_ops(), observe_cluster(self.name)
        new = ops.reserve(secrets.token_bytes(12), _placement_for(node, observation, ops.placement), voter=voter)
        ops.create_member(new, observation.nodes)
        ops.add_learner(new.id)
        return new.id

    @covered
    def _promote_once_caught_up(self, id: int, *, timeout: float = MEMBERSHIP_TIMEOUT_S) -> None:
        """Make a new member a voter as soon as it has caught up. Raises as :meth:`add_member`."""
        deadline, ops = time.monotonic() + at_most(timeout), self._membership_ops()
        while True:
            try:
                ops.promote(id)
                return
            except NotCaughtUp as error:
                if time.monotonic() >= deadline:
                    late = f"{member_name(id)} is a learner and has not caught up within {timeout:g} s"
                    raise RequestTimeout(late, applied=None) from error
                if is_counted():
                    members = self.members()
                    done = next((info.applied_index for info in members if info.id == id), 0)
                    count(done, max((info.applied_index for info in members), default=0) or None)
                pause_between_checks(POLL_PAUSE_S)

    def _member(self, id: int) -> MemberInfo:
        for info in self.members():
            if info.id == id:
                return info
        raise InvalidArgument(f"{member_name(id)} was removed meanwhile")

    @covered
    def remove_member(self, id: int, *, timeout: float = MEMBERSHIP_TIMEOUT_S) -> None:
        """Remove a member from the cluster for good, end its actor, and delete its data. It may be the leader.

        If its node is gone, the data is deleted when that comes back. Removing a member again does nothing.

        Args:
            timeout: seconds.

        Raises:
            InvalidArgument: there never was such a member, or no voter would remain.
            Unavailable: there is no leader, or too few voters that can be heard would remain.
        """
        check.whole_number("a member's id", id, 1)
        observation, ops = observe_cluster(self.name), self._membership_ops()
        known = self._records(observation)
        if id not in known and id not in observation.configuration.members:
            raise InvalidArgument(f"cluster {self.name} has no member {id}")
        ops.remove_from_configuration(id)
        ops.retire(id)
        _clear(ops, id, known, observation)

    @covered
    def _clear_left_member(self, id: int, *, timeout: float = MEMBERSHIP_TIMEOUT_S) -> None:
        """End the actor and delete the data of a member that has left the configuration; of another, nothing.

        Raises:
            Unavailable: the cluster does not confirm that it has left: it has not, or not yet, or there is no leader.
        """
        observation, ops = observe_cluster(self.name), self._membership_ops()
        known = self._records(observation)
        try:
            ops.retire(id)  # a quorum has to know that it has left, whatever was observed
        except InvalidArgument as error:
            raise Unavailable(f"{member_name(id)} is in the configuration: {error}", applied=False) from error
        _clear(ops, id, known, observation)

    def _records(self, observation: Observation) -> dict[int, MemberRecord]:
        """What is known of the members, those among them that were removed last.

        Raises:
            Unavailable: no member answers.
        """
        best = observation.best
        if best is None:
            raise Unavailable(f"no member of cluster {self.name} serves")
        return {record.id: record for record in (*best.table, *best.removed)}

    def _membership_ops(self) -> MembershipOps:
        member_spec = first_member_spec(list(member_actors(self.name).values()))
        if member_spec is None:
            raise Unavailable(f"no member of cluster {self.name} answers")
        return MembershipOps(self.name, self.id, member_spec.data_dir or self._data_dir, member_spec.placement)


def _clear(ops: MembershipOps, id: int, known: Mapping[int, MemberRecord], observation: Observation) -> None:
    """End the actor and delete the data of a member that was retired."""
    ops.stop_member(id)
    if id in known:
        ops.delete_data(known[id], observation.nodes)


def _placement_for(node: str | None, observation: Observation, placement: Sequence[str]) -> Placement:
    """The place for a new member: the requested one, or the best."""
    if node is None:
        chosen = choose_placement(observation.nodes, placement, homes(observation), crowded=True)
        if chosen is None:
            raise Unavailable("no Ray node that is alive may hold a member")
        return chosen
    meant = [
        Placement(each, each.pin(placement)) for each in observation.nodes if each.id == node or each.address == node
    ]
    meant = meant or [Placement(each, node) for each in observation.nodes if node in each.resources]
    if not meant:
        raise InvalidArgument(f"no Ray node that is alive has the id or address {node}, or offers such a resource")
    load = Counter(homes(observation).values())
    return min(meant, key=lambda chosen: load[chosen.node.id])
