"""What a campaign does to clocks beyond jumps that nobody believes: steps that are short enough to be believed, and
clocks that run fast or slow, of members and of clients."""

from __future__ import annotations

from typing import Any

from raykeeper.limits import LEASE_MARGIN_FRACTION, MAX_CLOCK_STEP_S, Settings

from .field import Fault, Field
from .nemesis import reads_clock

WITHIN = min(LEASE_MARGIN_FRACTION, Settings().clock_drift) / 3
"""By so much a clock may run fast or slow: two of them then differ by less than what is allowed for."""


def _who(field: Field) -> tuple[str, int, Any]:
    """A member or a client: its name, process and, if it is a member, actor."""
    if field.rng.random() < 0.5:
        name = field.rng.choice(sorted(field.workers))
        return f"client {name}", field.workers[name][1], field.workers[name][0]
    member = field.rng.choice([field.leader(), field.follower()])
    return member.name, member.pid, member.actor


def clock_step(field: Field) -> Fault:
    """A step that is believed. What rests on clocks, how long a lease lasts, is not promised then; all else is."""
    name, pid, actor = _who(field)
    before = reads_clock(actor)
    by = field.rng.choice((-1, 1)) * field.rng.uniform(0.1, MAX_CLOCK_STEP_S - 1)
    field.faults.step(pid, by)
    yield f"the clocks of {name} step by {by:+.1f} s"
    return abs(reads_clock(actor) - before) > abs(by) / 2


def drift_within(field: Field) -> Fault:
    """Clocks that run fast or slow, but not more than is promised: everything holds."""
    return (yield from _drift(field, field.rng.uniform(-WITHIN, WITHIN)))


def drift_beyond(field: Field) -> Fault:
    """Much more than is promised: what rests on clocks may break, nothing else."""
    return (yield from _drift(field, field.rng.choice((-0.9, -0.5, 0.5, 1.0, 4.0))))


def _drift(field: Field, rate: float) -> Fault:
    """It stays as it is when the fault is over, until the next one of that process."""
    name, pid, actor = _who(field)
    before = reads_clock(actor)
    field.faults.drift(pid, rate)
    yield f"the clocks of {name} run by {rate:+.2%} too fast"
    return (reads_clock(actor) - before) * rate > 0
