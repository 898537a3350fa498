"""What operators and background care do at the wrong moment: changes of members, of leaders and of settings, alarms.

Part of :class:`~.nemesis.Nemesis`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from raykeeper.actors.member.events import LeadershipTransfer, MembershipChange, Proposal
from raykeeper.limits import decode_settings, encode_settings
from raykeeper.raft.messages import ChangeKind, MemberChange
from raykeeper.schema.commands import (
    AlarmKind,
    ClientWrite,
    ClientWrites,
    CloseSession,
    Command,
    CompactHistory,
    Configure,
    EndDeadSessions,
    ExpireLeases,
    ExpireSessions,
    Expiry,
    HashContent,
    RenewLeases,
    RetireMember,
    SetAlarm,
)
from raykeeper.schema.operations import Delete, KeyRange

if TYPE_CHECKING:
    from simulation.member import Member
    from simulation.world import World

encode = msgspec.msgpack.Encoder().encode


class OperatorFaults:
    """Base of ``Nemesis``."""

    world: World
    rng: random.Random
    _begin: Callable[[str, str, Callable[[], object], float], None]
    _victim: Callable[[], Member | None]
    _spare: Callable[[], bool]
    _restart: Callable[[Member], Callable[[], object]]
    _depose: Callable[[], None]
    _undo: dict[int, tuple[str, Callable[[], object]]]
    _alarmed: set[int]

    # --- what background care does -----------------------------------------------------------------------------------

    def _propose(self, command: Command) -> bool:
        leader = self.world.leader()
        if leader is None or leader.process is None or leader.paused:
            return False
        leader.put(Proposal(encode(command), math.inf, 0.0, lambda outcome: None))
        return True

    def _alarm(self) -> None:
        """A member calls for room for a while: nothing is put meanwhile."""
        member = self.rng.choice(list(self.world.members))
        if not self._alarmed and self._propose(SetAlarm(member, AlarmKind.NOSPACE, True, "drawn")):
            self._alarmed.add(member)
            self.world.after(0.0, self._tend_alarms)
            self._begin("alarm", f"m{member}", self._alarmed.clear, self.rng.uniform(0.2, 0.8))

    def _tend_alarms(self) -> None:
        """As members do: see again and again that no alarm is on that should not be."""
        leader = self.world.leader()
        if leader is not None and leader.process is not None:
            for member, kind in leader.process.replica.state.alarms:
                if member not in self._alarmed:
                    self._propose(SetAlarm(member, kind, False))
        self.world.after(0.3, self._tend_alarms)

    def _hash(self) -> None:
        if self._propose(HashContent()):
            self._begin("hash", "", lambda: None, 0.2)

    def _settings(self) -> None:
        """Timings and limits change while everything runs, within what an operator may set."""
        leader, rng = self.world.leader(), self.rng
        if leader is None or leader.process is None:
            return
        now = decode_settings(leader.process.replica.state.settings)
        interval = rng.choice((0.05, 0.1, 0.2))
        timings = replace(now.timings, heartbeat_interval=interval, election_timeout=interval * rng.choice((5, 8, 10)))
        limits = replace(
            now.limits,
            log_cut_entries=rng.choice((20, 60, 150)),
            log_keep_entries=rng.choice((1, 5, 20)),
            snapshot_chunk_bytes=rng.choice((1024, 4096, 16384)),
            snapshot_bytes_per_second=rng.choice((1 << 15, 1 << 20, 1 << 26)),
            max_append_bytes=rng.choice((1024, 4096, 1 << 20)),
            max_append_messages_in_flight=rng.choice((1, 4, 64)),
            max_apply_bytes=rng.choice((1024, 1 << 20)),
            compaction_slice_keys=rng.choice((5, 50)),
        )
        if self._propose(Configure(encode_settings(replace(now, timings=timings, limits=limits)))):
            self._begin("settings", f"{timings}, {limits}", lambda: None, 1.0)

    # --- what an operator does ---------------------------------------------------------------------------------------

    def _transfer(self) -> None:
        leader = self.world.leader()
        if leader is not None and leader.process is not None:
            target = self.rng.choice([0, *self.world.members])
            self.world.trace(f"operator: transfer from {leader!r} to {target}")
            leader.put(LeadershipTransfer(target, lambda refused: None))
            self._begin("transfer", "", lambda: None, 1.0)

    def _reign(self) -> None:
        """A leader's reign ends: it hands over, or is cut off."""
        leader, world = self.world.leader(), self.world
        if leader is None or leader.process is None:
            return
        world.ages.deposed()
        if not self._undo and self.rng.random() < 0.4:
            self._depose()
            return
        target = self.rng.choice([member for member in world.founders if member != leader.id])
        world.trace(f"a reign ends: {leader!r} hands over to m{target}")
        leader.put(LeadershipTransfer(target, lambda refused: None))

    def _ousting(self) -> None:
        """The same, and mostly its process ends."""
        leader = self.world.leader()
        if leader is None or leader.process is None or self.rng.random() < 0.3 or not self._spare():
            self._reign()
            return
        self.world.ages.deposed()
        leader.crash()
        self._begin("crash", repr(leader), self._restart(leader), self.rng.uniform(0.02, 1.5))

    def _replace_ruined(self, ruined: Member) -> None:
        """As a supervisor does, until it is done: a learner takes the place of a voter that is gone for good."""
        leader, world = self.world.leader(), self.world
        if leader is not None and leader.process is not None:
            configuration = leader.process.replica.node.configuration
            if ruined.id not in configuration.members and not configuration.joint:
                return
            if not configuration.joint:
                ready = [member for member in configuration.learners if not world.members[member].ruined]
                if ready:
                    changes = (MemberChange(ChangeKind.ADD_VOTER, ready[0]), MemberChange(ChangeKind.REMOVE, ruined.id))
                else:
                    spare = [m for m in world.members if m > ruined.id and m not in configuration.members]
                    number = spare[0] if spare else world.add_member().id
                    changes = (MemberChange(ChangeKind.ADD_LEARNER, number),)
                leader.put(MembershipChange(changes, math.inf, lambda outcome: None))
        world.after(0.4, self._replace_ruined, ruined)

    def _poison(self) -> None:
        """A command arrives that names what is not there, or numbers at their extremes. Whatever it decodes to, it is
        answered, the same on every member."""
        rng = self.rng
        nobody = rng.choice((1, 9, 1 << 40, (1 << 63) - 1)) if rng.random() < 0.8 else 0
        number = nobody or 77
        command = rng.choice(
            (
                RetireMember(number if number not in self.world.members else 78),
                SetAlarm(number, AlarmKind.NOSPACE, False),
                ExpireLeases(number, (Expiry(number, 0),)),
                ExpireSessions(number, (Expiry(number, 0),)),
                RenewLeases(number, (number,)),
                EndDeadSessions((number,)),
                CloseSession(number),
                CompactHistory(1 << 62),
                ClientWrites(number, 1, (ClientWrite(1, Delete(KeyRange(b""))),)),
            )
        )
        if self._propose(command):
            self._begin("poison", repr(command), lambda: None, 0.2)

    def _membership(self) -> None:
        """Ask some member, mostly the leader, for some change, mostly a sensible one."""
        world, rng = self.world, self.rng
        leader = world.leader() if rng.random() < 0.9 else self._victim()
        if leader is None or leader.process is None:
            return
        configuration = leader.process.replica.node.configuration
        voters, learners = list(configuration.voters), list(configuration.learners)
        draw = rng.random()
        changes: list[MemberChange] = []
        if learners and draw < 0.6:
            promoted = rng.choice(learners)
            changes = [MemberChange(ChangeKind.ADD_VOTER, promoted)]
            if len(voters) > 3 or rng.random() < 0.6:  # a voter is replaced in one joint change
                changes.append(MemberChange(ChangeKind.REMOVE, rng.choice(voters)))
        elif len(voters) > 3 and draw < 0.8:
            changes = [MemberChange(rng.choice((ChangeKind.REMOVE, ChangeKind.ADD_LEARNER)), rng.choice(voters))]
        elif len(world.members) < world.profile.most_members:
            member = world.add_member()
            changes = [MemberChange(ChangeKind.ADD_LEARNER, member.id)]
        elif learners:
            changes = [MemberChange(ChangeKind.REMOVE, rng.choice(learners))]
        if changes:
            world.trace(f"operator: {changes} asked of {leader!r}")
            leader.put(MembershipChange(tuple(changes), math.inf, lambda outcome: world.trace(f"operator: {outcome}")))
            self._begin("membership", "", lambda: None, 1.0)
