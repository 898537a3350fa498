"""The death of a holder: from SIGKILL of the process that holds a lock to the next process that holds it.

The holder is killed at a random moment between two of its keep-alives, while another process waits for the lock. etcd
and ZooKeeper have the least TTL that they grant with their defaults: etcd 1.5 election timeouts, as whole seconds, and
ZooKeeper two ticks. RayKeeper's TTL is what its ``lock`` has if nothing is said, since it does not matter here.

kazoo keeps its session alive by itself. aetcd's lock is refreshed every third of its TTL, by this program.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator

from crew import Crew
from faces import Address, Face
from measures import Plan, Row, distribution
from systems import Etcd, RayKeeper, System, ZooKeeper, running

RAYKEEPER_TTL_S, ETCD_TTL_S, ZOOKEEPER_TTL_S = 10.0, 2.0, 4.0
LOCK = "bench-orphaned"
WAITING_S = 1.0
"""For the other process to be in line."""
PATIENCE_S = 60.0
NOTES = (
    f"TTLs: RayKeeper {RAYKEEPER_TTL_S:g} s, etcd {ETCD_TTL_S:g} s and ZooKeeper {ZOOKEEPER_TTL_S:g} s, the least that "
    "they grant with their defaults. All processes are on one machine, so that a member is on the holder's node."
)

_keeping: set[asyncio.Task[None]] = set()


async def hold(face: Face, ttl: float) -> None:
    """In a client process: acquire the lock, and keep it."""
    lock = face.lock(LOCK, ttl)
    await lock.acquire()
    refresh = getattr(lock, "refresh", None)

    async def keep() -> None:
        while refresh is not None:
            await asyncio.sleep(ttl / 3)
            await refresh()

    _keeping.add(asyncio.ensure_future(keep()))


async def take(face: Face, ttl: float) -> float:
    """In a client process: wait for the lock; the moment at which it was acquired."""
    lock = face.lock(LOCK, ttl)
    await lock.acquire()
    got = time.monotonic()
    await lock.release()
    return got


def killed(system: System, ttl: float, address: Address, times: int, say: Callable[[str], None]) -> Row:
    """How long the lock of a killed holder stays taken."""
    gaps: list[float] = []
    for number in range(times):
        say(f"holder {number + 1} of {times} is killed")
        with Crew(system.kind, address, 2) as crew:
            holder, other = crew.clients
            holder.do("run", hold, (ttl,), timeout=PATIENCE_S)
            other.ask("run", take, (ttl,))
            time.sleep(WAITING_S + random.uniform(0, ttl / 3))
            moment = time.monotonic()
            os.kill(holder.pid, signal.SIGKILL)
            gaps.append(other.answer(PATIENCE_S) - moment)
    row = distribution(Row(system.name, "holder killed to next holder", "coroutines", 2), gaps)
    early = sum(gap < 0 for gap in gaps)
    row.note = f"TTL {ttl:g} s" + (f"; {early} were held by two at once" if early else "")
    row.failed = early
    return row


def killed_at(
    kind: type[System], ttl: float, **address: float
) -> Callable[[str, Plan, Callable[[str], None]], Iterator[Row]]:
    """The holders of the plan, killed."""

    def rows(folder: str, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
        with running(kind(folder)) as system:
            yield killed(system, ttl, {**system.address(), **address}, plan.deaths, say)

    return rows


at_raykeeper = killed_at(RayKeeper, RAYKEEPER_TTL_S)
at_etcd = killed_at(Etcd, ETCD_TTL_S)
at_zookeeper = killed_at(ZooKeeper, ZOOKEEPER_TTL_S, session=ZOOKEEPER_TTL_S)
