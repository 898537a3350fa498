"""A process of the imagined world: the real cores of a hub (requests, watches, leases) over the imagined network.

It can crash: what was open stays open forever, and a new process takes its place. It can be paused, as by a signal or
a suspended machine: nothing is sent or heard meanwhile, and its clock runs on. Its clock is a little fast or slow.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from raykeeper.actors.client.core.dispatch_core import DispatchCore
from raykeeper.actors.client.core.in_flight import OutgoingFrame
from raykeeper.actors.client.core.lease_core import LeaseCore
from raykeeper.actors.client.core.monitor_core import MonitorCore
from raykeeper.actors.client.core.router import Router
from raykeeper.actors.client.core.watch_core import WatchCore
from raykeeper.errors import DataCorrupted, KeeperError
from raykeeper.schema.answers import Answer
from raykeeper.schema.client_identity import ClientIdentity
from raykeeper.schema.frames import Read, Refusal, Refused
from raykeeper.schema.operations import Operation
from raykeeper.schema.replies import reply_bytes
from simulation.disk_content import ReadRefused
from simulation.member import DRIFT, Clock

if TYPE_CHECKING:
    from simulation.lodgers import Lodger
    from simulation.scripts import Script
    from simulation.workload import Worker
    from simulation.world import World

ClientCore = DispatchCore | WatchCore | LeaseCore | MonitorCore


class Client:
    """One process, and those who live in it: workers, and scripts that watch, hold leases and stand in lines."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.node = -number
        self.rng = world.random("client", number)
        self.name = f"client {number}"
        self.lives = 0
        self.died_at: dict[int, float] = {}
        """When each of its lives ended."""
        self.process: Any = None
        """The process of this life, as the kernel knows it (``deaths``)."""
        self.paused = False
        self.clock = Clock(world.now, self.rng.uniform(0, 1000))
        self.clock.set(world.now, rate=1.0 + self.rng.uniform(-DRIFT, DRIFT))
        self.scripts: dict[Script, None] = {}
        """What runs in this life."""
        self.workers: list[Worker] = []
        self.lodgers: list[Lodger] = []
        self._held_up: list[Callable[[], None]] = []
        """What arrives while the process is paused."""
        self._wake_number = 0
        self._wake_at: float | None = None
        self._open()

    def _open(self) -> None:
        self.lives += 1
        self._wake_at = None
        self._wake_number += 1
        world = self.world
        members = world.member_ids()
        rng = random.Random(self.rng.getrandbits(64))
        self.by_lane = rng.random() < 0.8
        """Whether its requests are taken by the members' loops, or by other threads of theirs."""
        self.router = Router(members)
        who = ClientIdentity(host=self.name, pid=self.lives, started=int(world.now))
        self.hub = DispatchCore(world.cluster, self.router, world.limits, world.timings, rng, who)
        self.watch_core = WatchCore(world.cluster, self.router, world.limits, rng)
        hub = self.hub
        self.lease_core = LeaseCore(world.cluster, self.router, world.limits, rng, lambda: hub.session)
        self.monitor_core = MonitorCore(
            world.cluster, self.router, lambda: hub.session, self.lease_core.owns, random.Random(0)
        )
        self.cores: tuple[ClientCore, ...] = (self.hub, self.watch_core, self.lease_core, self.monitor_core)
        world.deaths.born(self)

    def time(self, at: float | None = None) -> float:
        """What its clock shows now, or showed at a true time."""
        return self.clock.read(self.world.now if at is None else at)

    # --- life and death ----------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The process dies and a new one begins."""
        self.world.trace(f"{self.name} crashes")
        self._end()

    def close(self) -> None:
        """The process closes its hub, and the cluster forgets its session; then it opens a new one."""
        if self.paused:
            return self.crash()
        self.world.trace(f"{self.name} closes its hub")
        now = self.time()
        cores = self.cores
        self._end()
        for core in cores:
            core.close(now)
            for out in core.outgoing(now):
                self._send(core, out, self.lives - 1)
        return None

    def _end(self) -> None:
        self.paused = False
        self._held_up.clear()
        if self.hub.session:
            self.world.ages.silent.setdefault(self.hub.session, self.world.now)
        self.died_at[self.lives] = self.world.now
        self.world.deaths.died(self)
        self._open()
        for script in list(self.scripts):
            script.kill()
        for worker in self.workers:
            worker.lost()
        for lodger in self.lodgers:
            lodger.move_in()

    def gone(self) -> None:
        """The world ends: what still runs is taken apart, in good order."""
        self.lives += 1
        for script in list(self.scripts):
            script.kill()

    def pause(self) -> None:
        self.world.trace(f"{self.name} is paused")
        self.paused = True

    def resume(self) -> None:
        if not self.paused:
            return
        self.world.trace(f"{self.name} goes on")
        self.paused = False
        held_up, self._held_up = self._held_up, []
        if self.rng.random() < 0.5:  # its timer thread comes first
            self._on_time()
        for each in held_up:
            each()
        self._on_time()

    def when_awake(self, what: Callable[[], None]) -> bool:
        """Whether the process runs; if not, this is done once it does."""
        if self.paused:
            self._held_up.append(what)
        return not self.paused

    # --- requests ----------------------------------------------------------------------------------------------------

    def submit(
        self, request: Operation | Read, timeout: float, done: Callable[[Answer | KeeperError], None], **options: Any
    ) -> int:
        number = self.hub.submit(request, now=self.time(), timeout=timeout, done=done, **options)
        self.soon()
        return number

    def give_up(self, number: int) -> None:
        self.hub.give_up(number, self.time())
        self.soon()

    def soon(self) -> None:
        """The cores have something to say."""
        self.world.at(self.world.now, self.pump, self.lives)

    def pump(self, life: int) -> None:
        """Send what the cores want to send, and be woken when they want to be."""
        if life != self.lives or self.paused:
            return
        world, now = self.world, self.time()
        wakeup = math.inf
        if self.router.wants_members:
            self.router.set_members(world.member_ids())
        for core in self.cores:
            for out in core.outgoing(now):
                self._send(core, out, life)
            wanted = core.next_wakeup()
            if wanted is not None:
                wakeup = min(wakeup, wanted)
        when = self.clock.when(wakeup) if wakeup < math.inf else None
        if when is None:
            return
        when = max(when + 1e-9, world.now + 1e-4)
        if self._wake_at is None or when < self._wake_at or self._wake_at <= world.now:
            self._wake_at = when
            self._wake_number += 1
            world.at(when, self._wake, self._wake_number)

    def _wake(self, number: int) -> None:
        if number == self._wake_number:
            self._wake_at = None
            self._on_time()

    def _on_time(self) -> None:
        if self.paused:
            return  # going on looks at the clock
        for core in self.cores:
            core.on_time(self.time())
        self.pump(self.lives)

    def _send(self, core: ClientCore, out: OutgoingFrame, life: int) -> None:
        """A call to a member. If it is lost, the transport says so sometimes, late; otherwise it hangs."""
        world, member = self.world, out.member
        by_lane = self.by_lane
        ended = [False]

        def take_in(content: bytes | None) -> None:
            if life != self.lives or ended[0] or not self.when_awake(lambda: take_in(content)):
                return
            ended[0] = True
            if content is None:
                core.on_failure(out.number, self.time())
            else:
                core.on_reply(out.number, content, self.time())
            if core is self.hub:
                self.watch_core.learn_revision(self.hub.revision, self.time())
            self.pump(life)

        def fail() -> None:
            take_in(None)

        def arrive() -> None:
            process = world.members[member].process if member in world.members else None
            if process is None:
                world.after(self.rng.uniform(0.005, 0.5), fail)
                return

            def finished(make_reply: Callable[[], bytes]) -> None:
                # Another thread makes the reply, a little later, and the loop goes on meanwhile.
                process.hanging.pop(finished, None)
                world.after(self.rng.expovariate(1000.0), answer, make_reply)

            def answer(make_reply: Callable[[], bytes]) -> None:
                if not process.alive:
                    world.after(self.rng.uniform(0.005, 0.5), fail)
                    return
                if process.member.paused:
                    world.after(0.02, answer, make_reply)
                    return
                disk = process.member.disk
                disk.read_by_member = True
                try:
                    reply = make_reply()
                except (DataCorrupted, ReadRefused) as error:
                    reply = reply_bytes(Refused(Refusal.NOT_SERVING, message=str(error)))
                finally:
                    disk.read_by_member = False
                world.network.carry(member, self.node, take_in, reply)

            def take() -> None:
                if not process.alive:
                    world.after(self.rng.uniform(0.005, 0.5), fail)
                elif process.member.paused:
                    world.after(0.02, take)
                else:
                    if isinstance(
                        core, WatchCore
                    ):  # it may hang for seconds, and the transport says if it is for nothing
                        process.hanging[finished] = lambda: world.after(self.rng.uniform(0.005, 0.5), fail)
                    lane: Any = world.deaths.lane(self, process) if core is self.monitor_core else None
                    # Of each three that come by lane, one comes together with peers' frames, which are taken first.
                    first = (by_lane or lane is not None) and out.number % 3 > 0
                    disk = process.member.disk
                    disk.read_by_member = True
                    try:
                        process.handler.handle_request(world.users.wrapped(out.frame), finished, lane, in_loop=first)
                    except ReadRefused as error:  # as ``Poller`` does
                        finished(partial(bytes, reply_bytes(Refused(Refusal.NOT_SERVING, message=str(error)))))
                    finally:
                        disk.read_by_member = False

            take()

        if not world.network.carry(self.node, member, arrive) and self.rng.random() < 0.5:
            world.after(self.rng.uniform(0.05, 1.5), fail)
