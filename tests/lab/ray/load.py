"""Writes without a pause, and the account of them: nothing acknowledged is lost, nothing is done twice."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

from lab.ray.tools import wait_until
from raykeeper import KeeperError


class Load:
    """Threads that write a new key each time, and now and then overwrite one of their own.

    Args:
        kv: a client.
        prefix: of the keys.
        threads: how many.
        timeout: of each write, in seconds.
    """

    def __init__(self, kv: Any, prefix: str = "load", threads: int = 8, timeout: float = 20.0) -> None:
        self._kv = kv
        self._prefix = prefix
        self._timeout = timeout
        self._stopping = threading.Event()
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []
        self.blind = [0] * threads
        self.blind_unknown = [0] * threads
        self.errors: list[KeeperError] = []
        self.longest = 0.0
        """Seconds that a write which was acknowledged took at most."""
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        for n in itertools.count():
            if self._stopping.is_set():
                return
            key = f"{self._prefix}/{number}/{n}"
            began = time.monotonic()
            try:
                self._kv.put(key, key, timeout=self._timeout)
                self.acknowledged.append(key)
                self.longest = max(self.longest, time.monotonic() - began)
            except KeeperError as error:
                self.errors.append(error)
                if error.applied is None:
                    self.unknown.append(key)
            try:
                self._kv.put(f"{self._prefix}/blind/{number}", "", timeout=self._timeout)
                self.blind[number] += 1
            except KeeperError as error:
                self.blind_unknown[number] += error.applied is None

    def wait(self, more: int = 50, seconds: float = 60.0) -> None:
        """Wait until this many more writes are acknowledged."""
        enough = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= enough, seconds, f"{more} more writes acknowledged")

    def check(self) -> int:
        """Stop, and settle the account; how many writes were acknowledged."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(self._timeout + 10)
            assert not thread.is_alive(), "a write hangs"
        there = {item.key.decode(): item for item in self._kv.range(prefix=f"{self._prefix}/", timeout=60)}
        marks = {key: item for key, item in there.items() if "/blind/" not in key}
        lost = set(self.acknowledged) - set(marks)
        assert not lost, f"{len(lost)} acknowledged writes are lost: {sorted(lost)[:5]}"
        strange = set(marks) - set(self.acknowledged) - set(self.unknown)
        assert not strange, f"there, though its error said that it had no effect: {sorted(strange)[:5]}"
        assert all(item.version == 1 and item.text == key for key, item in marks.items()), "done twice, or changed"
        for number, (done, unknown) in enumerate(zip(self.blind, self.blind_unknown, strict=True)):
            item = there.get(f"{self._prefix}/blind/{number}")
            version = 0 if item is None else item.version
            assert done <= version <= done + unknown, "a blind write was lost or done twice"
        return len(self.acknowledged)
