"""Adding, promoting and removing members: the steps by which a running cluster changes its membership.

Each step goes through the cluster's own log or does what the log already says, and each can be repeated. Its caller may
be killed at any point, and the next one (the caller again, or the supervisor) continues. A member joins so:

    reserve         the log gives out an id, never used before, and notes the place
    create_member   the folder is created on that node, with the cluster's origin, and the actor is started
    add_learner     the configuration gets a learner, which the leader brings up to date, by log or snapshot
    promote         the learner becomes a voter once it has caught up, or replaces another one in a joint change

and leaves so: removed from the configuration, then retired (from then on no member listens to it, and its id is used
up), then its actor is ended and its data deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from ...errors import KeeperError, Unavailable
from ...limits import MEMBERSHIP_STEP_TIMEOUT_S, STATUS_TIMEOUT_S, STOP_TIMEOUT_S, SURVEY_TIMEOUT_S
from ...raft.messages import ChangeKind, MemberChange
from ...schema.answers import Answer, MemberReserved
from ...schema.commands import Administration, ReserveMember, RetireMember
from ...schema.member_record import MemberRecord
from ...store.data_dir import Identity
from ..deadline import at_most, wait_for
from ..discovery import actors_gone, member_actors
from ..leader_call import administer, change_membership, expect
from ..naming import MemberSpec, actor_name, member_name
from ..ray_attached import attached
from ..ray_calls import in_time
from ..ray_view import RayNode
from . import node_storage
from .hung_process import HungProcess, end_hung_member
from .placement import Placement
from .ray_nodes import run_on, run_where_possible
from .spawn import start_actor


@dataclass(frozen=True)
class MembershipOps:
    """The steps for one cluster.

    Attributes:
        data_dir, placement: as in its spec.
        timeout: seconds for one step.
    """

    cluster_name: str
    cluster: int
    data_dir: str
    placement: tuple[str, ...] = ()
    timeout: float = MEMBERSHIP_STEP_TIMEOUT_S

    # -- joining ------------------------------------------------------------------------------------------------------

    def reserve(self, nonce: bytes, placement: Placement, *, replaces: int = 0, voter: bool = True) -> MemberRecord:
        """Get the id of a new member that is to live at a place.

        Raises:
            Unavailable: the node did not answer, its folder cannot be used, or there is no leader.
        """
        inventory = run_on(
            {0: placement.node}, node_storage.survey, {0: (self.data_dir, self.cluster_name)}, SURVEY_TIMEOUT_S
        )[0]
        if inventory.problem:
            raise Unavailable(f"no member can be placed on Ray node {placement.node.address}: {inventory.problem}")
        answer = self._administer(ReserveMember(nonce, placement.pin, inventory.base, replaces, voter))
        assert isinstance(answer, MemberReserved)
        member = answer.member
        return MemberRecord(
            member, member_name(member), placement.pin, inventory.base, replaces=replaces, voter=voter, nonce=nonce
        )

    def create_member(self, member: MemberRecord, nodes: Sequence[RayNode]) -> bool:
        """Create the data of a member that has its id and place, and start its actor; False if its node is not there.

        Raises:
            Unavailable: no member told the cluster's origin, or the node did not answer.
        """
        node = next((node for node in nodes if member.pin in node.resources), None)
        if node is None:
            return False
        origin = self.origin()
        identity = Identity(
            cluster_name=self.cluster_name,
            cluster=self.cluster,
            member=member.id,
            name=member_name(member.id),
            members=origin.members,
            settings=origin.settings,
        )
        run_on({0: node}, node_storage.create_joining_member, {0: (member.base, identity)}, SURVEY_TIMEOUT_S)
        self.start_member(member)
        return True

    def start_member(self, member: MemberRecord) -> None:
        """Start a member's actor on the node with its data, if it has none."""
        name = member_name(member.id)
        folder = os.path.join(member.base, name)
        start_actor(
            MemberSpec(
                self.cluster_name, self.cluster, member.id, name, folder, member.pin, self.data_dir, self.placement
            )
        )

    def add_learner(self, member: int) -> None:
        """Add a member to the configuration as a learner."""
        self._change(MemberChange(ChangeKind.ADD_LEARNER, member))

    def promote(self, member: int, replaces: int = 0) -> None:
        """Make a learner a voter; the member that it replaces, if any, leaves in the same joint change.

        Raises:
            NotCaughtUp: it lacks too many entries of the leader's log.
            Unavailable: there is no leader, or too few voters that can be heard would remain.
        """
        changes = [MemberChange(ChangeKind.ADD_VOTER, member)]
        if replaces:
            changes.append(MemberChange(ChangeKind.REMOVE, replaces))
        self._change(*changes)

    def origin(self) -> Identity:
        """The cluster's origin, its first members and settings, from any member that serves.

        Raises:
            Unavailable: no member answers in time.
        """
        waiting = [actor.identity.remote() for actor in member_actors(self.cluster_name).values()]
        while waiting:
            done, waiting = ray.wait(waiting, timeout=at_most(STATUS_TIMEOUT_S))
            if not done:
                break
            try:
                identity = ray.get(done[0], timeout=0)
            except (ray.exceptions.RayError, TimeoutError):
                continue
            if isinstance(identity, Identity):
                return identity
        raise Unavailable(f"no member of cluster {self.cluster_name} told how the cluster was created")

    # -- leaving ------------------------------------------------------------------------------------------------------

    def remove_from_configuration(self, member: int) -> None:
        """Remove a member from the configuration.

        Raises:
            Unavailable: there is no leader, or too few voters that can be heard would remain.
            InvalidArgument: no voter would remain.
        """
        self._change(MemberChange(ChangeKind.REMOVE, member))

    def retire(self, member: int) -> None:
        """Note in the log that a member outside the configuration never comes back.

        Raises:
            InvalidArgument: it is still in the configuration, or there never was such a member.
        """
        self._administer(RetireMember(member))

    def stop_member(self, member: int, patience: float = STATUS_TIMEOUT_S) -> None:
        """End a member's actor for good; it gets ``patience`` seconds to close its data."""
        actor = member_actors(self.cluster_name).get(member)
        if actor is None:
            return
        ray.wait([actor.stop.remote()], timeout=at_most(patience))
        in_time(attached(ray.kill), actor, no_restart=True)
        name = actor_name(self.cluster_name, member_name(member))
        wait_for(lambda: actors_gone([name]), time.monotonic() + STOP_TIMEOUT_S)

    def end_hung_member(self, member: MemberRecord, nodes: Sequence[RayNode]) -> HungProcess:
        """End the process of a member that hangs, on its own node, if it is certain which one that is. It is looked
        for on all nodes that offer its pin; only one with its data has its process.

        Raises:
            Unavailable: the node is not there, did not answer, or does not let that be done.
        """
        offering = _offering(member.pin, nodes)
        if not offering:
            raise Unavailable(f"the node of {member.name} is not there")
        arguments = (member.base, self.cluster_name, self.cluster, member.name)
        answers = run_where_possible(
            offering, end_hung_member, dict.fromkeys(offering, arguments), SURVEY_TIMEOUT_S
        ).values()
        found = [answer for answer in answers if isinstance(answer, HungProcess) and answer.here]
        if found:
            return max(found, key=lambda answer: (answer.ended, answer.pid, answer.left))
        failed = next((answer for answer in answers if isinstance(answer, Exception)), None)
        if failed is not None:
            raise failed
        return HungProcess(here=False)

    def delete_data(self, member: MemberRecord, nodes: Sequence[RayNode], where: str = "") -> bool:
        """Delete the data of a removed member; False if its node is not there, or a process still holds the data.

        Args:
            where: id of the node that the data was found on; by default all that offer the member's pin.
        """
        on = {each.id: each for each in nodes if each.id == where} if where else _offering(member.pin, nodes)
        if not on or not member.base:
            return False
        arguments = (member.base, member.name, self.cluster)
        try:
            run_on(on, node_storage.delete_member, dict.fromkeys(on, arguments), SURVEY_TIMEOUT_S)
        except (KeeperError, OSError):
            return False
        return True

    # -- the log ------------------------------------------------------------------------------------------------------

    def _administer(self, command: Administration) -> Answer:
        return expect(administer(self.cluster_name, self.cluster, command, time.monotonic() + self.timeout))

    def _change(self, *changes: MemberChange) -> None:
        expect(change_membership(self.cluster_name, self.cluster, changes, time.monotonic() + self.timeout))


def _offering(pin: str, nodes: Sequence[RayNode]) -> dict[str, RayNode]:
    """The nodes that offer a pin, by id: the member that is pinned by it lives on one of them."""
    return {node.id: node for node in nodes if pin in node.resources}
