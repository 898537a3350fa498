"""What goes wrong with time: processes that stall, machines that sleep, clocks that err, timings that are changed.

A *pause* stops a process, and what arrives gathers; a machine that *sleeps* hears nothing either, and its clock may run
further meanwhile than a member believes of one step. Part of :class:`~.nemesis.Nemesis`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from raykeeper.actors.member.events import BackgroundDone, Proposal
from raykeeper.limits import decode_settings, encode_settings
from raykeeper.schema.commands import Configure

if TYPE_CHECKING:
    from simulation.member import Member
    from simulation.world import World

_encode = msgspec.msgpack.Encoder().encode


class TimeFaults:
    """Base of ``Nemesis``."""

    world: World
    rng: random.Random
    _begin: Callable[[str, str, Callable[[], object], float], None]
    _victim: Callable[[], Member | None]
    _spare: Callable[[], bool]
    _members: Callable[[], list[Member]]

    # --- processes ---------------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        victim = self._victim()
        if victim is not None and self._spare():
            victim.pause()
            self._begin("pause", repr(victim), self._wakes(victim), self._how_long())

    def _how_long(self) -> float:
        """Seconds that a process stands still: short ones are as frequent as long ones."""
        return math.exp(self.rng.uniform(math.log(0.2), math.log(self.world.profile.longest)))

    def _hang(self) -> None:
        """A member's loop is stuck in a call to the system, while its other threads take requests in and answer what
        they can; in the end the call returns, or somebody ends the process."""
        victim = self._victim()
        if victim is None or not self._spare():
            return
        victim.hang()
        life, ends = victim.lives, self.rng.random() < 0.4

        def undo() -> None:
            if victim.lives == life and victim.process is not None:
                if ends:
                    victim.crash()
                    self.world.after(self.rng.uniform(0.02, 0.5), victim.start)
                else:
                    victim.resume()

        self._begin("hang", f"{victim!r}, {'to its end' if ends else 'for a while'}", undo, self._how_long())

    def _wakes(self, victim: Member) -> Callable[[], None]:
        """How a member goes on that is paused in this life of it."""
        life = victim.lives

        def undo() -> None:
            if victim.paused and victim.lives == life:
                victim.resume()

        return undo

    def _sleep(self) -> None:
        """A machine, mostly the leader's, sleeps, sometimes for longer than its member believes of one step of its
        clock. The others hear of it again only some time after it woke up; its clients may be first."""
        world, rng = self.world, self.rng
        victim = world.leader() if rng.random() < 0.8 else self._victim()
        if victim is None or victim.paused or victim.process is None or not self._spare():
            return
        others = [m for m in world.members if m != victim.id]
        clients = [client.node for client in world.clients]
        apart = world.network.cut([(victim.id, m) for m in others] + [(m, victim.id) for m in others])
        away = world.network.cut([(victim.id, c) for c in clients] + [(c, victim.id) for c in clients])
        victim.pause()
        wakes = self._wakes(victim)

        def undo() -> None:
            away()
            wakes()
            world.after(rng.choice((0.0, rng.uniform(0.0, 1.5))), apart)

        share = rng.uniform(1.01, 1.3) if rng.random() < 0.6 else rng.uniform(0.2, 0.9)
        self._begin("sleep", repr(victim), undo, share * world.profile.max_clock_step)

    def _usurp(self, name: str, trick: Callable[[Member, list[Member]], float]) -> None:
        """Something happens to the followers; right then nobody hears the leader any more, and one of them campaigns
        again and again, as one whose timer ends at any moment.

        Args:
            trick: does it, and says after how many seconds the leader is alone.
        """
        world, rng = self.world, self.rng
        leader = world.leader()
        followers = [member for member in self._members() if member is not leader]
        if leader is None or leader.process is None or leader.paused or not followers:
            return
        timeout = leader.process.replica.timings.election_timeout
        alone_after = trick(leader, followers)
        heal: list[Callable[[], None]] = []
        over = [False]

        def mute() -> None:
            if not over[0]:
                heal.append(world.network.cut([(leader.id, m) for m in world.members]))
                world.after(0.01, alone)  # what was answered still arrives

        def alone() -> None:
            if not over[0]:
                heal.append(world.network.cut([(m, leader.id) for m in world.members]))
                urge(rng.choice(followers))

        def urge(member: Member) -> None:
            process = member.process
            if over[0]:
                return
            if process is not None:
                member.put(BackgroundDone(process.replica.node.campaign))
            world.after(0.015, urge, member)

        def undo() -> None:
            over[0] = True
            while heal:
                heal.pop()()

        world.after(alone_after, mute)
        self._begin(name, f"of those who follow {leader!r}", undo, alone_after + rng.uniform(1.0, 2.0) * timeout)

    def _timeout(self, leader: Member) -> float:
        assert leader.process is not None
        return leader.process.replica.timings.election_timeout

    def _stall(self) -> None:
        """Loops that stand still for a moment, and then find a fresh word of the leader among what has gathered."""

        def stand_still(leader: Member, followers: list[Member]) -> float:
            seconds = self._timeout(leader) * self.rng.uniform(0.1, 0.6)
            for follower in followers:
                follower.pause()
                self.world.after(seconds, self._wakes(follower))
            return seconds + self.rng.choice((0.0, self.rng.uniform(0.0, 0.02)))

        self._usurp("stall", stand_still)

    def _forget(self) -> None:
        """Processes that are restarted, quickly."""

        def begin_anew(leader: Member, followers: list[Member]) -> float:
            for follower in followers:
                when = self._timeout(leader) * self.rng.uniform(0.0, 0.2)
                self.world.after(when, follower.crash)
                self.world.after(when + self._timeout(leader) * self.rng.uniform(0.01, 0.2), follower.start)
            return 0.0

        self._usurp("forget", begin_anew)

    # --- clocks ------------------------------------------------------------------------------------------------------

    def _stale_leader(self) -> None:
        """A leader that nobody follows and whose clock hardly moves, so that it does not notice; some clients stay. So
        does one other member, perhaps, if the rest can elect another leader without it."""
        leader, world = self.world.leader(), self.world
        if leader is None or leader.paused or leader.process is None:
            return
        others = [m for m in world.members if m != leader.id]
        voters = leader.process.replica.node.configuration.voters
        spare = [m for m in others if 2 * len({*voters} - {leader.id, m}) > len(voters)]
        if spare and self.rng.random() < 0.5:
            others.remove(self.rng.choice(spare))
        links = [(leader.id, m) for m in others] + [(m, leader.id) for m in others]
        for client in world.clients:
            if self.rng.random() < 0.5:
                links += [(client.node, leader.id), (leader.id, client.node)]
        heal = world.network.cut(links)
        leader.clock.set(world.now, rate=self.rng.choice((0.0, 0.1)))
        leader.clock_changed()

        def undo() -> None:
            heal()
            leader.clock.set(world.now, rate=leader.pace)
            leader.clock_changed()

        self._begin("stale leader", repr(leader), undo, self.rng.uniform(2.0, 5.0))

    def _clock(self) -> None:
        victim = self._victim()
        if victim is None:
            return
        draw, now = self.rng.random(), self.world.now
        if self.world.profile.honest_clocks and draw < 0.7:
            rate = self.rng.choice((0.1, 0.3, 0.7))
            victim.clock.set(now, rate=rate)
            what = f"runs at {rate}"
        elif draw < 0.4:
            rate = self.rng.choice((0.3, 0.7, 1.5, 3.0))
            victim.clock.set(now, rate=rate)
            what = f"runs at {rate}"
        elif draw < 0.7:
            jump = self.rng.choice((0.3, 1.0, 5.0))
            victim.clock.set(now, jump=jump)
            what = f"jumps by {jump}"
        else:
            victim.clock.set(now, rate=0.0)
            what = "stands still"
        victim.clock_changed()

        def undo() -> None:
            victim.clock.set(self.world.now, rate=victim.pace)
            victim.clock_changed()

        self._begin("clock", f"of {victim!r} {what}", undo, self.rng.uniform(0.5, 3.0))

    def _jump(self) -> None:
        """A clock, of a member or of a client, goes forward by as much as is believed, and stays there."""
        world, rng = self.world, self.rng
        seconds = math.exp(rng.uniform(math.log(0.1), math.log(0.98 * world.profile.max_clock_step)))
        if rng.random() < 0.3:
            client = rng.choice(world.clients)
            client.clock.set(world.now, jump=seconds)
            client.soon()
            self._begin("jump", f"of {client.name} by {seconds:.2f} s", lambda: None, 0.5)
            return
        victim = self._victim()
        if victim is not None:
            victim.clock.set(world.now, jump=seconds)
            victim.clock_changed()
            self._begin("jump", f"of {victim!r} by {seconds:.2f} s", lambda: None, 0.5)

    def _leap(self) -> None:
        """Clocks that jump so far ahead that a member takes it for sleep: those of all followers, or the leader's."""

        def leap(member: Member) -> None:
            if member.process is not None and not member.paused:
                member.process.clock()  # it has just looked
                step = self.world.profile.max_clock_step
                member.clock.set(self.world.now, jump=step * self.rng.uniform(1.01, 3.0))
                member.clock_changed()

        def leap_all(leader: Member, followers: list[Member]) -> float:
            for member in followers if self.rng.random() < 0.7 else [leader]:
                self.world.after(self._timeout(leader) * self.rng.uniform(0.0, 0.2), leap, member)
            return 0.0

        self._usurp("leap", leap_all)

    # --- timings -----------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        """Somebody changes the timings of the running cluster, and its followers may not know it yet when they hear
        their leader for the last time."""
        timeout = self.rng.choice((0.3, 0.5, 1.0, 2.0))

        def change(leader: Member, followers: list[Member]) -> float:
            assert leader.process is not None
            now = decode_settings(leader.process.replica.state.settings)
            interval = min(0.1, timeout * self.rng.choice((0.1, 0.2)))
            timings = replace(now.timings, election_timeout=timeout, heartbeat_interval=interval)
            command = Configure(encode_settings(replace(now, timings=timings)))
            leader.put(Proposal(_encode(command), math.inf, 0.0, lambda outcome: None))
            if self.rng.random() < 0.7:
                return self.rng.choice((self.rng.uniform(0.003, 0.012), self.rng.uniform(0.0, 0.3)))
            # They have it on disk, and do not hear for a moment that it is committed.
            deaf = self.rng.uniform(0.02, 0.15)
            links = [(leader.id, follower.id) for follower in followers]
            self.world.after(0.006, lambda: self.world.after(deaf, self.world.network.cut(links)))
            return deaf + self.rng.uniform(0.01, 0.15)

        self._usurp("configure", change)
