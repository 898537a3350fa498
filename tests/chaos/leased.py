"""Leases whose end is judged by a clock of its own: that of the machine, which no fault touches.

``lease_end``: a lease without keep-alives, with a key; ``lasted`` is from before it was asked for until a read that did
not find the key had ended, so the cluster cannot have waited longer than that. ``lease_held``: a lease that is kept
alive; whether a linearizable read missed its key, and whether the process had been told by then that it is lost.
"""

from __future__ import annotations

import time
from typing import Any

from .work import Thread


class Leaser(Thread):
    """Has leases, and looks whether their keys are there."""

    def act(self) -> None:
        if self.rng.random() < 0.5:
            self._let_end()
        else:
            self._hold()

    def _let_end(self) -> None:
        key, ttl = f"t/{self.value()}", self.rng.choice((1.0, 2.0, 4.0))

        def call() -> dict[str, Any]:
            began = time.monotonic()
            lease = self.kv.lease(ttl, keep_alive=False, timeout=8.0)
            self.kv.put(key, "x", lease=lease.id, timeout=8.0)
            while self.kv.get(key, timeout=8.0) is not None:
                self.worker.stopping.wait(0.05)
                if self.worker.stopping.is_set():
                    return {"lasted": None}
            return {"lasted": time.monotonic() - began}

        self.do("lease_end", call, key=key, ttl=ttl)

    def _hold(self) -> None:
        key, ttl = f"t/{self.value()}", self.rng.choice((1.5, 3.0))
        leases: list[Any] = []

        def take() -> dict[str, Any]:
            lease = self.kv.lease(ttl, timeout=8.0)
            self.kv.put(key, "x", lease=lease, timeout=8.0)
            leases.append(lease)
            return {}

        if self.do("lease_taken", take, key=key, ttl=ttl) is None:
            return
        (lease,) = leases
        until = time.monotonic() + self.rng.uniform(1.0, 6.0)
        while time.monotonic() < until and not self.worker.stopping.is_set() and not lease.lost.is_set():

            def look() -> dict[str, Any]:
                missing = self.kv.get(key, timeout=4.0) is None
                return {"missing": missing, "lost": lease.lost.is_set()}

            self.do("lease_held", look, key=key, ttl=ttl)
            self.worker.stopping.wait(self.rng.uniform(0.0, 0.3))
        if self.rng.random() < 0.7:

            def give_back() -> dict[str, Any]:
                lease.revoke(timeout=8.0)
                return {}

            self.do("lease_revoked", give_back, key=key)
