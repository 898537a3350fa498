"""What is measured of a system, as rows: each one number or one distribution, with what it cost."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from accounting import come_to_rest, count_syncs, cpu_seconds, descendants, resident
from crew import ClientProcess, Crew
from loads import PATIENCE, Samples
from systems import System

GAP = 0.15
"""Seconds that clients are given to get ready for a common start."""


@dataclass
class Row:
    """One measurement. Times are in seconds; ``None`` where a number means nothing."""

    system: str
    measure: str
    face: str = ""
    processes: int = 1
    in_flight: int = 1
    round: int = 0
    count: int = 0
    p50: float | None = None
    p99: float | None = None
    per_second: float | None = None
    cpu_per_op: float | None = None
    """CPU seconds of all processes of the system and of its clients, by operation."""
    member_cores: float | None = None
    """Cores in use by the members meanwhile..."""
    busiest_cores: float | None = None
    """... by the busiest of them, which is a process whose code runs on one core at a time..."""
    client_cores: float | None = None
    """... and by all else that belongs to them: clients, proxies, Ray's daemons."""
    bytes: int | None = None
    disk: int | None = None
    """Bytes of the largest member's state on its disk."""
    failed: int = 0
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        seconds: of each cell of the load.
        cells: (operations, faces, processes, in flight), each of which is multiplied out.
        only: measures to take; empty for all.
    """

    seconds: float
    cells: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[int, ...]], ...]
    events: int
    lock_seconds: float
    failovers: int
    deaths: int
    cached_gets: int
    syncs: int
    watches: int
    watched_puts: tuple[int, ...]
    """Puts a second while they watch."""
    leases: tuple[int, ...]
    sessions: int
    crowd_seconds: float
    """Of each measurement of the watches, leases and sessions."""
    only: tuple[str, ...] = ()

    def wants(self, measure: str) -> bool:
        """Whether a measure is to be taken."""
        return not self.only or measure in self.only

    @property
    def processes(self) -> int:
        """Client processes that are needed."""
        return max([2, *(n for cell in self.cells for n in cell[2])])


_ALL = ("put", "get", "stale get")
QUICK = Plan(
    seconds=0.8,
    cells=(
        (("put", "get"), ("coroutines",), (1,), (1, 100, 1000)),
        (("stale get", "mixed"), ("coroutines",), (1,), (100,)),
        (("txn",), ("coroutines",), (1,), (100, 1000)),
        (("put",), ("threads",), (1,), (1, 10)),
        (("put",), ("coroutines",), (4,), (1000,)),
    ),
    events=100,
    lock_seconds=0.8,
    failovers=1,
    deaths=3,
    cached_gets=20_000,
    syncs=30,
    watches=1000,
    watched_puts=(100,),
    leases=(1000,),
    sessions=40,
    crowd_seconds=3.0,
)
FULL = Plan(
    seconds=2.0,
    cells=(
        (_ALL, ("coroutines",), (1, 4), (1, 10, 100, 1000)),
        (("put", "get"), ("threads",), (1, 4), (1, 10, 100, 1000)),
        (("mixed", "txn"), ("coroutines",), (1,), (1, 10, 100, 1000)),
    ),
    events=500,
    lock_seconds=3.0,
    failovers=5,
    deaths=10,
    cached_gets=100_000,
    syncs=50,
    watches=10_000,
    watched_puts=(100, 1000),
    leases=(10_000, 100_000),
    sessions=2000,
    crowd_seconds=10.0,
)


def percentile(times: list[float], share: float) -> float | None:
    """The smallest time that at least this share of them do not exceed."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def distribution(row: Row, times: list[float]) -> Row:
    """A row with the percentiles of some times."""
    row.count = len(times)
    row.p50, row.p99 = percentile(times, 0.5), percentile(times, 0.99)
    return row


class Costs:
    """CPU seconds of a system and its clients while something runs: everything that this process has started.

    This process itself is left out: it waits.
    """

    def __init__(self) -> None:
        self._pids = descendants(os.getpid())
        self._before = cpu_seconds(self._pids)

    def spent(self) -> float:
        """Since the beginning."""
        return cpu_seconds(self._pids) - self._before


