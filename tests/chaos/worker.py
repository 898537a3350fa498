"""The processes of a campaign: each runs several threads of work (``work.py``)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray

from .etcd_client import EtcdClient
from .journal import Journal
from .leased import Leaser
from .lists import Lister
from .login import VARIABLE, connect
from .rights import Person, RightsGiver, RightsUser
from .watching import BatchWatcher, EtcdWatcher, FarReader, PrevWatcher, Watcher
from .work import ORDINARY, Adder, Consumer, EtcdRegisters, Locker, Producer, Registers, SessionWatcher, Thread

KINDS: tuple[tuple[type[Thread], int], ...] = (
    (Registers, 4),
    (Adder, 1),
    (Locker, 1),
    (Producer, 1),
    (Consumer, 1),
    (Watcher, 1),
)
"""Threads of each process."""
MORE: tuple[tuple[type[Thread], int], ...] = (
    (Lister, 2),
    (Leaser, 1),
    (FarReader, 1),
    (PrevWatcher, 1),
    (BatchWatcher, 1),
    (SessionWatcher, 1),
)
"""More of them, in mixes that are not short."""
WITH_USERS: tuple[tuple[type[Thread], int], ...] = ((RightsGiver, 1), (RightsUser, 2))
"""More of them, where the cluster needs users."""
THROUGH_PROXIES: tuple[tuple[type[Thread], int], ...] = ((EtcdRegisters, 2), (EtcdWatcher, 1))
"""More of them, if there are proxies."""


class Worker:
    """One process.

    Args:
        name: unique in the campaign.
        cluster: its name.
        folder: of the journals.
        seed: of the campaign.
        began: of the campaign, on the monotonic clock.
        proxies: their endpoints.
        more: whether it does all that there is to do.
    """

    def __init__(
        self,
        name: str,
        cluster: str,
        folder: str,
        seed: int,
        began: float,
        proxies: Sequence[str] = (),
        more: bool = False,
    ) -> None:
        self.name = name
        self.seed = seed
        self.began = began
        self.stopping = threading.Event()
        self.abandoned = threading.Event()
        self.newest = 0
        """The newest revision that a thread was told of; a bound from below."""
        self.journal = Journal(os.path.join(folder, f"{name}.jsonl"))
        self.cluster = cluster
        self.kv = connect(cluster, timeout=20)
        self.person: Person | None = None
        """The user whose rights come and go."""
        self.etcd = EtcdClient(proxies, int(name[1:])) if proxies else None
        chosen = (
            KINDS
            + (THROUGH_PROXIES if proxies else ())
            + (MORE if more else ())
            + (WITH_USERS if VARIABLE in os.environ else ())
        )
        kinds = [kind for kind, many in chosen for _ in range(many)]
        self._threads = [
            threading.Thread(target=kind(self, f"{name}.{n}").run, name=f"{kind.__name__} {n}", daemon=True)
            for n, kind in enumerate(kinds)
        ]
        for thread in self._threads:
            thread.start()

    def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    def finish(self, patience: float) -> list[str]:
        """Begin nothing more, and wait until all that is under way has ended; the threads that hang."""
        self.stopping.set()
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - 10 - time.monotonic()))
        self.abandoned.set()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [f"{self.name} {thread.name}" for thread in self._threads if thread.is_alive()]


_remote: Any = ray.remote
HEAD = {"node:__internal_head__": 0.001}
"""Where what works for a campaign lives: on the node that is never lost."""
WorkerActor: Any = _remote(num_cpus=0, max_restarts=0, max_concurrency=4, resources=HEAD)(Worker)


def flood(cluster: str, seconds: float, value_bytes: int) -> tuple[int, int]:
    """Far more work than the cluster can do, for a while: how many writes were done, and how many refused."""
    kv = connect(cluster, timeout=5)
    done, refused = [0], [0]
    until = time.monotonic() + seconds

    def run(n: int) -> None:
        while time.monotonic() < until:
            try:
                kv.put(f"flood/{n}", b"x" * value_bytes)
                done[0] += 1
            except ORDINARY:
                refused[0] += 1

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 10)
    kv.close()
    return done[0], refused[0]
