"""What an operator does to a campaign's cluster while faults are on: each may fail as calls do, and harms nothing."""

from __future__ import annotations

import random
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

import raykeeper
from raykeeper import KeeperError
from raykeeper.actors.cluster.member_upkeep import defragment_members

from .login import connect
from .promises import Change, check_end_state
from .verdict import OWN_PREFIXES

BESIDE = "beside"
KEPT = (*OWN_PREFIXES, "l/")
"""Keys without leases, of which all changes are known."""
PAUSE_S = (0.5, 6.0)
"""Between two operations."""


def check_backup(path: Path, changes: Sequence[Change], folder: Path) -> int:
    """Restore a backup beside the cluster: it holds what the history comes to up to its revision; how many keys.

    Keys that hang on leases may have ended there, and are not compared.

    Raises:
        Violation: it does not.
    """
    beside = raykeeper.restore(path, {"name": BESIDE, "members": 1, "data_dir": str(folder)}, timeout=90)
    try:
        with beside.client(timeout=60) as kv:
            revision = kv.revision()
            there = {
                item.key.decode(): (item.mod_revision, item.text)
                for prefix in KEPT
                for item in kv.range(prefix=prefix, revision=revision)
            }
    finally:
        beside.destroy()
    return check_end_state(there, [each for each in changes if each[0] <= revision and each[1].startswith(KEPT)])


class Operator:
    """Works on a thread of its own until it is told to stop.

    Args:
        cluster: to look after.
        seed: decides what is done.
        folder: for backups.
        upto: up to which revision the history may be forgotten.
    """

    def __init__(self, cluster: Any, seed: int, folder: Path, upto: Callable[[], int]) -> None:
        self._cluster = cluster
        self._rng = random.Random(f"operator/{seed}")
        self._folder = folder
        self._upto = upto
        self.done: Counter[str] = Counter()
        """Operations by name; those that failed as calls may, with a ``!``."""
        self.wrong: list[str] = []
        """Tracebacks of those that failed as none may."""
        self.backups: list[Path] = []
        """Those that were made."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self._thread.start()

    def stop(self, patience: float) -> bool:
        """Begin nothing more; whether what was under way has ended in time."""
        self._over.set()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        kinds = [self._compact, self._back_up, self._defragment, self._add_and_remove, self._configure, self._move]
        kinds.append(self._look)
        while not self._over.wait(self._rng.uniform(*PAUSE_S)):
            operation = self._rng.choice(kinds)
            name = operation.__name__.strip("_")
            try:
                operation()
                self.done[name] += 1
            except (KeeperError, ray.exceptions.RayError):
                self.done[f"{name}!"] += 1
            except Exception:
                self.wrong.append(traceback.format_exc())

    def _compact(self) -> None:
        with connect(self._cluster.name, timeout=20) as kv:
            kv.compact(self._upto())

    def _back_up(self) -> None:
        path = self._folder / f"backup-{len(self.backups)}"
        self._cluster.backup(path, timeout=30)
        self.backups.append(path)

    def _defragment(self) -> None:
        defragment_members(self._cluster.name, self._cluster.id, timeout=30)

    def _add_and_remove(self) -> None:
        if len(self._cluster.members(timeout=10)) < 6:
            self._cluster.add_member(timeout=40)
        members = self._cluster.members(timeout=10)
        if len(members) > 3:
            self._cluster.remove_member(self._rng.choice(members).id, timeout=40)

    def _configure(self) -> None:
        self._cluster.configure(limits={"log_keep_entries": self._rng.randrange(100, 1000)}, timeout=20)

    def _move(self) -> None:
        self._cluster.move_leader(self._rng.choice(self._cluster.members(timeout=10)).id, timeout=10)

    def _look(self) -> None:
        self._cluster.status(timeout=10)
        self._cluster.health(timeout=10)
