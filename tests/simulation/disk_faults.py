"""What goes wrong with disks: states that are lost or rot, syncs that fail or take seconds, reads that fail, no room.

Part of :class:`~.nemesis.Nemesis`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from simulation.member import FOLDER

if TYPE_CHECKING:
    from simulation.member import Member
    from simulation.world import World


class DiskFaults:
    """Base of ``Nemesis``."""

    world: World
    rng: random.Random
    _begin: Callable[[str, str, Callable[[], object], float], None]
    _victim: Callable[[], Member | None]
    _spare: Callable[[], bool]
    _restart: Callable[[Member], Callable[[], object]]
    _members: Callable[[], list[Member]]
    _replace_ruined: Callable[[Member], None]

    def _may_rot(self, victim: Member) -> bool:
        """Whether every configuration that anybody knows keeps a whole state in each of its quorums without this one:
        more is asked of no cluster."""
        world = self.world
        lost = {member.id for member in world.members.values() if member is victim or not member.is_whole()}
        for member in world.members.values():
            if member.process is None:
                return False  # who knows what it knows
            for half in (
                member.process.replica.node.configuration.voters,
                member.process.replica.node.configuration.outgoing,
            ):
                if half and 2 * len(lost.intersection(half)) > len(half):
                    return False
        return True

    def _state_loss(self) -> None:
        """A member dies, and when it comes back its state cannot be opened; its log can."""
        victim = self._victim()
        if victim is None or not self._spare() or not self._may_rot(victim):
            return
        if self.rng.random() < 0.5:
            victim.crash()
        else:
            victim.lose_power()
        state = victim.disk.current(FOLDER)
        path = f"{FOLDER}/CURRENT" if self.rng.random() < 0.2 else state
        what = victim.disk.damage(path, self.rng)
        self.world.rebuilds += 1
        self._begin("state loss", f"{victim!r}: {path} {what}", self._restart(victim), self.rng.uniform(0.02, 1.0))

    def _rot(self) -> None:
        """Bits flip in the state of a member that runs. The next read of them finds it."""
        victim = self._victim()
        if victim is None or not self._may_rot(victim):
            return
        count = victim.disk.rot(victim.disk.current(FOLDER), self.rng, self.rng.choice((0.0, 0.05, 0.5)))
        self._begin("bit rot", f"in {count} records of {victim!r}", lambda: None, 1.0)

    def _log_rot(self) -> None:
        """A bit flips in what a member's log had on disk for sure, mostly in its last record, while the member is away.
        It must notice, and never serve again under its id; another takes its place."""
        victim = self._victim()
        configuration = None if victim is None or victim.process is None else victim.process.replica.node.configuration
        if victim is None or configuration is None or victim.id not in configuration.voters:
            return
        if any(self.world.members[number].ruined for number in configuration.members) or not self._may_rot(victim):
            return
        records = [each for each in self.world.observer.synced(victim).newest if victim.disk.exists(each[0])]
        if not records or len(self._members()) <= len(configuration.voters) // 2 + 1:
            return
        name, start, size = records[-1] if self.rng.random() < 0.7 else self.rng.choice(records)
        offset, bit = start + self.rng.randrange(size), self.rng.randrange(8)
        victim.crash()
        victim.disk.flip(name, offset, bit)
        victim.ruined = f"bit {bit} of byte {offset} of {name} has flipped"
        self._begin("log rot", f"{victim!r}: {victim.ruined}", self._restart(victim), self.rng.uniform(0.02, 1.0))
        self.world.after(0.5, self._replace_ruined, victim)

    def _failing_sync(self) -> None:
        """The next fsync of a member fails: nobody knows what is on its disk, and it must end."""
        victim = self._victim()
        if victim is not None and self._spare():
            victim.disk.sync_fails = True
            self._begin("failing sync", f"of {victim!r}", lambda: None, 0.5)

    def _full_disk(self) -> None:
        """A member's disk has no room, at once or soon, and later it has."""
        victim = self._victim()
        if victim is None or not self._spare():
            return
        victim.disk.room = self.rng.randint(0, 12)

        def undo() -> None:
            victim.disk.room = None

        self._begin("full disk", repr(victim), undo, self.rng.uniform(0.3, 3.0))

    def _refused_reads(self) -> None:
        """Reads of a member's disk answer EIO now and then; half of the time its process is killed, and the next one
        must read all that there is. It may not take what it could not read for damaged, for missing or for the end."""
        victim = self._victim()
        if victim is None or not self._spare():
            return
        share = self.rng.choice((0.001, 0.01, 0.1, 0.5))
        victim.disk.refuse_reads(share, random.Random(self.rng.getrandbits(64)))

        def undo() -> None:
            victim.disk.refuse_reads(0.0)

        self._begin("refused reads", f"{share:.2%} of {victim!r}", undo, self.rng.uniform(0.3, 3.0))
        if self.rng.random() < 0.5:
            victim.crash()
            self.world.after(self.rng.uniform(0.01, 0.2), victim.start)

    def _slow_disk(self) -> None:
        """Each sync of a member, the leader's half of the time, takes from 10 ms to 5 s."""
        victim = self._victim()
        if victim is not None:
            victim.slow_disk = math.exp(self.rng.uniform(math.log(0.01), math.log(self.world.profile.slowest_sync)))

            def undo() -> None:
                victim.slow_disk = 0.0

            self._begin("slow disk", f"{victim!r}, {victim.slow_disk:.3f} s a sync", undo, self.rng.uniform(0.5, 3.0))
