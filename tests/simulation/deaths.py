"""The kernel of the machines on which clients run, and the members that notice when a client's process dies.

The members' part is the product's (``ProcessMonitors``), over an imagined kernel that gives the ids of processes again
soon. Their reports to the leader go over the imagined network, late, and again and again. Lanes end for no reason, too,
and processes are paused: what only looks like a death must end nothing. Whatever ends because of a death is judged in
``coordination.Book``: the process must have been dead by then, and nobody else may have relied on the lease.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from raykeeper.schema.answers import Done
from raykeeper.schema.commands import EndDeadSessions
from raykeeper.schema.frames import AsUser, Reply, Written
from raykeeper.schema.operator_frames import Administer

if TYPE_CHECKING:
    from simulation.client import Client
    from simulation.member import Process
    from simulation.world import World

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode
REPORTED_FOR = 10.0
"""Seconds for which a member tries to report a death."""


class Lane:
    """A lane from one life of a client to one life of a member."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.source = f"process {pid}"


class _Life:
    """One process of a client."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.dead = False
        self.lanes: dict[Process, Lane] = {}


class Deaths:
    """Of one world; does nothing unless its profile says so (``deaths``)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.random("deaths")
        self.wanted = world.profile.deaths
        self._lives: dict[int, _Life] = {}
        """By id of a process: those that live."""
        self._opened: dict[int, tuple[_Life, Process]] = {}
        """By descriptor."""
        self._next_fd = 3
        self._opener: Process | None = None

    # --- the kernel --------------------------------------------------------------------------------------------------

    def born(self, client: Client) -> None:
        """A process begins: its id is one of a few."""
        if not self.wanted:
            return
        free = [pid for pid in range(1, self.world.profile.clients + 2) if pid not in self._lives]
        pid = self.rng.choice(free)
        client.process = self._lives[pid] = _Life(pid)
        client.router.near = {self.rng.choice(self.world.founders) for _ in range(2)}
        self.world.after(self.rng.uniform(0.2, 2.0), self._hang_up, client.process)

    def died(self, client: Client) -> None:
        """A process has ended. Its lanes end, and those who wait for its death are told, some time later; in which
        order is up to chance."""
        if not self.wanted:
            return
        life: _Life = client.process
        life.dead = True
        del self._lives[life.pid]
        for fd, (opened, process) in self._opened.items():
            if opened is life:
                self.world.after(self.rng.uniform(0.0, 0.3), self._readable, process, fd)
        self._hang_up(life)

    def open(self, pid: int) -> int:
        """A descriptor of the process that has this id now."""
        life = self._lives.get(pid)
        if life is None:
            raise ProcessLookupError(pid)
        self._next_fd += 1
        assert self._opener is not None
        self._opened[self._next_fd] = life, self._opener
        return self._next_fd

    def close(self, fd: int) -> None:
        self._opened.pop(fd, None)

    # --- the members -------------------------------------------------------------------------------------------------

    def lane(self, client: Client, process: Process) -> Lane | None:
        """The lane from a client's process to a member's; ``None`` while there is none."""
        life: _Life | None = client.process
        if life is None or life.dead or self.rng.random() < 0.3:
            return None
        return life.lanes.setdefault(process, Lane(life.pid))

    def monitor(self, process: Process, lane: Lane, session: int) -> bool:
        """A client has asked a member to be monitored."""
        self._opener = process
        process.monitors.expire(self.world.now)
        try:
            process.monitors.monitor(lane, lane.pid, session)
        except ProcessLookupError:
            self._report(process, (session,))
            return False
        return True

    def _hang_up(self, life: _Life) -> None:
        """The lanes of a process end, whether it lives or not."""
        lanes, life.lanes = life.lanes, {}
        for process, lane in lanes.items():
            self.world.after(self.rng.uniform(0.0, 0.3), self._lane_ended, process, lane)
        if not life.dead:
            self.world.after(self.rng.uniform(0.2, 2.0), self._hang_up, life)

    def _lane_ended(self, process: Process, lane: Lane) -> None:
        if process.alive:
            self._report(process, process.monitors.lane_ended(lane, self.world.now) or ())  # type: ignore[func-returns-value]

    def _readable(self, process: Process, fd: int) -> None:
        if not process.alive:
            return
        if process.member.paused:
            self.world.after(0.05, self._readable, process, fd)
        elif fd in self._opened:
            self._report(process, process.monitors.process_ended(fd))

    def _report(self, process: Process, sessions: Sequence[int]) -> None:
        """As ``DeathReports``: ask the leader, until it has done it."""
        world, until = self.world, self.world.now + REPORTED_FOR
        done = [not sessions]
        request = Administer(world.cluster, 2.0, EndDeadSessions(tuple(sessions)))

        def ask() -> None:
            if done[0] or not process.alive or world.now > until:
                return
            leader = process.replica.leader
            if leader in world.members and not process.member.paused:
                world.network.carry(process.member.id, leader, arrive, leader)
            world.after(self.rng.uniform(0.05, 0.4), ask)

        def arrive(leader: int) -> None:
            asked = world.members[leader].process
            if asked is None or asked.member.paused:
                return
            token = asked.handler.own_token()
            frame = _encode(AsUser(token, request) if token else request)
            asked.handler.handle_request(frame, answered)

        def answered(make: Callable[[], bytes]) -> None:
            reply = _decode(make())
            done[0] |= isinstance(reply, Written) and isinstance(reply.answers[0], Done)

        ask()
