"""Distributed locks: exclusive ones, with a holder that is overtaken, and ordered ones, in which everyone gets a turn.

Exclusive: a process is stopped while it holds the lock, for longer than its TTL, and another one gets it. When the
first runs again it does not know that, and writes. Its write to a file succeeds; its write through the guard of
its lock is refused. Ordered: many contenders on several processes get their turns in the order in which they came,
even if one of the processes is killed. Exit status 1 if that is not so.

    python examples/locks.py [--contenders N]
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from stage import check, kill, say, stage, until

import raykeeper

TTL = 2.0


@ray.remote(num_cpus=0, max_concurrency=64)
class Process:
    """One process that uses locks."""

    def __init__(self, kv: raykeeper.Client) -> None:
        self.kv = kv

    def pid(self) -> int:
        """Its process id."""
        return os.getpid()

    def write(self, path: str, name: str, wait: float) -> str:
        """Take the lock, think for a while, and write: to a file, and through the guard."""
        with self.kv.lock("exclusive", ttl=TTL) as lock:
            guard = lock.guard()
            self.kv.put(f"holds/{name}", f"{lock.token}")
            until_then = time.monotonic() + wait
            while time.monotonic() < until_then:
                time.sleep(0.01)
            with open(path, "a") as file:
                file.write(f"{name}\n")
            try:
                guard.put("written", name)
            except raykeeper.LockLost as refused:
                return f"refused: {refused}"
        return "written"

    def take_turns(self, name: str, contenders: int) -> int:
        """Contend, many at once; each notes its place in the order as soon as it has its turn."""

        def contend(_: int) -> None:
            with self.kv.lock("ordered", ttl=TTL * 5) as lock:
                lock.guard().put("turn", f"{lock.token} {name}")

        with ThreadPoolExecutor(contenders) as pool:
            return len(list(pool.map(contend, range(contenders))))


def exclusive(kv: raykeeper.Client, one: Any, two: Any, path: Path) -> None:
    """A holder is overtaken."""
    pid = ray.get(one.pid.remote())
    first = one.write.remote(str(path), "first", 0.5)
    until(lambda: kv.get("holds/first"), "the first holder")
    os.kill(pid, signal.SIGSTOP)
    say(f"stopped the holder (pid {pid})")
    check(ray.get(two.write.remote(str(path), "second", 0.0), timeout=60) == "written", "another one got the lock")
    os.kill(pid, signal.SIGCONT)
    outcome = ray.get(first, timeout=60)
    check(path.read_text().split() == ["second", "first"], "the overtaken holder has written to the file")
    check(outcome.startswith("refused"), f"its guarded write was {outcome}")
    written = kv.get("written")
    check(written is not None and written.text == "second", "the guarded key is the second holder's")


def ordered(kv: raykeeper.Client, processes: list[Any], contenders: int) -> None:
    """Each gets a turn, in one order."""
    lock = kv.lock("ordered", ttl=30)
    lock.acquire()
    watch = kv.watch("turn")
    work = [each.take_turns.remote(f"{number}", contenders) for number, each in enumerate(processes)]
    until(lambda: len(lock.waiters()) == contenders * len(processes), "all are in line")
    order = [waiter.token for waiter in lock.waiters()]
    say(f"{len(order)} in line")
    kill(ray.get(processes[0].pid.remote()), "one of the processes")
    alive = contenders * (len(processes) - 1)
    lock.release()
    ray.get(work[1:], timeout=120)
    turns = []
    while sum(name != "0" for _, name in turns) < alive:
        event = until(lambda: watch.next(timeout=1), "the turns of all who lived")
        token, name = event.kv.text.split()
        turns.append((int(token), name))
    tokens = [token for token, _ in turns]
    check(tokens == sorted(tokens), "turns were taken in the order of arrival")
    check(set(tokens) <= set(order), "by those who stood in line")
    check(len(set(tokens)) == len(tokens), f"each of the {alive} who lived had one")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--contenders", type=int, default=10, help="on each of three processes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, stage() as cluster:
        kv = cluster.client()
        processes = [Process.remote(kv) for _ in range(3)]
        exclusive(kv, processes[0], processes[1], Path(folder) / "file")
        ordered(kv, processes, arguments.contenders)


if __name__ == "__main__":
    main()
