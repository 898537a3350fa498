"""Index the running interpreter's standard library with Ray tasks that keep all they know in RayKeeper.

Every batch of files is given to two tasks at once, on purpose: a file is claimed by a transaction, whoever comes second
leaves it alone, and so each is counted once. Midway the process of the cluster's leader is killed with SIGKILL. At the
end the totals must equal those of a single pass over the same files in this process. Exit status 1 if not all is well.

    python examples/index_stdlib.py [cluster.yaml] [--limit N]

What makes a task safe to run again, as Ray does by itself when it fails: its claims carry a ``request_id``, so the
second run gets the first one's answers; a file's record is the same however often it is put; and the totals change in
one transaction with a mark that says that this task's share is in.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
import sysconfig
import tempfile
import threading
import time
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import raykeeper
from raykeeper import Compare, Op

FILES_PER_TASK = 16
FIELDS = ("files", "bytes", "lines", "tokens", "unreadable")
FAST_DEATH = "RAY_timeout_ms_task_wait_for_death_info"
console = Console()


def index(path: str) -> dict[str, int]:
    """Count what is in a file. One that is no Python (the library's tests hold some) is counted as unreadable."""
    data = Path(path).read_bytes()
    counts = {"files": 1, "bytes": len(data), "lines": data.count(b"\n"), "tokens": 0, "unreadable": 0}
    try:
        counts["tokens"] = sum(1 for _ in tokenize.tokenize(io.BytesIO(data).readline))
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        counts["unreadable"] = 1
    return counts


def add(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """The sums of two counts."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in FIELDS}


@dataclass
class Share:
    """What one task did: when its writes were acknowledged (``time.time``), and how many files it got."""

    files: int = 0
    acknowledged: list[float] = field(default_factory=list)


@ray.remote(max_retries=5, retry_exceptions=[raykeeper.KeeperError])
def index_files(kv: raykeeper.Client, task: str, files: list[tuple[int, str]]) -> Share:
    """Claim, index and record what is still free of these files, then add this task's share to the totals."""
    store = kv.with_codec(raykeeper.codec.JSON)
    share = Share()
    counts: dict[str, int] = {}
    for number, path in files:
        claim = f"claim/{number:06}"
        claimed = store.txn(
            compare=[Compare.version(claim) == 0], success=[Op.put(claim, task)], request_id=f"{task}/{number}"
        )
        if not claimed.succeeded:
            continue  # the other task has it
        share.acknowledged.append(time.time())
        found = index(path)
        store.put(f"file/{number:06}", {"path": path, **found})
        share.acknowledged.append(time.time())
        share.files += 1
        counts = add(counts, found)
    add_to_totals(store, task, counts)
    share.acknowledged.append(time.time())
    return share


def add_to_totals(store: raykeeper.Client, task: str, counts: dict[str, int]) -> None:
    """Optimistic: read, add, write if nobody wrote in between; with a mark, so that a second run adds nothing."""
    mark = f"counted/{task}"
    while store.get(mark) is None:
        totals = store.get("totals")
        store.txn(
            compare=[
                Compare.mod_revision("totals") == (totals.mod_revision if totals else 0),
                Compare.version(mark) == 0,
            ],
            success=[Op.put("totals", add(totals.value if totals else {}, counts)), Op.put(mark, counts)],
        )


class Prober(threading.Thread):
    """Writes all the time, so that the time without acknowledged writes can be told."""

    def __init__(self, kv: raykeeper.Client) -> None:
        super().__init__(daemon=True)
        self._kv = kv
        self._over = threading.Event()
        self.acknowledged: list[float] = []
        self.unknown = 0

    def run(self) -> None:
        """Put one key, again and again."""
        while not self._over.wait(0.01):
            try:
                self._kv.put("probe", str(len(self.acknowledged)))
                self.acknowledged.append(time.time())
            except raykeeper.KeeperError:
                self.unknown += 1

    def end(self) -> None:
        """Stop writing; returns when the last write is over."""
        self._over.set()
        self.join()


def standard_library(limit: int | None) -> list[str]:
    """All Python files of the standard library, or the first so many."""
    root = Path(sysconfig.get_path("stdlib"))
    others = {"site-packages", "dist-packages"}
    files = sorted(str(p) for p in root.rglob("*.py") if p.is_file() and not others & set(p.relative_to(root).parts))
    return files[:limit]


def kill_leader(cluster: raykeeper.Cluster) -> tuple[str, int]:
    """SIGKILL the leader's process: (its name, its pid)."""
    while True:
        status = cluster.status()
        for member in status.members:
            if member.id == status.leader and member.pid:
                os.kill(member.pid, signal.SIGKILL)
                return member.name, member.pid


def run(cluster: raykeeper.Cluster, files: list[str]) -> list[str]:
    """The job; a line for each thing that is wrong."""
    kv = cluster.client().namespace("stdlib/")
    numbered = list(enumerate(files))
    batches = [numbered[at : at + FILES_PER_TASK] for at in range(0, len(numbered), FILES_PER_TASK)]
    prober = Prober(kv)
    prober.start()
    began = time.time()
    waiting = [
        index_files.remote(kv, f"{number}{side}", batch if side == "a" else batch[::-1])
        for number, batch in enumerate(batches)
        for side in "ab"
    ]
    shares: list[Share] = []
    killed: tuple[str, int] | None = None
    killed_at = 0.0
    with progress("indexing", len(files)) as advance:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=120)
            if not done:
                return ["no task finished within 120 s"]
            for share in ray.get(done):
                shares.append(share)
                advance(share.files)
            if killed is None and 2 * sum(share.files for share in shares) >= len(files):
                killed_at = time.time()
                killed = kill_leader(cluster)
                console.print(f"killed the leader {killed[0]} (pid {killed[1]}); Ray may have a word on it")
    seconds = time.time() - began
    prober.end()

    with progress("single pass to compare", len(files)) as advance:
        expected = []
        for path in files:
            expected.append({"path": path, **index(path)})
            advance(1)
    wrong = compare(kv, expected, shares)
    if killed is None:
        wrong.append("the leader was not killed")
    status = cluster.status()
    if killed and any(member.pid == killed[1] for member in status.members):
        wrong.append(f"the killed process {killed[1]} is still listed")

    by_tasks = sorted(at for share in shares for at in share.acknowledged)
    everything = sorted([*by_tasks, *prober.acknowledged])
    gaps = [(after - before, after) for before, after in pairwise(everything) if after > killed_at]
    totals = {name: sum(record[name] for record in expected) for name in FIELDS}
    table = Table(title="the standard library, indexed", show_header=False)
    for name, value in (
        ("files", f"{totals['files']:,} ({totals['unreadable']} no Python)"),
        ("lines, tokens", f"{totals['lines']:,}, {totals['tokens']:,}"),
        ("acknowledged writes", f"{len(everything):,} ({len(by_tasks):,} of the tasks, the others a prober's)"),
        ("writes/s", f"{len(everything) / seconds:,.0f} over {seconds:.1f} s, while tokenizing"),
        ("leader killed", f"{killed[0]} at {killed_at - began:.1f} s" if killed else "no"),
        ("leader now", f"{next((m.name for m in status.members if m.id == status.leader), 'none')}"),
        ("writes stood still for", f"{max(gaps)[0]:.2f} s" if gaps else "unknown"),
        ("totals", "equal to a single pass" if not wrong else "WRONG"),
    ):
        table.add_row(name, value)
    console.print(table)
    return wrong


def compare(kv: raykeeper.Client, expected: list[dict[str, Any]], shares: list[Share]) -> list[str]:
    """What in the store is not as a single pass says."""
    store = kv.with_codec(raykeeper.codec.JSON)
    wrong = []
    records = {int(item.key[5:]): item.value for item in store.range(prefix="file/")}
    claims = {int(item.key[6:]): item for item in store.range(prefix="claim/")}
    marks = store.range(prefix="counted/")
    for number, record in enumerate(expected):
        if records.get(number) != record:
            wrong.append(f"{record['path']}: recorded as {records.get(number)}, not {record}")
        if number not in claims or claims[number].version != 1:
            wrong.append(f"{record['path']}: claimed {claims[number].version if number in claims else 0} times")
    if len(records) != len(expected) or len(claims) != len(expected):
        wrong.append(f"{len(records)} records and {len(claims)} claims for {len(expected)} files")
    if len(marks) != len(shares):
        wrong.append(f"{len(marks)} tasks counted of {len(shares)}")
    item = store.get("totals")
    totals = item.value if item else {}
    for name in FIELDS:
        single = sum(record[name] for record in expected)
        if totals.get(name) != single:
            wrong.append(f"{name}: total {totals.get(name)}, single pass {single}")
    return wrong


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Any]:
    """A progress bar; yields the function that moves it."""
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)


def main() -> int:
    """Set up a Ray and a cluster of its own, run the job, take both away again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("spec", nargs="?", default=None, help="cluster spec, such as cluster.yaml")
    parser.add_argument("--limit", type=int, help="index only the first so many files")
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="rk-")  # short: Ray puts sockets into it
    files = standard_library(arguments.limit)
    console.print(f"{len(files):,} files of Python {sys.version.split()[0]}; starting Ray and the cluster")
    os.environ[FAST_DEATH] = "0"  # callers learn of a death in milliseconds
    try:
        spec = raykeeper.ClusterSpec.load(arguments.spec, data_dir=f"{folder}/data")
        ray.init(
            address="local",
            num_cpus=max(2, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=f"{folder}/ray",
        )
        cluster = raykeeper.launch(spec)
        wrong = run(cluster, files)
        cluster.destroy()
    except raykeeper.KeeperError as error:
        wrong = [f"{type(error).__name__}: {error}"]
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    for line in wrong[:20]:
        console.print(f"wrong: {line}", style="red", markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
