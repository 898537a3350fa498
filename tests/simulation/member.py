"""One member as a machine: a disk that outlives its processes, a clock that cannot be trusted, and the real Replica.

The process can crash (between turns, or in the middle of one, see ``disk.fuse``), lose its power, and be paused like a
process that is stopped by a signal: what arrives gathers meanwhile, and its clock runs on. Turns take no time, but the
next one begins only after the disk was busy for a while; so batches form here as they do on real machines.
"""

from __future__ import annotations

import logging
import random
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from raykeeper.actors.member.clock import SteadyClock
from raykeeper.actors.member.events import BackgroundDone, InboxEvent, Unreachable
from raykeeper.actors.member.operator_requests import OperatorRequests
from raykeeper.actors.member.replica import Replica
from raykeeper.actors.member.request_handler import RequestHandler
from raykeeper.actors.transport.process_monitors import ProcessMonitors
from raykeeper.errors import DataCorrupted, NoSpace
from raykeeper.limits import TURN_EVENTS, Settings, decode_settings
from raykeeper.raft.messages import Message
from raykeeper.schema.operator_frames import MemberStatus
from raykeeper.store.data_dir import DataDir, StateDamaged
from simulation.checker import Violation
from simulation.disk import SimDisk
from simulation.disk_content import ReadRefused, SimCrash

if TYPE_CHECKING:
    from simulation.world import World

for _room in ("member", "audit"):
    logging.getLogger(f"raykeeper.{_room}").addHandler(logging.NullHandler())  # the trace tells more

FOLDER = "data/member"
DRIFT = 0.008
"""By how much of its rate a healthy clock may be fast or slow: two of them stay within the product's margin."""
INBOX_FRAMES = 512
"""Frames from peers that wait; more are dropped."""


class Clock:
    """Seconds of one machine: never backwards, but at its own rate, with jumps, and at times standing still."""

    def __init__(self, now: float, shown: float) -> None:
        self._since = now
        self._shown = shown
        self.rate = 1.0

    def read(self, now: float) -> float:
        return self._shown + (now - self._since) * self.rate

    def set(self, now: float, *, rate: float | None = None, jump: float = 0.0) -> None:
        """Run at another rate from now on, or jump forward."""
        self._shown = self.read(now) + jump
        self._since = now
        if rate is not None:
            self.rate = rate

    def when(self, shown: float) -> float | None:
        """The true time at which the clock will show this; ``None`` while it stands still."""
        if self.rate <= 0:
            return None
        return self._since + (shown - self._shown) / self.rate


