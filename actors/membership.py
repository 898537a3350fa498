"""Members come, are promoted, and go: the steps by which a running cluster changes who takes part.

Each step goes through the cluster's own log or does what the log says already, and each can be repeated: whoever begins
may be killed anywhere, and whoever comes next (the caller again, or the supervisor) goes on. A member joins so:

    reserve   the log gives out an id, never used before, and notes the place
    enroll    the folder is made on that node, knowing how the cluster began, and the actor is started
    learn     the configuration gets a learner, which the leader brings up to date, by log or snapshot
    promote   the learner becomes a voter once it has caught up, or takes another's place in one joint change

and leaves so: out of the configuration, then noted as removed (from then on nobody listens to it, and its id is used
up), then its actor is ended and its data deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from ..errors import KeeperError, Unavailable
from ..limits import MEMBERSHIP_STEP_TIMEOUT, STATUS_TIMEOUT, STOP_TIMEOUT, SURVEY_TIMEOUT
from ..store.commands import Administration, Answer, MemberReserved, ReserveMember, RetireMember
from ..store.folder import Identity
from ..store.members import Description
from . import sites
from .administration import administer, change, expect
from .client.deadline import at_most
from .placement import Node, run_on
from .places import Spot
from .raft.messages import Change, ChangeKind
from .ray_calls import in_time
from .roster import gone, member_actors, wait_for
from .seat import Seat, actor_name, member_name
from .starting import start_actor


@dataclass(frozen=True)
class Hands:
    """Does the steps for one cluster.

    Attributes:
        data_dir, placement: as its spec has them.
        timeout: seconds that one step may take.
    """

    cluster_name: str
    cluster: int
    data_dir: str
    placement: tuple[str, ...] = ()
    timeout: float = MEMBERSHIP_STEP_TIMEOUT

    # -- coming -------------------------------------------------------------------------------------------------------

    def reserve(self, nonce: bytes, spot: Spot, *, replaces: int = 0, voter: bool = True) -> Description:
        """Get the id of a new member that is to live at a spot.

        Raises:
            Unavailable: the node did not answer, its folder cannot be used, or there is no leader.
        """
        site = run_on({0: spot.node}, sites.survey, {0: (self.data_dir, self.cluster_name)}, SURVEY_TIMEOUT)[0]
        if site.problem:
            raise Unavailable(f"no member can live on Ray node {spot.node.address}: {site.problem}")
        answer = self._administer(ReserveMember(nonce, spot.pin, site.base, replaces, voter))
        assert isinstance(answer, MemberReserved)
        member = answer.member
        return Description(
            member, member_name(member), spot.pin, site.base, replaces=replaces, voter=voter, nonce=nonce
        )

    def enroll(self, member: Description, nodes: Sequence[Node]) -> bool:
        """Make the data of a member that has its id and place, and start its actor; False if its node is not there.

        Raises:
            Unavailable: no member could be asked how the cluster began, or the node did not answer.
        """
        node = next((node for node in nodes if member.pin in node.resources), None)
        if node is None:
            return False
        beginning = self.beginning()
        identity = Identity(
            cluster_name=self.cluster_name,
            cluster=self.cluster,
            member=member.id,
            name=member_name(member.id),
            members=beginning.members,
            settings=beginning.settings,
        )
        run_on({0: node}, sites.enroll, {0: (member.base, identity)}, SURVEY_TIMEOUT)
        self.start(member)
        return True

    def start(self, member: Description) -> None:
        """Start a member's actor where its data lies, if there is none."""
        name = member_name(member.id)
        folder = os.path.join(member.base, name)
        start_actor(
            Seat(self.cluster_name, self.cluster, member.id, name, folder, member.pin, self.data_dir, self.placement)
        )

    def learn(self, member: int) -> None:
        """Add a member to the configuration as a learner."""
        self._change(Change(ChangeKind.ADD_LEARNER, member))

    def promote(self, member: int, replaces: int = 0) -> None:
        """Make a learner a voter; in the same joint change, another member may leave whose place it takes.

        Raises:
            NotCaughtUp: it is too far behind the leader's log.
            Unavailable: no leader, or too few voters would be left that can be heard.
        """
        changes = [Change(ChangeKind.ADD_VOTER, member)]
        if replaces:
            changes.append(Change(ChangeKind.REMOVE, replaces))
        self._change(*changes)

    def beginning(self) -> Identity:
        """How the cluster began, from any member that serves.

        Raises:
            Unavailable: none answers in time.
        """
        waiting = [actor.identity.remote() for actor in member_actors(self.cluster_name).values()]
        while waiting:
            done, waiting = ray.wait(waiting, timeout=at_most(STATUS_TIMEOUT))
            if not done:
                break
            try:
                identity = ray.get(done[0], timeout=0)
            except (ray.exceptions.RayError, TimeoutError):
                continue
            if isinstance(identity, Identity):
                return identity
        raise Unavailable(f"no member of cluster {self.cluster_name} could say how the cluster began")

    # -- going --------------------------------------------------------------------------------------------------------

    def leave(self, member: int) -> None:
        """Take a member out of the configuration.

        Raises:
            Unavailable: no leader, or too few voters would be left that can be heard.
            InvalidArgument: no voter would be left.
        """
        self._change(Change(ChangeKind.REMOVE, member))

    def retire(self, member: int) -> None:
        """Note that a member outside the configuration never comes back.

        Raises:
            InvalidArgument: it still takes part, or there never was such a member.
        """
        self._administer(RetireMember(member))

    def end(self, member: int, patience: float = STATUS_TIMEOUT) -> None:
        """End a member's actor, for good; it gets ``patience`` seconds to close its data before."""
        actor = member_actors(self.cluster_name).get(member)
        if actor is None:
            return
        ray.wait([actor.stop.remote()], timeout=at_most(patience))
        in_time(ray.kill, actor, no_restart=True)
        name = actor_name(self.cluster_name, member_name(member))
        wait_for(lambda: gone([name]), time.monotonic() + STOP_TIMEOUT)

    def clear(self, member: Description, nodes: Sequence[Node], where: str = "") -> bool:
        """Delete the data of a removed member; False if its node is not there, or a process still holds the data.

        Args:
            where: id of the node that the data was found on; without, it is looked for where the member was pinned.
        """
        node = next((each for each in nodes if (each.id == where if where else member.pin in each.resources)), None)
        if node is None or not member.base:
            return False
        try:
            run_on({0: node}, sites.clear, {0: (member.base, member.name, self.cluster)}, SURVEY_TIMEOUT)
        except (KeeperError, OSError):
            return False
        return True

    # -- the log ------------------------------------------------------------------------------------------------------

    def _administer(self, command: Administration) -> Answer:
        return expect(administer(self.cluster_name, self.cluster, command, time.monotonic() + self.timeout))

    def _change(self, *changes: Change) -> None:
        expect(change(self.cluster_name, self.cluster, changes, time.monotonic() + self.timeout))
