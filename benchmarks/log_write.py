"""What it costs to append to the Raft log and to sync it: ours beside RocksDB's write-ahead log, in turns.

    python benchmarks/log_write.py [--folder DIR] [--rounds N] [--members N]

Each round writes so many batches of one entry and of a hundred to each of them, one after the other; the medians of all
rounds are printed. ``--members`` processes do so at the same time on one disk, as the members of a test cluster do.
Absolute figures move from run to run; only the ratio of one run counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import msgspec
import rocksdict

from raykeeper.raft.messages import Entry, EntryKind, HardState
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.log.raft_log import RaftLog

VALUE = 330
"""Bytes of an entry: a put of 256 bytes with its key, session and sequence."""
BATCHES = {1: 200, 100: 40}
"""By entries in a batch, batches in a round."""

Write = Callable[[Sequence[Entry], HardState], None]
Log = tuple[Write, Callable[[], None]]


def ours(folder: str) -> Log:
    """Our log: append, and sync."""
    log = RaftLog.create(RocksDisk(), f"{folder}/ours", cache_bytes=8 << 20)

    def write(entries: Sequence[Entry], hard: HardState) -> None:
        log.append(entries, hard, sync=False)
        if log.last_index() - log.first_index() > 25_000:
            log.trim(log.last_index() - 5_000)

    return write, log._store.sync


def rocks(folder: str) -> Log:
    """RocksDB: entries by index and the hard state in one batch, and its write-ahead log synced."""
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(16 << 20)
    database = rocksdict.Rdict(f"{folder}/rocks", options)
    encode = msgspec.msgpack.Encoder().encode

    def write(entries: Sequence[Entry], hard: HardState) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        for entry in entries:
            batch.put(entry.index.to_bytes(8, "big"), bytes(10) + entry.data)
        batch.put(b"hard", encode(hard))
        database.write(batch)

    return write, lambda: database.flush_wal(True)


def measure(folder: str, rounds: int) -> dict[tuple[str, int], tuple[list[float], list[float]]]:
    """Seconds of each append and of each sync, by log and entries in a batch."""
    rng = random.Random(1)
    datas = [rng.randbytes(VALUE) for _ in range(100)]
    logs = {"ours": ours(folder), "RocksDB": rocks(folder)}
    last = dict.fromkeys(logs, 0)
    found: dict[tuple[str, int], tuple[list[float], list[float]]] = {
        (name, size): ([], []) for size in BATCHES for name in logs
    }
    for _ in range(rounds):
        for size, batches in BATCHES.items():
            for name, (write, sync) in logs.items():
                appends, syncs = found[name, size]
                for _ in range(batches):
                    first = last[name] + 1
                    entries = [Entry(first + n, 1, EntryKind.NORMAL, datas[n]) for n in range(size)]
                    last[name] += size
                    began = time.perf_counter()
                    write(entries, HardState(1, 1, first - 1))
                    written = time.perf_counter()
                    sync()
                    syncs.append(time.perf_counter() - written)
                    appends.append(written - began)
    return found


def one_member(folder: str, rounds: int, show: bool) -> None:
    """One process's work; the first of them prints what it has found."""
    os.makedirs(folder)
    found = measure(folder, rounds)
    for (name, size), (appends, syncs) in found.items() if show else ():
        slow = sorted(syncs)[len(syncs) * 99 // 100]
        print(
            f"{size:4} entries  {name:8}  append {statistics.median(appends) * 1e6:7.1f} us"
            f"  sync p50 {statistics.median(syncs) * 1e3:6.3f} p99 {slow * 1e3:6.3f} ms",
            flush=True,
        )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="on the disk to be measured; default: a temporary one")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--members", type=int, default=1)
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp(dir=arguments.folder)
    try:
        members = [
            multiprocessing.Process(target=one_member, args=(f"{folder}/{n}", arguments.rounds, n == 0))
            for n in range(arguments.members)
        ]
        for member in members:
            member.start()
        for member in members:
            member.join()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