def measure(system: System, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
    """Take all measures of a system that runs."""
    with Crew(system.kind, system.address(), plan.processes) as crew:
        first, second = crew.clients[:2]
        first.do("prepare")
        ops = first.do("ops")
        come_to_rest()
        yield from _loads(system, plan, crew.clients, ops, say)
        if plan.wants("memory"):
            yield Row(
                system.name, "memory", bytes=max(resident(pid) for pid in system.pids()), count=len(system.pids())
            )
        if system.members > 1:
            if plan.wants("watch"):
                say("watch delivery")
                yield _watch(system, first, second, plan.events)
            if plan.wants("lock"):
                say("locks")
                yield _lock_cycle(system, first, plan.lock_seconds)
                yield _hand_over(system, first, second, plan.lock_seconds)
        if system.kind == "raykeeper" and plan.wants("cached"):
            times = first.do("cached_gets", plan.cached_gets)
            yield distribution(Row(system.name, "cached get", "threads"), times)
        if plan.wants("durability"):  # when speed is measured no more: to be traced is slow
            yield _durability(system, first, plan.syncs)
    if system.members > 1 and plan.wants("failover"):
        yield from _failovers(system, plan.failovers, say)


def _loads(
    system: System, plan: Plan, clients: list[ClientProcess], ops: list[str], say: Callable[[str], None]
) -> Iterator[Row]:
    for operations, faces, processes, in_flight in plan.cells:
        for op in operations:
            known = {"get": system.get, "stale get": system.stale_get, "mixed": "mixed"}.get(op, op)
            if op == "mixed" and "get" not in ops:
                known = "stale mixed"
            if not plan.wants(op) or (known not in ops and "mixed" not in known):
                continue
            for face in faces:
                for count in processes:
                    for together in in_flight:
                        if together >= count:
                            say(f"{known}, {together} in flight, {face}, {count} process{'es' * (count > 1)}")
                            row = Row(system.name, known, face, count, together)
                            yield load(row, clients[:count], plan.seconds)


def load(row: Row, clients: list[ClientProcess], seconds: float) -> Row:
    """A row with what some client processes bring who keep its number of calls in flight together."""
    costs = Costs()
    begin = time.monotonic() + GAP
    for number, client in enumerate(clients):
        share = row.in_flight // len(clients) + (number < row.in_flight % len(clients))
        client.ask("load", row.face, row.measure, share, begin, seconds)
    samples = [client.answer(PATIENCE * seconds + 90) for client in clients]
    return load_row(row, samples, costs.spent())


def load_row(row: Row, samples: list[Samples], spent: float) -> Row:
    """A row with what clients brought, and what that cost in CPU seconds."""
    row.failed = sum(each.failed for each in samples)
    row.note = next((each.problem for each in samples if each.problem), "")
    distribution(row, [time for each in samples for time in each.times])
    row.per_second = sum(len(each.times) / each.window for each in samples)
    done = sum(each.done for each in samples)
    row.cpu_per_op = spent / done if done else None
    return row


def _watch(system: System, writer: ClientProcess, watcher: ClientProcess, events: int) -> Row:
    costs = Costs()
    watcher.ask("watch_delivery", events)
    writer.ask("stamped_puts", events)
    writer.answer(120)
    row = distribution(Row(system.name, "put to watch event", "coroutines", processes=2), watcher.answer(30))
    row.cpu_per_op = costs.spent() / events
    return row


def _lock_cycle(system: System, client: ClientProcess, seconds: float) -> Row:
    costs = Costs()
    times = client.do("lock_cycles", seconds)
    row = distribution(Row(system.name, "lock and unlock", "coroutines"), times)
    row.cpu_per_op = costs.spent() / max(1, len(times) * 10 // 9)
    return row


def _hand_over(system: System, one: ClientProcess, other: ClientProcess, seconds: float) -> Row:
    costs = Costs()
    one.ask("lock_turns", seconds)
    other.ask("lock_turns", seconds)
    turns = sorted([(*turn, 1) for turn in one.answer(120)] + [(*turn, 2) for turn in other.answer(120)])
    gaps = [late[0] - early[1] for early, late in itertools.pairwise(turns) if early[2] != late[2]]
    row = distribution(Row(system.name, "lock handed over", "coroutines", processes=2), gaps)
    row.cpu_per_op = costs.spent() / max(1, len(turns))
    if any(gap < 0 for gap in gaps):
        row.note = "held by two at once"
    elif len(gaps) < len(turns) // 4:
        row.note = f"unfair: only {len(gaps)} of {len(turns)} turns went to the other"
    return row


def _failovers(system: System, times: int, say: Callable[[str], None]) -> Iterator[Row]:
    for number in range(times):
        say(f"failover {number + 1} of {times}")
        with Crew(system.kind, system.address(probing=True), 1) as crew:
            (client,) = crew.clients
            client.do("prepare")
            client.do("start_probe")
            if client.do("first_after", time.monotonic(), 30) is None:
                yield Row(system.name, "failover", failed=1, note="no put got through before the leader was killed")
                return
            killed = system.kill_leader()
            acknowledged = client.do("first_after", killed, 60)
            client.do("end_probe")
            row = Row(system.name, "failover", "coroutines")
            if acknowledged is None:
                row.failed, row.note = 1, "no put got through within 60 s"
            else:
                row.count, row.p50 = 1, acknowledged - killed
            yield row
        system.mend()


def _durability(system: System, client: ClientProcess, puts: int) -> Row:
    counts = count_syncs(system.pids(), lambda: client.do("serial", "put", puts))
    if isinstance(counts, str):
        return Row(system.name, "durability", count=puts, note=counts)
    # One by one: each put is synced by a quorum before the next begins, so no sync there counts for two of them.
    needed = puts * (system.members // 2 + 1)
    told = ", ".join(str(each) for each in counts)
    row = Row(system.name, "durability", count=puts, note=f"{told} syncs of the members during {puts} puts one by one")
    row.failed = int(sum(counts) < needed)
    return row
