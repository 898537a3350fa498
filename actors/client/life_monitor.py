"""Ends the leases of this process that are bound to an actor, a job or a driver, when that is dead for good.

The process that keeps a lease alive looks after this by itself: it alone counts on the lease, so nobody else is
deceived if it lets go. Of two things it needs to know one by Ray, and one by the kernel:

- **Ray says that it is dead for good.** That is a hint about the process: Ray may be wrong, or early. So it ends
  nothing for anybody else: the lease counts as lost here, at once, and is kept alive no longer. It ends by its TTL.
- **The kernel says that the process is dead**, if it is one of this node. A descriptor of it is opened while Ray says
  that it runs, and becomes readable at its end (``transport/process_monitors.py``). Together with Ray's word this is
  certain, and the lease is revoked at once.

The kernel's word alone ends nothing either; Ray is asked at once then. An actor may be restarted, and only the death of
its latest process counts, which Ray numbers. And a process in a container may have a number that is another's here.

One thread of the process does this, while there are such leases. What Ray does not answer is not known, and ends
nothing. It holds leases weakly: one that is forgotten is kept alive no longer anyway.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import select
import time
import weakref
from typing import TYPE_CHECKING

from ...errors import KeeperError, LeaseLost
from ...limits import LIFE_ANSWER_S, LIFE_CHECK_S, LIFE_LOOK_S, MAX_LIVES
from ..background import LazyThread, background
from ..deadline import covering
from ..one_thread import NoThreadLeft
from .core.in_flight import request_size
from .view import revoke_command

if TYPE_CHECKING:
    from ..ray_calls import OneAtATime
    from ..ray_lives import Life, LifeStatus, RayProcess
    from .hub import Hub
    from .leases import _Lease


_log = logging.getLogger("raykeeper.client")


class _GivenUp:
    """A lease that this process has given up, and that may be revoked until its TTL has ended it."""

    def __init__(self, lease: _Lease) -> None:
        self.hub: Hub = lease._hub
        self.id = lease.id
        self.ttl = lease.ttl
        self.until = time.monotonic() + lease.ttl

    def revoke(self) -> None:
        """End it at once; the hub tries for as long as it could live."""
        command = revoke_command(self.id)
        self.hub.submit_soon(command, request_size(command, self.hub.limits), self.ttl)


class _Watched:
    """One life, and the leases that end with it."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.leases: weakref.WeakSet[_Lease] = weakref.WeakSet()
        self.endings: list[_GivenUp] = []
        self.process: RayProcess | None = None
        """The process that was opened last, or could not be."""
        self.fd = -1
        """Its descriptor; -1 if there is none."""
        self.died_at = math.inf
        """When the kernel said that this process is dead."""
        self.over: LifeStatus | None = None
        """What Ray said when it said that the life is over."""
        self.look_at = 0.0
        self.failed = False
        """Whether a look failed for a reason that is not Ray's."""

    def idle(self, now: float) -> bool:
        """Whether nothing is left to do."""
        self.endings = [each for each in self.endings if each.until > now]
        return not self.leases and not self.endings

    def ask(self, now: float, calls: OneAtATime) -> None:
        """Ask Ray, if that is due. Raises whatever Ray does when it does not answer."""
        from ..ray_lives import look_at, this_node

        if self.over is not None or now < self.look_at:
            return
        self.look_at = now + LIFE_LOOK_S
        with covering(LIFE_ANSWER_S):
            status = calls.in_time(look_at, self.life)
        if status is not None and status.alive and status.process != self.process:
            self._open(status.process, this_node())
        if status is not None and status.over:
            self.over = status

    def check(self, now: float) -> None:
        """Ask the kernel, and draw the consequences."""
        if self.fd >= 0 and not self.dead and _is_readable(self.fd):
            self.died_at = now
        if self.dead and now < self.died_at + LIFE_ANSWER_S:
            self.look_at = min(self.look_at, now)  # Ray will say soon whether it is for good
        if self.over is not None:
            self._end_leases()

    @property
    def dead(self) -> bool:
        """Whether the process is dead, by the kernel's word."""
        return self.died_at < math.inf

    @property
    def certain(self) -> bool:
        """Whether the life is over by both words: its latest process is the one that is dead."""
        return self.dead and self.over is not None and self.over.process == self.process

    def _open(self, process: RayProcess, node: str) -> None:
        """Open a descriptor of the life's present process.

        Its id may have been given to another process by now: then it is dead, and the death of the other comes later.
        It is not opened if it is none of Ray's workers here: an actor in a container counts its processes by itself.
        """
        from ..transport.process_monitors import open_process  # few processes need it

        self.close()
        self.process, self.died_at = process, math.inf
        if process.node == node and (self.life.kind != "actor" or _is_worker(process.pid)):
            with contextlib.suppress(OSError):
                self.fd = open_process(process.pid)

    def _end_leases(self) -> None:
        for lease in list(self.leases):
            self.leases.discard(lease)
            if not lease.lost.is_set():
                self.endings.append(_GivenUp(lease))
            with contextlib.suppress(KeeperError):
                lease._life_ended(LeaseLost(f"{self.life} is dead"))
        if self.certain:
            for ending in self.endings:
                with contextlib.suppress(KeeperError):
                    ending.revoke()
            self.endings = []

    def close(self) -> None:
        """Close the descriptor."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))  # not POLLNVAL, of one that is closed


def _is_worker(pid: int) -> bool:
    """Whether the process of this id is a worker of Ray's, which names itself so."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(5) == b"ray::"
    return False


