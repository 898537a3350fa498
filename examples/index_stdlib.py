"""Index the running interpreter's standard library with Ray tasks that keep all they know in RayKeeper.

The workers share nothing but the store. Each has one lease, and claims files under it: a claim is a key that is gone
soon after its worker is. A file is recorded in one transaction, which asks whether the claim is still the worker's,
adds to the totals, and ends the claim; so a worker that was overtaken counts nothing, and each file counts once.

On the way a worker that holds claims and the cluster's leader are killed with SIGKILL. The worker's claims must come
back, and the totals must equal those of a single pass over the same files in this process. Exit status 1 if not.

    python examples/index_stdlib.py [cluster.yaml] [--limit N]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import sysconfig
import threading
import time
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

# Ray's notice of a process that was killed fills the terminal. At the end `deaths` tells which processes died.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed")

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from stage import kill, kill_leader, stage, until

import raykeeper
from raykeeper import Compare, Op

WORKERS = 4
HANDFUL = 8
"""How many files a worker claims at once."""
TTL = 5.0
"""Seconds: longer than the cluster needs to replace its leader, or workers would lose their leases with each one."""
PATIENCE = 120.0
SURVIVED = (
    *(raykeeper.LeaseLost, raykeeper.LeaseNotFound),  # cut off for longer than the TTL
    *(raykeeper.RequestTimeout, raykeeper.Unavailable, raykeeper.SessionExpired),  # it is unknown what became of a call
)
FIELDS = ("files", "bytes", "lines", "tokens", "unreadable")
console = Console()


def index(path: str) -> dict[str, int]:
    """Count what is in a file. One that is not Python (the library's tests hold some) is counted as unreadable."""
    data = Path(path).read_bytes()
    counts = {"files": 1, "bytes": len(data), "lines": data.count(b"\n"), "tokens": 0, "unreadable": 0}
    try:
        counts["tokens"] = sum(1 for _ in tokenize.tokenize(io.BytesIO(data).readline))
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        counts["unreadable"] = 1
    return counts


@ray.remote(num_cpus=0, max_retries=0)  # Ray does not run a killed worker again: the others take its files over
def work(kv: raykeeper.Client, me: int, files: list[str]) -> None:
    """Index files until all are recorded."""
    store = kv.with_codec(raykeeper.codec.JSON)
    while True:
        try:
            with store.lease(TTL) as lease:
                return index_under(lease, store, me, files)
        except SURVIVED:
            continue  # with the lease go the claims: this worker starts over, as if it were another one


def index_under(lease: raykeeper.Lease, store: raykeeper.Client, me: int, files: list[str]) -> None:
    """Claim, index and record what is free, and wait for what others have claimed: they may die."""
    while True:
        claims = store.range(prefix="claim/", keys_only=True)
        records = store.range(prefix="file/", keys_only=True, revision=claims.revision)
        busy = {number(item) for item in (*claims, *records)}
        free = [file for file in range(len(files)) if file not in busy]
        if free:
            claim = {"worker": me, "pid": os.getpid(), "claimed_at": time.time()}
            for file in take(lease, store, claim, free[:HANDFUL]):
                record(lease, store, file, {"path": files[file], **index(files[file]), **claim})
        elif claims:
            with store.watch(prefix="claim/", start_revision=claims.revision + 1, only="delete") as ended:
                ended.next(timeout=TTL)
        else:
            return


def take(lease: raykeeper.Lease, store: raykeeper.Client, claim: dict[str, Any], files: list[int]) -> list[int]:
    """Claim these files; none of them, if another worker was faster with one."""
    taken = store.txn(
        compare=[Compare.version(key) == 0 for file in files for key in (f"claim/{file:06}", f"file/{file:06}")],
        success=[Op.put(f"claim/{file:06}", claim, lease=lease) for file in files],
    )
    return files if taken.succeeded else []


def record(lease: raykeeper.Lease, store: raykeeper.Client, file: int, found: dict[str, Any]) -> None:
    """The record, the totals and the end of the claim in one step; or none of them, if the claim is lost."""
    claim = f"claim/{file:06}"
    totals: Any = store.get("totals")
    while True:
        done = store.txn(
            compare=[
                Compare.lease(claim) == lease.id,
                Compare.mod_revision("totals") == (totals.mod_revision if totals else 0),
            ],
            success=[
                Op.put(f"file/{file:06}", found),
                Op.put("totals", add(totals.value if totals else {}, found)),
                Op.delete(claim),
            ],
            failure=[Op.get("totals"), Op.get(claim)],
        )
        if done.succeeded:
            return
        mine: Any
        totals, mine = done.responses  # another worker has added to the totals meanwhile,
        if mine is None or mine.lease != lease.id:
            return  # or this one was overtaken


def add(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """The sums of two counts."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in FIELDS}


def number(item: raykeeper.KeyValue) -> int:
    """Which file a claim or a record is about."""
    return int(item.key.rpartition(b"/")[2])


@dataclass(frozen=True)
class Victim:
    """The worker that was killed: when, and the files that it had claimed and not recorded."""

    worker: int
    at: float
    held: list[int]


def kill_holder(kv: raykeeper.Client) -> Victim | None:
    """SIGKILL a worker that holds claims; ``None`` if there was none."""
    store = kv.with_codec(raykeeper.codec.JSON)
    newest = store.range(prefix="claim/", sort="create_revision", order="descend", limit=1)
    if not newest:
        return None
    claim = newest.items[0]  # the worker that claimed last has most of it still to do
    worker, pid = claim.value["worker"], claim.value["pid"]
    with stopped(pid):  # it must not finish them while we look
        held = [number(item) for item in store.range(prefix="claim/") if item.lease == claim.lease]
        if len(held) < 2:  # the record of one may be on its way
            return None
        kill(pid, f"worker {worker}, which held {len(held)} claims")
    return Victim(worker, time.time(), held)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process is stopped meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Prober(threading.Thread):
    """Writes all the time, so that the time without acknowledged writes can be told."""

    def __init__(self, kv: raykeeper.Client) -> None:
        super().__init__(daemon=True)
        self._kv = kv
        self._over = threading.Event()
        self.acknowledged: list[float] = []

    def run(self) -> None:
        """Put one key, again and again."""
        while not self._over.wait(0.01):
            with contextlib.suppress(raykeeper.KeeperError):
                self._kv.put("probe", str(len(self.acknowledged)))
                self.acknowledged.append(time.time())

    def __enter__(self) -> Prober:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


def run(cluster: raykeeper.Cluster, files: list[str]) -> list[str]:
    """The job; a line for each thing that is wrong."""
    kv = cluster.client().namespace("stdlib/")
    store = kv.with_codec(raykeeper.codec.JSON)
    members = cluster.status().members
    victim: Victim | None = None
    leader: raykeeper.MemberInfo | None = None
    with Prober(kv) as prober, progress("indexing", len(files)) as show:
        before, began = kv.revision(), time.time()
        tasks = [work.remote(kv, me, files) for me in range(WORKERS)]
        waiting, indexed, patience = tasks, 0, began + PATIENCE
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0.1)
            now_indexed = kv.range(prefix="file/", count_only=True, timeout=PATIENCE).count
            if now_indexed > indexed:
                indexed, patience = now_indexed, time.time() + PATIENCE
                show(indexed)
            elif time.time() > patience:
                return [f"no file was recorded for {PATIENCE:.0f} s"]
            if victim is None and 3 * indexed >= len(files):
                victim = until(lambda: kill_holder(kv), "a worker with claims")
            elif leader is None and 3 * indexed >= 2 * len(files):
                leader, leader_killed_at = kill_leader(cluster), time.time()
        seconds, writes = time.time() - began, kv.revision() - before
    if victim is None or leader is None:
        return ["the job was over before both were killed"]

    with progress("single pass to compare", len(files)) as show:
        expected: list[dict[str, Any]] = []
        for path in files:
            expected.append({"path": path, **index(path)})
            show(len(expected))
    records = {number(item): item.value for item in store.range(prefix="file/")}
    wrong = [*compare(store, expected), *deaths(cluster, members, leader, tasks, victim)]
    again = [records[file] for file in victim.held if file in records and records[file]["worker"] != victim.worker]
    if not again:
        wrong.append("no claim of the killed worker came back")
    after = [record["claimed_at"] - victim.at for record in again] or [0.0]
    gaps = [late - early for early, late in pairwise(prober.acknowledged) if late > leader_killed_at]

    totals = sums(expected)
    table = Table(title="the standard library, indexed", show_header=False)
    for name, value in (
        ("files", f"{totals['files']:,} ({totals['unreadable']} not Python)"),
        ("lines, tokens", f"{totals['lines']:,}, {totals['tokens']:,}"),
        ("writes", f"{writes:,} ({len(prober.acknowledged):,} a prober's), {writes / seconds:,.0f}/s while tokenizing"),
        ("worker killed", f"worker {victim.worker} at {victim.at - began:.1f} s, with {len(victim.held)} claims"),
        ("claims that came back", f"{len(again)}, to workers {sorted({record['worker'] for record in again})}"),
        ("taken again after", f"{min(after):.2f} to {max(after):.2f} s (the lease would have lasted up to {TTL:g} s)"),
        ("leader killed", f"{leader.name} at {leader_killed_at - began:.1f} s"),
        ("writes stood still for", f"{max(gaps):.2f} s" if gaps else "unknown"),
        ("all done after", f"{seconds:.1f} s"),
        ("totals", "equal to a single pass" if not wrong else "WRONG"),
    ):
        table.add_row(name, value)
    console.print(table)
    return wrong


def compare(store: raykeeper.Client, expected: list[dict[str, Any]]) -> list[str]:
    """What in the store differs from a single pass."""
    wrong = []
    records = {number(item): item for item in store.range(prefix="file/")}
    for file, single in enumerate(expected):
        item = records.pop(file, None)
        if item is None or item.version != 1 or {**item.value, **single} != item.value:
            wrong.append(f"{single['path']}: recorded as {item and item.value}, not {single}")
    claims = [number(item) for item in store.range(prefix="claim/")]
    if records or claims:
        wrong.append(f"records of no file: {list(records)}; claims that are left: {claims}")
    totals = store.get("totals")
    if totals is None or totals.value != sums(expected):
        wrong.append(f"totals: {totals and totals.value}, single pass {sums(expected)}")
    return wrong


def sums(records: list[dict[str, Any]]) -> dict[str, int]:
    """What the totals must be."""
    return {name: sum(int(record[name]) for record in records) for name in FIELDS}


def deaths(
    cluster: raykeeper.Cluster,
    members: tuple[raykeeper.MemberInfo, ...],
    leader: raykeeper.MemberInfo,
    tasks: list[Any],
    victim: Victim,
) -> list[str]:
    """Which processes died that were not killed here, or did not die though they were."""
    wrong = []
    pids = {member.pid for member in cluster.status().members}
    for member in members:
        if (member.pid in pids) == (member.id == leader.id):
            wrong.append(f"process {member.pid} of {member.name} {'lived on' if member.pid in pids else 'died'}")
    for me, task in enumerate(tasks):
        try:
            ray.get(task, timeout=PATIENCE)
            died = ""
        except ray.exceptions.RayError as error:
            died = str(error)
        if bool(died) != (me == victim.worker):
            wrong.append(f"worker {me} {died or 'lived on'}")
    return wrong


def standard_library(limit: int | None) -> list[str]:
    """All Python files of the standard library, or the first ``limit``."""
    root = Path(sysconfig.get_path("stdlib"))
    others = {"site-packages", "dist-packages"}
    files = sorted(str(p) for p in root.rglob("*.py") if p.is_file() and not others & set(p.relative_to(root).parts))
    return files[:limit]


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Any]:
    """A progress bar; yields the function that sets it."""
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def main() -> int:
    """Set up a Ray and a cluster of its own, run the job, take both away again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("spec", nargs="?", default=None, help="cluster spec, such as cluster.yaml")
    parser.add_argument("--limit", type=int, help="index only this many files, the first ones")
    arguments = parser.parse_args()
    files = standard_library(arguments.limit)
    console.print(f"{len(files):,} files of Python {sys.version.split()[0]}; starting Ray and the cluster")
    try:
        with stage(arguments.spec) as cluster:
            wrong = run(cluster, files)
    except raykeeper.KeeperError as error:
        wrong = [f"{type(error).__name__}: {error}"]
    for line in wrong[:20]:
        console.print(f"wrong: {line}", style="red", markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
