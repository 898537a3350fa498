"""Transactions over several keys that hold lists: each reads some, and appends to some, if nothing has changed since.

What they see is judged for cycles of dependencies (``cycles.py``), which no order of the transactions could explain.
"""

from __future__ import annotations

from typing import Any

from raykeeper import Compare, Op

from .journal import FAIL
from .work import Thread

LISTS = 4
"""In each epoch."""


class Lister(Thread):
    """Reads and appends, in transactions of several keys."""

    def act(self) -> None:
        keys = [f"l/{self.epoch():05}/{n}" for n in range(LISTS)]
        some = self.rng.sample(keys, self.rng.randrange(1, LISTS + 1))
        if self.rng.random() < 0.4:
            self.do("list_txn", lambda: self._read(some), reads=some, appends={})
            return
        appends = {key: self.value() for key in self.rng.sample(some, self.rng.randrange(1, len(some) + 1))}
        number = self.journal.begin(self.name, "list_txn", reads=some, appends=appends)
        self.finish(number, lambda: self._append(some, appends))

    def _read(self, keys: list[str]) -> dict[str, Any]:
        done = self.kv.txn(success=[Op.get(key) for key in keys], timeout=self.rng.choice((0.5, 4.0)))
        self.seen(done.revision)
        seen = {key: elements(found) for key, found in zip(keys, done.responses, strict=True)}
        return {"seen": seen, "revision": done.revision}

    def _append(self, keys: list[str], appends: dict[str, str]) -> dict[str, Any]:
        timeout = self.rng.choice((0.5, 4.0))
        before = self.kv.txn(success=[Op.get(key) for key in keys], timeout=timeout)
        found = dict(zip(keys, before.responses, strict=True))
        same = [
            Compare.version(key) == 0 if there is None else Compare.mod_revision(key) == there.mod_revision
            for key, there in found.items()
        ]
        puts = [Op.put(key, ",".join([*elements(found[key]), value])) for key, value in appends.items()]
        done = self.kv.txn(same, puts, timeout=timeout)
        self.seen(done.revision)
        if not done.succeeded:
            return {"outcome": FAIL}
        return {"seen": {key: elements(there) for key, there in found.items()}, "revision": done.revision}


def elements(found: Any) -> list[str]:
    """Of a list as it was read."""
    return [] if found is None else found.text.split(",")