class LifeMonitor:
    """The thread, and the lives that it looks at."""

    def __init__(self) -> None:
        self._new: queue.SimpleQueue[tuple[Life, weakref.ref[_Lease]]] = queue.SimpleQueue()
        self._thread = LazyThread(self._run, "raykeeper-lives")
        self._watched: dict[Life, _Watched] = {}
        self._calls: OneAtATime | None = None

    def full(self, life: Life) -> bool:
        """Whether no other life can be looked at."""
        return len(self._watched) >= MAX_LIVES and life not in self._watched

    def start(self) -> None:
        """Start the thread, before there is a lease that nobody would look after.

        Raises:
            NoThreadLeft: there is none to be had.
        """
        self._thread.ensure_started()

    def end_with(self, life: Life, lease: _Lease) -> None:
        """End the lease when the life is over. If the thread does not run any more (:meth:`start`), and no other is to
        be had, the lease counts as lost at once: nobody would look."""
        self._new.put((life, weakref.ref(lease)))
        try:
            self._thread.ensure_started()
        except NoThreadLeft as error:
            lease._end(LeaseLost(f"nothing looks after {life}: {error}"))

    def _run(self) -> None:
        while True:
            with contextlib.suppress(queue.Empty):
                life, reference = self._new.get(timeout=LIFE_CHECK_S if self._watched else None)
                lease = reference()
                if lease is not None:
                    self._watched.setdefault(life, _Watched(life)).leases.add(lease)
                del lease
                if not self._new.empty():
                    continue
            self._look(time.monotonic())

    def _look(self, now: float) -> None:
        """Look at all lives. If Ray does not answer for one, it is not asked for the others: what is not known ends
        nothing, and the kernel answers at any time."""
        answers = True
        for watched in list(self._watched.values()):
            try:
                answers = self._look_at(watched, now, answers)
            except Exception as error:  # the thread goes on: with the others, and with this one at the next look
                if not watched.failed:
                    watched.failed = True
                    background.log(_log, logging.ERROR, "%s could not be looked at", watched.life, error=error)

    def _look_at(self, watched: _Watched, now: float, ask: bool) -> bool:
        """Look at one life; whether Ray answers, as far as is known."""
        if watched.idle(now):
            watched.close()
            del self._watched[watched.life]
            return ask
        try:
            if ask:
                watched.ask(now, self._ray_calls())
        except Exception:  # it may be anything: this process may have left Ray
            ask = False
        watched.check(now)
        return ask

    def _ray_calls(self) -> OneAtATime:
        if self._calls is None:
            from ..ray_calls import OneAtATime  # few processes need it

            self._calls = OneAtATime()
        return self._calls

    def forget_in_child(self) -> None:
        """In a forked child: close the descriptors that it has inherited, and start again with none."""
        for watched in list(self._watched.values()):
            watched.close()
        self.__init__()  # type: ignore[misc]


life_monitor = LifeMonitor()


def _in_child() -> None:
    life_monitor.forget_in_child()


os.register_at_fork(after_in_child=_in_child)
