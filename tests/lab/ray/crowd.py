"""A crowd of processes that use a cluster: Ray actors, which a test can kill, stop and let go on.

They are made once for all tests of a session, because starting them takes longer than most tests; one that was killed
is replaced when it is asked for again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

import raykeeper
from lab.patience import PATIENCE
from lab.ray.tools import is_alive, wait_until
from raykeeper import Client

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # processes of the crowd know nothing of the tests


class _Person:
    """One process; what it is told to do runs on a thread of its own."""

    def pid(self) -> int:
        return os.getpid()

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)


_Actor: Any = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=100)(_Person)


class Person:
    """A process of the crowd."""

    def __init__(self) -> None:
        self.actor = _Actor.remote()
        self._pid: Any = self.actor.pid.remote()
        self.stopped = False
        self.killed = False

    @property
    def pid(self) -> int:
        if not isinstance(self._pid, int):
            self._pid = ray.get(self._pid, timeout=60)
        return int(self._pid)

    def start(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Have it do something; the reference of the result."""
        return self.actor.run.remote(work, *arguments)

    def run(self, work: Callable[..., Any], *arguments: Any, seconds: float = 60) -> Any:
        return ray.get(self.start(work, *arguments), timeout=seconds)

    @property
    def alive(self) -> bool:
        return not self.killed and is_alive(self.pid)

    def kill(self) -> None:
        self.killed = True  # its number may be another process's soon
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(self.pid), what=f"process {self.pid} dead")

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.stopped = True

    def go_on(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        self.stopped = False


class Crowd:
    """The processes of one session."""

    def __init__(self) -> None:
        self._people: list[Person] = []

    def take(self, count: int) -> list[Person]:
        """This many living processes."""
        living = []
        for person in self._people:
            if person.stopped:
                person.go_on()
            if person.alive:
                living.append(person)
        living += [Person() for _ in range(count - len(living))]
        self._people = living
        chosen = living[:count]
        ray.get([person.actor.pid.remote() for person in chosen], timeout=120)
        return chosen

    def end(self) -> None:
        for person in self._people:
            person.go_on()
            ray.kill(person.actor)


@contextlib.contextmanager
def gathered() -> Iterator[Crowd]:
    crowd = Crowd()
    try:
        yield crowd
    finally:
        crowd.end()


def pid_of(who: str) -> int:
    """The process that a contender says it is."""
    return int(who.rpartition(":")[2])


def by_pid(people: list[Person], pid: int) -> Person:
    return next(person for person in people if person.pid == pid)


def results(references: list[Any], seconds: float) -> list[Any]:
    """What became of each: its result, or the error if its process died."""
    _, late = ray.wait(references, num_returns=len(references), timeout=seconds)
    assert not late, f"{len(late)} of {len(references)} have not finished within {seconds} s"
    outcomes = []
    for reference in references:
        try:
            outcomes.append(ray.get(reference))
        except ray.exceptions.RayActorError as error:
            outcomes.append(error)
    return outcomes


def sleep(seconds: float) -> None:
    """Take time, as work does."""
    threading.Event().wait(seconds)


def now() -> float:
    """Seconds on a clock that all processes of this machine share."""
    return time.monotonic()


def kill_leader(cluster: Any) -> None:
    """SIGKILL the leader's process; Ray restarts it."""
    from lab.ray.tools import kill, leader

    kill(leader(cluster).pid)


def connect(name: str) -> Client:
    """The process's handle to a cluster."""
    return raykeeper.connect(name, timeout=PATIENCE)
