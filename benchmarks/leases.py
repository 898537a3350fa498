"""Many leases: what it costs to keep them alive and not use them, and how late they end when nobody keeps them.

One client process holds them, each with a key. RayKeeper's handle keeps its leases alive by itself: keep-alives of a
process travel together, every third of the TTL, and a quorum confirms the leader once for all of them. aetcd has no
such thing, so etcd is measured only with leases that end. How late a key goes is counted from when the grant was sent,
and the TTL, to the event in the client: an early end would be a negative time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

from accounting import come_to_rest
from crew import Crew
from crowds import Usage, each_of
from faces import Face
from measures import Plan, Row, distribution
from systems import Etcd, RayKeeper, System, running

AT_ONCE = 256
"""Grants in flight."""
KEPT_TTL_S = 30.0
FEW = 10_000
FEW_TTL_S, MANY_TTL_S = 10, 60
"""TTL of leases that end, with up to ``FEW`` of them and with more. Where to grant them takes longer, the first end
meanwhile: each is counted from its own grant."""
PATIENCE_S = 120.0
"""For the last key to go."""
NOTES = (
    f"Kept: TTL of {KEPT_TTL_S:g} s, each lease with a key, by one process. Ended: nobody keeps them; p50 and p99 are "
    "how late each key goes. `a second` is grants with their keys."
)


class Held:
    """The leases of one client process."""

    def __init__(self) -> None:
        self.leases: list[Any] = []


_held: dict[Face, Held] = {}


def key(number: int) -> str:
    """Of the lease with this number."""
    return f"leased/{number}"


async def grant(face: Face, first: int, count: int, ttl: float) -> float:
    """In a client process: make leases that are kept alive, each with a key; the seconds that this took."""
    held = _held.setdefault(face, Held())

    async def one(number: int) -> None:
        held.leases.append(await face.lease(key(number), ttl, True))

    began = time.monotonic()
    await each_of(range(first, first + count), one, AT_ONCE)
    return time.monotonic() - began


async def lost(face: Face) -> int:
    """In a client process: how many of its leases are lost."""
    return sum(lease.lost.is_set() for lease in _held[face].leases)


async def endings(face: Face, count: int, ttl: int, patience: float) -> tuple[float, list[float]]:
    """In a client process: make leases that nobody keeps; the seconds that this took, and how late each key went."""
    sent: dict[str, float] = {}
    late: list[float] = []
    watch = face.watch_deletes("leased/")
    await watch.__anext__()

    async def follow() -> None:
        async for name in watch:
            late.append(time.monotonic() - sent[name] - ttl)
            if len(late) == count:
                return

    async def one(number: int) -> None:
        sent[key(number)] = time.monotonic()
        await face.lease(key(number), ttl, False)

    following = asyncio.ensure_future(follow())
    began = time.monotonic()
    await each_of(range(count), one, AT_ONCE)
    took = time.monotonic() - began
    await asyncio.wait([following], timeout=ttl + patience)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await watch.aclose()
    return took, late


def kept(
    system: RayKeeper, counts: tuple[int, ...], seconds: float, say: Callable[[str], None], ttl: float = KEPT_TTL_S
) -> Iterator[Row]:
    """One row for each number of leases, and one in which the leader changes with the last; none may be lost."""
    with Crew(system.kind, system.address(), 1) as crew:
        (client,) = crew.clients
        granted = 0
        for count in sorted(counts):
            say(f"{count:,} leases are kept")
            took = client.do("run", grant, (granted, count - granted, ttl), timeout=600)
            row = Row(system.name, "leases kept", "coroutines", 1, count, per_second=(count - granted) / took)
            granted = count
            come_to_rest(patience=5)
            usage = Usage(system)
            time.sleep(seconds)
            row = usage.into(row)
            gone = client.do("run", lost, ())
            row.note = f"{gone:,} lost" if gone else ""
            yield row
        say("the leader changes")
        usage = Usage(system)
        follower = next(member for member in system.cluster.members() if member.role == "follower")
        system.cluster.move_leader(follower.id)
        time.sleep(max(seconds, ttl))  # who was forgotten would end meanwhile
        row = usage.into(Row(system.name, "leases kept, the leader changes", "coroutines", 1, granted))
        gone = client.do("run", lost, ())
        alive = system.cluster.client().range(prefix="leased/", count_only=True).count
        row.note = "" if alive == granted and not gone else f"{gone:,} lost, {alive:,} keys are there"
        yield row


def ended(system: System, count: int, say: Callable[[str], None]) -> Row:
    """How late so many leases end that nobody keeps."""
    with Crew(system.kind, system.address(), 1) as crew:
        ttl = FEW_TTL_S if count <= FEW else MANY_TTL_S
        say(f"{count:,} leases end after {ttl} s")
        usage = Usage(system)
        took, late = crew.clients[0].do("run", endings, (count, ttl, PATIENCE_S), timeout=ttl + 6 * PATIENCE_S)
        row = usage.into(distribution(Row(system.name, "leases ended", "coroutines", 1, count), late))
        row.per_second = count / took
        told = [f"{count - len(late):,} keys had not gone"] if len(late) < count else []
        early = sum(each < 0 for each in late)
        row.note = "; ".join([*told, *([f"{early:,} ended early"] if early else [])])
        return row


def kept_by_raykeeper(folder: str, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
    """The leases of the plan, kept."""
    with running(RayKeeper(folder)) as system:
        yield from kept(system, plan.leases, plan.crowd_seconds, say)


def ended_by(kind: type[System]) -> Callable[[str, Plan, Callable[[str], None]], Iterator[Row]]:
    """The leases of the plan, ended."""

    def rows(folder: str, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
        with running(kind(folder)) as system:
            for count in plan.leases:
                yield ended(system, count, say)

    return rows


ended_by_raykeeper, ended_by_etcd = ended_by(RayKeeper), ended_by(Etcd)
