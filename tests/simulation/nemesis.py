"""What goes wrong, when, and for how long: drawn from the seed, within what a profile allows.

Every fault has a name, lasts for a while and then ends; ``Faults`` remembers which are on, so that a run can say
whether anybody got work done in spite of each.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from simulation.disk_faults import DiskFaults
from simulation.network import Weather
from simulation.operator_faults import OperatorFaults
from simulation.time_faults import TimeFaults

if TYPE_CHECKING:
    from simulation.coverage import Coverage
    from simulation.member import Member
    from simulation.world import World

Undo = Callable[[], object]


class Faults:
    """Which faults were on when, and how many operations succeeded meanwhile."""

    def __init__(self, coverage: Coverage) -> None:
        self._coverage = coverage
        self.times: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.succeeded: dict[str, int] = {}
        self._on: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def begin(self, name: str, now: float) -> None:
        self._coverage.fault_begins(name)
        self.times[name] = self.times.get(name, 0) + 1
        self.succeeded.setdefault(name, 0)
        if not self._on.get(name):
            self._since[name] = now
        self._on[name] = self._on.get(name, 0) + 1

    def end(self, name: str, now: float) -> None:
        left = self._on.get(name, 0) - 1
        if left < 0:
            return
        self._coverage.fault_ends(name)
        self._on[name] = left
        if not left:
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since[name]
            self._ended[name] = now

    def end_all(self, now: float) -> None:
        for name, count in self._on.items():
            for _ in range(count):
                self.end(name, now)

    def operation(self, began: float) -> None:
        """An operation that began then has succeeded now: it overlapped with what is on, or was on since."""
        for name in self.succeeded:
            if self._on.get(name) or self._ended.get(name, -1.0) >= began:
                self.succeeded[name] += 1


class Nemesis(TimeFaults, DiskFaults, OperatorFaults):
    """Causes the faults of one run.

    Args:
        world: what it torments.
        rng: its dice.
    """

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.faults = Faults(world.coverage)
        self.stopped = False
        self._undo: dict[int, tuple[str, Undo]] = {}
        self._number = 0
        self._on_burnt: dict[int, Undo] = {}
        """By member: what follows when its disk's fuse ends it."""
        self._alarmed: set[int] = set()
        """Members that call for room."""

    def start(self) -> None:
        self.world.after(self.rng.uniform(0.6, 1.5), self._next)

    def stop(self) -> None:
        """End every fault that is on, at once."""
        self.stopped = True
        for number in list(self._undo):
            self._end(number)
        self.faults.end_all(self.world.now)

    def _next(self) -> None:
        if self.stopped:
            return
        profile, rng = self.world.profile, self.rng
        names = list(profile.faults)
        name = rng.choices(names, [profile.faults[name] for name in names])[0]
        if self.world.now > 0.5 * profile.seconds and self.world.leader_changes < profile.leader_changes:
            name = "depose"  # so far the faults have missed the leaders
        if len(self._undo) < profile.faults_at_once or name in ("transfer", "membership"):
            getattr(self, f"_{name}")()
        self.world.after(rng.expovariate(1.0 / profile.fault_pause), self._next)

    def _begin(self, name: str, what: str, undo: Undo, seconds: float) -> None:
        self.world.trace(f"fault: {name} {what} for {seconds:.2f} s")
        self._number += 1
        self.faults.begin(name, self.world.now)
        self._undo[self._number] = (name, undo)
        self.world.after(seconds * self.world.profile.stretch, self._end, self._number)

    def _end(self, number: int) -> None:
        name, undo = self._undo.pop(number, ("", None))
        if undo is not None:
            self.world.trace(f"fault over: {name}")
            self.faults.end(name, self.world.now)
            undo()

    # --- whom --------------------------------------------------------------------------------------------------------

    def _members(self) -> list[Member]:
        return [member for member in self.world.members.values() if member.is_well]

    def _victim(self) -> Member | None:
        """The leader half of the time, else anybody who is well."""
        members = self._members()
        if not members:
            return None
        leader = self.world.leader()
        if leader is not None and leader in members and self.rng.random() < 0.5:
            return leader
        return self.rng.choice(members)

    def _spare(self) -> bool:
        """Whether one more may fall and a majority of all still stands."""
        standing = len(self._members())
        return standing - 1 > len(self.world.members) // 2 or self.rng.random() < 0.15

    # --- the network -------------------------------------------------------------------------------------------------

    def _cut(self, name: str, what: str, links: list[tuple[int, int]], seconds: float) -> None:
        self._begin(name, what, self.world.network.cut(links), seconds)

    def _isolate(self) -> None:
        victim = self._victim()
        if victim is not None:
            others = [m for m in self.world.members if m != victim.id]
            links = [(victim.id, m) for m in others] + [(m, victim.id) for m in others]
            if self.rng.random() < 0.3:  # from its clients too
                links += [(c.node, victim.id) for c in self.world.clients] + [
                    (victim.id, c.node) for c in self.world.clients
                ]
            self._cut("isolate", repr(victim), links, self.rng.uniform(0.3, 4.0))

    def _depose(self) -> None:
        """Cut the leader off from the other members for so long that they elect another one."""
        leader = self.world.leader()
        if leader is not None:
            others = [m for m in self.world.members if m != leader.id]
            links = [(leader.id, m) for m in others] + [(m, leader.id) for m in others]
            seconds = 2.5 * self.world.timings.election_timeout
            self._cut("isolate", f"{leader!r} to depose it", links, seconds + self.rng.random())

    def _split(self) -> None:
        """Two halves; the leader falls to the smaller one half of the time. Some clients see only one half."""
        members = list(self.world.members)
        self.rng.shuffle(members)
        leader = self.world.leader()
        small = members[: (len(members) - 1) // 2]
        if leader is not None and self.rng.random() < 0.5 and small and leader.id not in small:
            small[0] = leader.id
        large = [m for m in self.world.members if m not in small]
        links = [(a, b) for a in small for b in large] + [(b, a) for a in small for b in large]
        for client in self.world.clients:
            draw = self.rng.random()
            hidden = small if draw < 0.3 else large if draw < 0.45 else []
            links += [(client.node, m) for m in hidden] + [(m, client.node) for m in hidden]
        self._cut("split", f"{sorted(small)} | {sorted(large)}", links, self.rng.uniform(0.5, 4.0))

    def _one_way(self) -> None:
        victim = self._victim()
        if victim is not None:
            others = [m for m in self.world.members if m != victim.id]
            outward = self.rng.random() < 0.5
            links = [(victim.id, m) if outward else (m, victim.id) for m in others]
            what = f"{victim!r} {'cannot be heard' if outward else 'cannot hear'}"
            self._cut("one-way", what, links, self.rng.uniform(0.3, 3.0))

    def _bridge(self) -> None:
        """Two members that do not see each other, while all others see both."""
        if len(self.world.members) > 2:
            a, b = self.rng.sample(list(self.world.members), 2)
            self._cut("bridge", f"m{a} / m{b}", [(a, b), (b, a)], self.rng.uniform(0.5, 4.0))

    def _flap(self) -> None:
        victim = self._victim()
        if victim is None:
            return
        others = [m for m in self.world.members if m != victim.id]
        links = [(victim.id, m) for m in others] + [(m, victim.id) for m in others]
        heal: list[Undo] = []
        period = self.rng.uniform(0.05, 0.5)
        on = [True]

        def swing() -> None:
            if not on[0]:
                return
            if heal:
                heal.pop()()
            else:
                heal.append(self.world.network.cut(links))
            self.world.after(period * self.rng.uniform(0.5, 1.5), swing)

        def undo() -> None:
            on[0] = False
            if heal:
                heal.pop()()

        swing()
        self._begin("flapping", f"{victim!r} every {period:.2f} s", undo, self.rng.uniform(1.0, 3.0))

    def _clients_cut(self) -> None:
        links = []
        for client in self.world.clients:
            for member in self.world.members:
                if self.rng.random() < 0.4:
                    links += [(client.node, member), (member, client.node)][self.rng.randrange(2) :]
        self._cut("clients cut", f"{len(links)} links", links, self.rng.uniform(0.3, 3.0))

    def _storm(self) -> None:
        rng = self.rng
        weather = Weather(
            delay=rng.choice((0.002, 0.01, 0.05)),
            loss=rng.choice((0.0, 0.05, 0.2)),
            double=rng.choice((0.0, 0.1, 0.3)),
            reorder=rng.choice((0.0, 0.1, 0.4)),
            hold=rng.choice((0.1, 0.5, 2.0)),
        )
        network = self.world.network
        before, network.weather = network.weather, weather

        def undo() -> None:
            network.weather = before

        self._begin("storm", repr(weather), undo, rng.uniform(0.5, 4.0))

    # --- machines ----------------------------------------------------------------------------------------------------

    def _restart(self, member: Member) -> Undo:
        return lambda: member.start() if member.process is None else None

    def _crash(self) -> None:
        victim = self._victim()
        if victim is not None and self._spare():
            victim.crash()
            self._begin("crash", repr(victim), self._restart(victim), self.rng.uniform(0.02, 1.5))

    def _stop(self) -> None:
        victim = self._victim()
        if victim is not None and self._spare():
            victim.stop()
            if victim.process is None and not victim.disk.fuse:
                self._begin("stop", repr(victim), self._restart(victim), self.rng.uniform(0.02, 1.0))

    def _power(self) -> None:
        victim = self._victim()
        if victim is not None and self._spare():
            victim.lose_power()
            self._begin("power loss", repr(victim), self._restart(victim), self.rng.uniform(0.02, 1.5))

    def _power_all(self) -> None:
        members = list(self.world.members.values())
        for member in members:
            member.lose_power()

        def undo() -> None:
            for member in members:
                self.world.after(self.rng.uniform(0.0, 0.4), self._restart(member))

        self._begin("power loss of all", "", undo, self.rng.uniform(0.05, 0.3))

    def _fuse(self) -> None:
        """Ends a process between two operations of its disk, soon."""
        victim = self._victim()
        if victim is not None and self._spare():
            victim.disk.fuse = self.rng.randint(1, 25)
            self.world.trace(f"fault: {victim!r} will end within {victim.disk.fuse} operations of its disk")

    def burnt_out(self, member: Member) -> None:
        """The fuse of a member's disk has ended its process."""
        planned = self._on_burnt.pop(member.id, None)
        if planned is not None:
            planned()
            return
        if self.rng.random() < 0.7:
            member.lose_power()
        self._begin("crash in a turn", repr(member), self._restart(member), self.rng.uniform(0.02, 1.0))

    def _amnesia(self) -> None:
        """One member is cut off, another loses its power in the midst of its next turn, and then the leader is gone:
        now the two others must know between them all that was promised."""
        world, leader = self.world, self.world.leader()
        others = [member for member in self._members() if member is not leader]
        if leader is None or len(world.members) != 3 or len(others) != 2:
            return
        away, victim = self.rng.sample(others, 2)
        heal = world.network.cut([(away.id, m) for m in world.members] + [(m, away.id) for m in world.members])

        def strike() -> None:
            if self.stopped or victim.process is None:
                return
            victim.disk.fuse = self.rng.randint(1, 2)
            self._on_burnt[victim.id] = burnt

        def burnt() -> None:
            victim.lose_power()
            world.after(self.rng.uniform(0.05, 0.3), self._restart(victim))
            world.after(self.rng.uniform(0.005, 0.04), gone)  # the leader has heard what the victim forgot

        def gone() -> None:
            heal()
            if leader.process is not None:
                leader.crash()
                world.after(self.rng.uniform(1.5, 3.0), self._restart(leader))

        world.after(self.rng.uniform(0.2, 0.6), strike)
        self._begin("amnesia", f"of {victim!r}, without {away!r}", heal, 3.0)

    # --- clients -----------------------------------------------------------------------------------------------------

    def _client_crash(self) -> None:
        client = self.rng.choice(self.world.clients)
        if self.rng.random() < 0.6:
            client.crash()
        else:
            client.close()
        self._begin("client crash", "", lambda: None, 0.5)

    def _client_pause(self) -> None:
        client = self.rng.choice(self.world.clients)
        if client.paused:
            return
        client.pause()
        life = client.lives

        def undo() -> None:
            if client.lives == life:
                client.resume()

        short = self.rng.choice((0.4, 1.0, 1.7, 3.5)) * self.rng.uniform(0.7, 1.3)
        self._begin("client pause", client.name, undo, self._how_long() if self.world.profile.longest > 10 else short)
