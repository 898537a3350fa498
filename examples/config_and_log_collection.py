"""Publish and subscribe: configuration that is read once and then watched, and a log collection that splits its work.

Collectors on several processes share the log directories among themselves. Each follows the published configuration,
collects the lines of the directories that are its own, and commits how far it has come, together with what it has
counted, through the guard of that directory. A collector is killed: the others take its directories over, from where
the last commit says. At the end every line was collected once. Exit status 1 if not.

    python examples/config_and_log_collection.py [--directories N] [--lines N]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
from stage import check, kill, say, stage, until

import raykeeper
from raykeeper import Op


@ray.remote(num_cpus=0)
class Collector:
    """One machine of the log collection."""

    def __init__(self, kv: raykeeper.Client, root: str, directories: list[str], ttl: float) -> None:
        self.pid = os.getpid()
        self.kv = kv
        self.root = Path(root)
        self.share = kv.partitioner("log-collection", directories, ttl=ttl)
        item = kv.with_codec(raykeeper.codec.JSON).get("config/collector")  # read once at the start ...
        assert item is not None
        self.config: dict[str, Any] = item.value
        watch = kv.with_codec(raykeeper.codec.JSON).watch("config/collector", start_revision=item.mod_revision + 1)
        threading.Thread(target=self.follow, args=(watch,), daemon=True).start()
        self.share.join()
        threading.Thread(target=self.collect, daemon=True).start()

    def follow(self, watch: raykeeper.Watch) -> None:
        """... and followed from there on."""
        for event in watch:
            self.config = event.kv.value

    def collect(self) -> None:
        """Collect a few lines of each directory that is this one's, again and again."""
        while True:
            for directory, _ in self.share.mine():
                # If another worker owns it by now, that one continues from the last commit.
                with contextlib.suppress(raykeeper.LockLost):
                    self.collect_some(directory)
            time.sleep(self.config["pause"])

    def collect_some(self, directory: str) -> None:
        """Collect some lines, and commit that they are collected."""
        guard = self.share.guard(directory)
        offset = guard.get(f"offset/{directory}")
        done = int(offset.value) if offset else 0
        lines = (self.root / directory / "log").read_text().splitlines()[done : done + self.config["batch"]]
        if lines:
            collected = [Op.put(f"line/{directory}/{done + at:06}", line) for at, line in enumerate(lines)]
            guard.txn(success=[Op.put(f"offset/{directory}", f"{done + len(lines)}"), *collected])

    def about(self) -> tuple[int, list[str], dict[str, Any]]:
        """Its process, its directories, and the configuration that it goes by."""
        return self.pid, [directory for directory, _ in self.share.mine()], self.config


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directories", type=int, default=9)
    parser.add_argument("--lines", type=int, default=400, help="in each directory")
    parser.add_argument("--ttl", type=float, default=3.0, help="seconds until a dead collector's directories are free")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, stage() as cluster:
        directories = [f"app-{number}" for number in range(arguments.directories)]
        for directory in directories:
            (Path(root) / directory).mkdir()
            lines = [f"{directory} says {number}\n" for number in range(arguments.lines)]
            (Path(root) / directory / "log").write_text("".join(lines))
        kv = cluster.client()
        settings = kv.with_codec(raykeeper.codec.JSON)
        settings.put("config/collector", {"batch": 5, "pause": 0.3})
        collectors = [Collector.remote(kv, root, directories, arguments.ttl) for _ in range(3)]

        def split(among: list[Any]) -> list[int]:
            return sorted(len(each[1]) for each in ray.get([collector.about.remote() for collector in among]))

        even = [arguments.directories // 3] * 3
        until(lambda: sum(split(collectors)) == arguments.directories and split(collectors)[0] >= even[0], "a split")
        say(f"three collectors have {split(collectors)} directories")

        pid, had, _ = ray.get(collectors[0].about.remote())
        kill(pid, f"the collector of {', '.join(had)}")
        left = collectors[1:]
        until(lambda: sum(split(left)) == arguments.directories, "the others have them all")
        check(True, f"the other two took them over: {split(left)}")

        settings.put("config/collector", {"batch": 50, "pause": 0.01})  # the operator wants it faster
        until(lambda: all(each[2]["batch"] == 50 for each in ray.get([c.about.remote() for c in left])), "the news")
        check(True, "all collectors go by the new configuration")

        total = arguments.directories * arguments.lines
        until(lambda: kv.range(prefix="line/", count_only=True).count == total, "all lines", 120)
        items = list(kv.range(prefix="line/"))
        check(all(item.version == 1 for item in items), f"{total} lines, each collected once")
        check(
            [item.text for item in items if item.key.startswith(b"line/app-1/")]
            == [f"app-1 says {number}" for number in range(arguments.lines)],
            "and in order",
        )


if __name__ == "__main__":
    main()
