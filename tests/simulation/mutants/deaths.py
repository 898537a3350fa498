"""Wrong versions of leases that end with their process."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from raykeeper.actors.client.core.in_flight import LeaseQuestion
from raykeeper.actors.client.view import Call
from raykeeper.actors.member.lessor import Lessor
from raykeeper.actors.transport.process_monitors import ProcessMonitors
from raykeeper.errors import LeaseNotFound
from raykeeper.store.state.lease_table import LeaseTable
from simulation import scripts
from simulation.mutants.registry import mutant, patched


@mutant("the end of a lane taken for a death", "deaths")
def _hint_believed() -> AbstractContextManager[None]:
    original = ProcessMonitors.lane_ended

    def lane_ended(monitors: ProcessMonitors, lane: object, now: float) -> tuple[int, ...]:
        known = monitors._by_lane.get(lane)
        original(monitors, lane, now)
        return tuple(sorted(known.sessions)) if known is not None else ()

    return patched(ProcessMonitors, "lane_ended", lane_ended)


@mutant("a process known by its id", "deaths")
def _id_believed() -> AbstractContextManager[None]:
    """A process that has the id of one that has died is taken for dead as well."""
    by_id: dict[tuple[ProcessMonitors, int], set[int]] = {}
    ids: dict[tuple[ProcessMonitors, int], int] = {}
    monitor_before, ended_before = ProcessMonitors.monitor, ProcessMonitors.process_ended

    def monitor(monitors: ProcessMonitors, lane: object, pid: int, session: int) -> int:
        fd = monitor_before(monitors, lane, pid, session)
        ids[monitors, fd] = pid
        by_id.setdefault((monitors, pid), set()).add(session)
        return fd

    def process_ended(monitors: ProcessMonitors, fd: int) -> tuple[int, ...]:
        if not ended_before(monitors, fd):
            return ()
        return tuple(sorted(by_id.pop((monitors, ids[monitors, fd]), ())))

    stack = ExitStack()
    stack.enter_context(patched(ProcessMonitors, "monitor", monitor))
    stack.enter_context(patched(ProcessMonitors, "process_ended", process_ended))
    return stack


@mutant("a keep-alive of another process beside the log", "deaths")
def _used_beside_the_log() -> AbstractContextManager[None]:
    """The death overtakes it."""
    return patched(Lessor, "_must_be_logged", lambda lessor, lease, session: lessor._runs_out(lease))


@mutant("a renewal by another process leaves the lease to its owner", "deaths")
def _renewal_overtaken() -> AbstractContextManager[None]:
    original = LeaseTable.renew

    def renew(table: LeaseTable, id: int, index: int, by: int = 0) -> bool:
        lease = table.by_id.get(id)
        return original(table, id, index, by if lease is None else lease.owner)

    return patched(LeaseTable, "renew", renew)


@mutant("a key of another process leaves the lease to its owner", "deaths")
def _key_overlooked() -> AbstractContextManager[None]:
    return patched(LeaseTable, "use", lambda table, id, by: None)


@mutant("adopting by what is left, without a keep-alive", "deaths")
def _adopted_unkept() -> AbstractContextManager[None]:
    def adopt_steps(id: int, deadline: float) -> Generator[Any, Any, tuple[int, float, float, bool]]:
        asked_at = scripts.now()
        answer = yield Call(LeaseQuestion((id,)))
        if not answer.leases:
            raise LeaseNotFound("it is gone")
        left = min(answer.leases[0].remaining, answer.leases[0].ttl * 2 / 3)
        return id, answer.leases[0].ttl, asked_at - (answer.leases[0].ttl - left), False

    return patched(scripts, "adopt_steps", adopt_steps)