class Process:
    """One life of a member: everything that a crash forgets."""

    def __init__(self, member: Member, folder: DataDir) -> None:
        self.member = member
        self.folder = folder
        world = member.world
        self.frames: deque[Sequence[Message]] = deque()
        self.events: deque[InboxEvent] = deque()
        self.hanging: dict[object, Callable[[], None]] = {}
        """Polls without an answer, and what becomes of each if the process dies."""
        settings = decode_settings(folder.state.settings) if folder.state.settings else Settings()
        self.clock = SteadyClock(lambda: member.clock.read(world.now), world.profile.max_clock_step)
        """The product's, over the machine's."""
        self.replica = Replica(
            folder=folder,
            timings=settings.timings,
            limits=settings.limits,
            send=self._send,
            clock=self.clock,
            rng=random.Random(member.rng.getrandbits(64)),
            background=self._background,
            wall=lambda: world.now,
        )
        backed_up: Any = SimpleNamespace(replica=self.replica)
        operators = OperatorRequests(backed_up, self._background, lambda: None, self.clock)
        self.monitors = ProcessMonitors(world.deaths.open, world.deaths.close)
        monitor: Any = partial(world.deaths.monitor, self)
        self.handler = RequestHandler(self.replica, self._enqueue, self.clock, self._status, operators, monitor)

    @property
    def alive(self) -> bool:
        return self.member.process is self

    def when(self, shown: float) -> float | None:
        """The true time at which its clock will show this, if nothing happens to the machine's."""
        return self.member.clock.when(shown + self.clock._skipped)

    def _send(self, messages: Sequence[Message]) -> None:
        member = self.member
        member.world.observer.spoken(member, self, messages)
        for receiver in member.world.network.carry_messages(member.id, messages, member.world.deliver):
            if member.rng.random() < 0.5:
                member.world.after(0.02, self._unreachable, receiver)

    def _unreachable(self, receiver: int) -> None:
        if self.alive:
            self.events.append(Unreachable(receiver))
            self.member.schedule_turn()

    def _enqueue(self, event: InboxEvent, size: int) -> bool:
        if len(self.events) >= self.member.world.limits.max_inbox_batches:
            return False
        self.events.append(event)
        self.member.schedule_turn()
        return True

    def _background(self, work: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        """The background thread: slow, and it dies with the process."""
        member = self.member

        def run() -> None:
            if not self.alive:
                return
            if member.paused:
                member.world.after(0.05, run)
                return
            error: Exception | None = None
            member.disk.read_by_member = True
            try:
                work()
            except SimCrash:
                member.burnt_out()
                return
            except Exception as caught:
                error = caught
            finally:
                member.disk.read_by_member = False
            self.events.append(BackgroundDone(lambda: then(error)))
            member.schedule_turn()

        member.world.after(member.rng.uniform(0.002, 0.15), run)

    def _status(self) -> MemberStatus:
        raise Violation("no client of the simulator asks for it")


class Member:
    """A machine with a member on it."""

    def __init__(self, world: World, member: int, rng: random.Random) -> None:
        self.world = world
        self.id = member
        self.rng = rng
        self.disk = SimDisk()
        self.clock = Clock(world.now, rng.uniform(0, 1000))
        self.pace = world.pace(member)
        """The rate of its clock while nothing is wrong with it."""
        self.clock.set(world.now, rate=self.pace)
        self.process: Process | None = None
        self.lives = 0
        self.paused = False
        """No thread of the process runs..."""
        self.hanging = False
        """... or all but its loop."""
        self._turn_at: float | None = None
        self._turn_number = 0
        self._busy_until = 0.0
        self.slow_disk = 0.0
        """Extra seconds of each sync."""
        self.ruined = ""
        """What has happened to its log, which may have forgotten a promise since: it must not serve again."""

    def __repr__(self) -> str:
        return f"m{self.id}"

    # --- life and death ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a process over what the disk holds."""
        if self.process is not None:
            return
        self.disk.restart()
        self.lives += 1
        self.paused = self.hanging = False
        self.disk.read_by_member = True
        try:
            folder = self.world.open_folder(self)
            if folder.state.lost and not self.disk.harmed:
                raise Violation(f"the state of {self!r} is lost, and nothing has damaged it: {folder.state.lost}")
            self.process = Process(self, folder)
        except SimCrash:
            self.burnt_out()
            return
        except (NoSpace, ReadRefused) as refused:
            self.refused_by_disk(refused)
            return
        except Violation:
            raise
        except Exception as error:
            if self.ruined and isinstance(error, DataCorrupted):
                self.world.trace(f"{self!r} does not serve: {error}")
                self.disk.crash()
                return
            raise Violation(f"{self!r} cannot start over its own disk: {error!r}\n{traceback.format_exc()}") from error
        finally:
            self.disk.read_by_member = False
        if self.ruined:
            raise Violation(f"{self!r} serves, though {self.ruined}")
        self.world.trace(f"{self!r} starts (life {self.lives})")
        self.world.observer.started(self, self.process)
        self._busy_until = self.world.now
        self.schedule_turn()

    def crash(self) -> None:
        """End the process; the disk keeps what was written."""
        if self.process is not None:
            self.world.trace(f"{self!r} crashes")
            self._end()
            self.disk.crash()

    def stop(self) -> None:
        """End the process in good order: everybody who waits is answered."""
        process = self.process
        if process is None:
            return
        self.world.trace(f"{self!r} stops")
        try:
            process.replica.stop("told to stop")
        except SimCrash:
            self.burnt_out()
            return
        self._end()
        self.disk.crash()

    def lose_power(self) -> None:
        """End the process; the disk keeps what was synced."""
        self.world.trace(f"{self!r} loses power")
        self._end()
        self.disk.lose_power(self.rng)

    def burnt_out(self) -> None:
        """The disk's fuse ended the process in the middle of something; what it was planned for comes now."""
        self.world.trace(f"{self!r} ends in the middle of a turn")
        self._end()
        self.disk.crash()
        self.world.burnt_out(self)

    def condemned(self, why: Exception) -> None:
        """The process has found its own state damaged, and ends; the next one comes soon."""
        self.world.trace(f"{self!r} ends: {why}")
        self._end()
        self.disk.crash()
        self.world.rebuilds += 1
        self.world.after(self.rng.uniform(0.05, 0.5), self.start)

    def refused_by_disk(self, why: NoSpace | ReadRefused) -> None:
        """Its disk is full, or a read of it failed, and the process ends, or does not serve; it tries again and
        again."""
        self.world.trace(f"{self!r} ends: {why}")
        self._end()
        self.disk.crash()
        self.world.after(self.rng.uniform(0.1, 0.6), self.start)

    def is_whole(self) -> bool:
        """Whether nothing is wrong with its state, so that others could be rebuilt from it."""
        state = self.disk.current(FOLDER)
        process = self.process
        return not self.ruined and self.disk.is_whole(state) and (process is None or not process.folder.state.lost)

    def _end(self) -> None:
        if self.process is not None:
            self.world.observer.ended(self, self.process)
            for lost in self.process.hanging.values():
                lost()
        self.process = None
        self.paused = self.hanging = False
        self._turn_number += 1
        self._turn_at = None

    @property
    def is_well(self) -> bool:
        """Whether a process is there, and does its turns."""
        return self.process is not None and not self.paused and not self.hanging

    def pause(self) -> None:
        self.paused = True
        self.world.trace(f"{self!r} is paused")

    def hang(self) -> None:
        self.hanging = True
        self.world.trace(f"the loop of {self!r} hangs")

    def resume(self) -> None:
        self.paused = self.hanging = False
        self.world.trace(f"{self!r} goes on")
        if self.process is not None:
            self.schedule_turn()

    # --- what arrives ------------------------------------------------------------------------------------------------

    def receive(self, messages: Sequence[Message]) -> None:
        """Messages from a peer have arrived."""
        process = self.process
        if process is None or len(process.frames) >= INBOX_FRAMES:
            return
        process.frames.append(messages)
        self.schedule_turn()

    def put(self, event: InboxEvent) -> None:
        """Bring an event to the loop, if the process lives."""
        if self.process is not None:
            self.process.events.append(event)
            self.schedule_turn()

    # --- turns -------------------------------------------------------------------------------------------------------

    def schedule_turn(self, at: float | None = None) -> None:
        """Have a turn as soon as the loop is free, or not before ``at``."""
        if self.paused or self.hanging or self.process is None:
            return
        when = max(self.world.now, self._busy_until, at if at is not None else 0.0)
        if self._turn_at is not None and self._turn_at <= when:
            return
        self._turn_at = when
        self._turn_number += 1
        self.world.at(when, self._turn, self._turn_number)

    def clock_changed(self) -> None:
        """What was planned by the old clock is planned again."""
        self._turn_number += 1
        self._turn_at = None
        self.schedule_turn()

    def _turn(self, number: int) -> None:
        process = self.process
        if number != self._turn_number or process is None:
            return
        self._turn_at = None
        if self.paused or self.hanging:
            return
        world = self.world
        messages: list[Message] = []
        while process.frames and len(messages) < TURN_EVENTS:
            messages += process.frames.popleft()
        events: list[InboxEvent] = []
        while process.events and len(events) < TURN_EVENTS:
            events.append(process.events.popleft())
        syncs = self.disk.syncs
        world.observer.current = self
        self.disk.read_by_member = True
        try:
            process.replica.turn(messages, events)
        except SimCrash:
            self.burnt_out()
            return
        except StateDamaged as damage:
            self.condemned(damage)
            return
        except (NoSpace, ReadRefused) as refused:
            self.refused_by_disk(refused)
            return
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"a turn of {self!r} ended with {error!r}\n{traceback.format_exc()}") from error
        finally:
            self.disk.read_by_member = False
            world.observer.current = None
        world.turns += 1
        world.observer.turned(self, process, messages)
        if self.process is not process:
            return
        busy = 0.0003 + (self.disk.syncs - syncs) * (0.0005 * (0.5 + self.rng.random()) + self.slow_disk)
        self._busy_until = world.now + busy
        if process.frames or process.events:
            self.schedule_turn()
        else:
            wakeup = process.when(process.replica.next_wakeup())
            if wakeup is not None:
                self.schedule_turn(max(wakeup, world.now))
