"""What a campaign reads from the store itself: the changes of all keys while it runs, and what is left at the end."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from lab.ray.tools import wait_until
from raykeeper.errors import LeaseLost, LockLost
from simulation.checker import Violation

from .login import connect
from .verdict import Truth
from .work import COUNTER, QUEUE


def read_on(cluster: str, truth: Truth, patience: float) -> None:
    """Read on in the store's history, up to now.

    Raises:
        Violation: a watch does not get to what is confirmed within ``patience`` seconds.
    """
    with connect(cluster, timeout=patience) as kv:
        upto = kv.revision()
        if upto <= truth.upto:
            return
        with kv.watch(prefix="", start_revision=truth.upto + 1) as watch:
            deadline = time.monotonic() + patience
            while watch.revision < upto:
                event = watch.next(timeout=1.0)
                if event is None:
                    if time.monotonic() > deadline:
                        raise Violation(f"a watch stands at {watch.revision}, though {upto} is confirmed")
                    continue
                if event.kv.mod_revision <= upto:
                    key = event.kv.key.decode()
                    value = None if event.type == "delete" or key.startswith("flood/") else event.kv.text
                    truth.changes.append((event.kv.mod_revision, key, value))
        truth.upto = upto


def end_state(cluster: str, patience: float) -> tuple[int, dict[str, tuple[int, str]]]:
    """All keys at one revision, with the revisions that wrote them, in pages; that revision."""
    with connect(cluster, timeout=patience) as kv:
        found = kv.range(prefix="", timeout=patience)
        return found.revision, {item.key.decode(): (item.mod_revision, item.text) for item in found}


def settled_state(cluster: str, truth: Truth, patience: float) -> dict[str, tuple[int, str]]:
    """All keys, once the leases of the dead have ended, with the history up to the same revision."""

    def ended() -> bool:
        return not [key for key in end_state(cluster, patience)[1] if key.startswith("t/")]

    def still() -> dict[str, tuple[int, str]] | None:
        revision, there = end_state(cluster, patience)
        read_on(cluster, truth, patience)
        return there if truth.upto == revision else None

    wait_until(ended, patience, "the end of all leases whose processes are gone")
    return wait_until(still, patience, "a moment without changes") or {}


def write_changes(truth: Truth, path: Path) -> None:
    """The store's history as a file."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(change)}\n" for change in truth.changes)


def drain(cluster: str, patience: float) -> tuple[list[str], int]:
    """What is left in the queue, and the counter.

    Raises:
        Violation: the queue does not become empty, though nobody fills it; each item may take ``patience`` seconds.
    """
    left: list[str] = []
    with connect(cluster, timeout=30) as kv:
        queue = kv.queue(QUEUE, ttl=30)
        deadline = time.monotonic() + patience
        while len(queue):
            # Of a machine that is so busy, or whose clocks lie: what is lost comes back.
            with suppress(LockLost, LeaseLost):
                claim = queue.claim(timeout=5)
                if claim is not None:
                    claim.ack()
                    left.append(claim.item.decode())
                    deadline = time.monotonic() + patience  # there may be many, but one after the other must come
            if time.monotonic() > deadline:
                raise Violation(f"the queue does not become empty: {len(queue)} items are left")
        return left, kv.counter(COUNTER).value()
