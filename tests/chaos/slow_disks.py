"""Disks that are slow, and disks that refuse an fsync now and then; see ``lab/ray/patches/sitecustomize.py``."""

from __future__ import annotations

import math
from typing import Any

from lab.ray.tools import is_alive

from .field import Fault, Field

SLOW = (0.01, 5.0)
"""Seconds of an fsync."""


def slow_disk_of_leader(field: Field) -> Fault:
    return (yield from _slow(field, field.leader()))


def slow_disk_of_follower(field: Field) -> Fault:
    return (yield from _slow(field, field.follower()))


def _slow(field: Field, member: Any) -> Fault:
    seconds = math.exp(field.rng.uniform(*map(math.log, SLOW)))
    field.syncs.write_text(f"slow:{seconds} * {member.pid}\n")
    try:
        yield f"each fsync of {member.name}, {member.role}, takes {seconds:.2f} s"
    finally:
        field.syncs.unlink()
    return is_alive(member.pid)


def flaky_disk(field: Field) -> Fault:
    """An fsync fails now and then: each time the process must end, and another one begins."""
    member, share = field.anyone(), field.rng.choice((0.001, 0.01, 0.1))
    field.syncs.write_text(f"flaky:{share} *\n" if field.rng.random() < 0.3 else f"flaky:{share} * {member.pid}\n")
    try:
        yield f"{share:.1%} of all fsyncs fail, of {member.name} or of all"
    finally:
        field.syncs.unlink()
    return True
