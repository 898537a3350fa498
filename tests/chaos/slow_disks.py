"""Disks that are slow, and disks that refuse an fsync or a read now and then; see ``lab/ray/patches/sitecustomize.py``
and ``lab/durable.c``."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import ray

from lab.ray.tools import is_alive, wait_until

from .disks import SOON, look_through
from .field import Fault, Field, NotNow, kill

SLOW = (0.01, 5.0)
"""Seconds of an fsync."""


def slow_disk_of_leader(field: Field) -> Fault:
    return (yield from _slow(field, field.leader()))


def slow_disk_of_follower(field: Field) -> Fault:
    return (yield from _slow(field, field.follower()))


def _slow(field: Field, member: Any) -> Fault:
    seconds = math.exp(field.rng.uniform(*map(math.log, SLOW)))
    with field.breaking(f"slow:{seconds} * {member.pid}"):
        yield f"each fsync of {member.name}, {member.role}, takes {seconds:.2f} s"
    return is_alive(member.pid)


def flaky_disk(field: Field) -> Fault:
    """An fsync fails now and then: each time the process must end, and another one begins."""
    member, share = field.anyone(), field.rng.choice((0.001, 0.01, 0.1))
    with field.breaking(f"flaky:{share} *" if field.rng.random() < 0.3 else f"flaky:{share} * {member.pid}"):
        yield f"{share:.1%} of all fsyncs fail, of {member.name} or of all"
    return True


def flaky_reads(field: Field) -> Fault:
    """Reads of a member's files answer EIO now and then, or after half: what it has read is right, or it says so.

    Little is read as long as all is in memory. So its process is killed, and the next one reads all that there is; or
    it is asked to look through its state.
    """
    layer = field.layer
    if layer is None:
        raise NotNow("no layer is below the processes")
    member, share = field.anyone(), field.rng.choice((0.03, 0.1, 0.4))
    before = layer.refused_reads()
    layer.refuse_reads(field.folder(member.id), share)
    try:
        if field.rng.random() < 0.7:
            kill(member.pid)
            with suppress(AssertionError):  # another fault keeps it from starting
                wait_until(lambda: _serves_again(field, member), SOON)
        elif member.actor is not None:
            with suppress(ray.exceptions.RayError, OSError):
                ray.get(member.actor.__ray_call__.remote(look_through), timeout=10)
        yield f"{share:.1%} of all reads of {member.name} fail"
    finally:
        layer.refuse_reads(field.folder(member.id), 0.0)
    return layer.refused_reads() != before


def _serves_again(field: Field, member: Any) -> bool:
    """Whether another process of a member has read all that it needs for that."""
    now = field.again(member)
    return now is not None and now.pid not in (0, member.pid) and not now.why_not_serving
