"""What an operator does to a campaign's cluster while faults are on: each may fail as calls do, and harms nothing."""

from __future__ import annotations

import random
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray

import raykeeper
from lab.ray.tools import kill_actors
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
NEEDED = ("upgrade", "restore")
"""Operations of which one each must succeed in ten minutes (``outcome.UPGRADED``, ``outcome.RESTORED``)."""


class Restored(NamedTuple):
    """What a cluster holds that was restored from a backup, beside the other one."""

    revision: int
    there: dict[str, tuple[int, str]]
    """Revision and value of each key that hangs on no lease."""


def restore_beside(path: Path, folder: Path, name: str) -> Restored:
    """Restore a backup beside the cluster, read what is there, and destroy it."""
    try:
        beside = raykeeper.restore(path, {"name": name, "members": 1, "data_dir": str(folder)}, timeout=90)
    except BaseException:
        with suppress(KeeperError, ray.exceptions.RayError, AssertionError):
            kill_actors(name)  # as far as it came
        raise
    try:
        with beside.client(timeout=60) as kv:
            revision = kv.revision()
            there = {
                item.key.decode(): (item.mod_revision, item.text)
                for prefix in KEPT
                for item in kv.range(prefix=prefix, revision=revision)
            }
    finally:
        _destroy(beside, name)
    return Restored(revision, there)


def _destroy(beside: Any, name: str) -> None:
    """Another fault may keep it from that; what was read from it counts nevertheless."""
    try:
        beside.destroy()
    except (KeeperError, ray.exceptions.RayError):
        with suppress(KeeperError, ray.exceptions.RayError, AssertionError):
            kill_actors(name)


def check_restored(restored: Restored, changes: Sequence[Change]) -> int:
    """It holds what the history comes to up to its revision; how many keys.

    Raises:
        Violation: it does not.
    """
    kept = [each for each in changes if each[0] <= restored.revision and each[1].startswith(KEPT)]
    return check_end_state(restored.there, kept)


def draw(rng: random.Random, names: Sequence[str], done: Counter[str]) -> str:
    """The next operation. Each may take a minute and fail, so that in ten minutes there may be twenty of them: half of
    them are those that are needed, until they have succeeded."""
    missing = [name for name in NEEDED if not done[name]]
    return rng.choice(missing if missing and rng.random() < 0.5 else names)


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
        self.restored: list[Restored] = []
        """What was restored from them, while all else went on."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self._thread.start()

    def stop(self, patience: float) -> bool:
        """Begin nothing more; whether what was under way has ended in time."""
        self._over.set()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        found = [self._compact, self._back_up, self._defragment, self._add_and_remove, self._configure, self._move]
        found += [self._look, self._restore, self._upgrade]
        operations = {operation.__name__.strip("_"): operation for operation in found}
        while not self._over.wait(self._rng.uniform(*PAUSE_S)):
            name = draw(self._rng, list(operations), self.done)
            try:
                operations[name]()
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

    def _restore(self) -> None:
        """From the newest backup, beside; it is compared with the history once that is known."""
        if not self.backups:
            self._back_up()
        name = f"{BESIDE}{self._rng.getrandbits(32)}"
        self.restored.append(restore_beside(self.backups[-1], self._folder / BESIDE / name, name))

    def _upgrade(self) -> None:
        """To the code that is there: all members one after the other, as to any other."""
        self._cluster.upgrade(timeout=90)

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
