"""Distributed notification: an operator changes keys, workers act on them, and their progress vanishes with them.

Each job is a key; the workers watch it and start what is assigned to them. While a worker works, it reports its
progress in a temporary directory: keys under a lease, which are gone as soon as it is dead. The scheduler watches that
directory; when a worker that had not finished disappears from it, it assigns the job to another one. No process calls
another: they know only the keys. A worker is killed midway. Exit status 1 if a job was not done.

    python examples/scheduling_and_progress.py [--jobs N] [--steps N]
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections import Counter

import ray
from stage import check, kill, say, stage, until

import raykeeper

WORKERS = 3
TTL = 3.0


@ray.remote(num_cpus=0)
class Worker:
    """Does what is assigned to it."""

    def __init__(self, kv: raykeeper.Client, name: str) -> None:
        self.pid = os.getpid()
        self.kv = kv
        self.name = name
        watch = kv.watch(prefix="assigned/", only="put")
        threading.Thread(target=self.follow, args=(watch,), daemon=True).start()

    def follow(self, watch: raykeeper.Watch) -> None:
        """An operator changes a key; the worker that it is meant for acts."""
        for event in watch:
            job = event.kv.key.decode().removeprefix("assigned/")
            worker, steps = event.kv.text.split()
            if worker == self.name:
                threading.Thread(target=self.work, args=(job, int(steps)), daemon=True).start()

    def work(self, job: str, steps: int) -> None:
        """Work, and say how far it has come, as long as it lives."""
        with self.kv.lease(TTL) as lease:
            for step in range(steps):
                self.kv.put(f"progress/{job}/{self.name}", f"{100 * step // steps}", lease=lease)
                time.sleep(0.05)
            # It is done, and the report is not needed any more: both or neither.
            self.kv.txn(
                compare=[raykeeper.Compare.version(f"done/{job}") == 0],
                success=[raykeeper.Op.put(f"done/{job}", self.name)],
            )

    def process(self) -> int:
        """The process that it runs in."""
        return self.pid


class Scheduler(threading.Thread):
    """Assigns jobs, and assigns them again when their worker is gone."""

    def __init__(self, kv: raykeeper.Client, workers: list[str], steps: int) -> None:
        super().__init__(daemon=True)
        self.kv = kv
        self.workers = workers
        self.steps = steps
        self.gone: set[str] = set()
        self.again: list[str] = []
        self.watch = kv.watch(prefix="progress/", only="delete")

    def assign(self, job: str) -> None:
        """Give a job to the one that has the fewest."""
        held = Counter(item.text.split()[0] for item in self.kv.range(prefix="assigned/"))
        worker = min((name for name in self.workers if name not in self.gone), key=lambda name: held[name])
        self.kv.put(f"assigned/{job}", f"{worker} {self.steps}")

    def run(self) -> None:
        """A worker whose progress vanishes before its job is done is gone."""
        for event in self.watch:
            _, job, worker = event.kv.key.decode().split("/")
            if self.kv.get(f"done/{job}") is None:
                self.gone.add(worker)
                self.again.append(job)
                self.assign(job)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60, help="of each job, 50 ms each")
    arguments = parser.parse_args()
    with stage() as cluster:
        kv = cluster.client()
        names = [f"worker-{number}" for number in range(WORKERS)]
        workers = {name: Worker.remote(kv, name) for name in names}
        pids = {name: ray.get(worker.process.remote()) for name, worker in workers.items()}
        scheduler = Scheduler(kv, names, arguments.steps)
        scheduler.start()
        jobs = [f"job-{number}" for number in range(arguments.jobs)]
        for job in jobs:
            scheduler.assign(job)

        def progress() -> dict[str, str]:
            return {item.key.decode(): item.text for item in kv.range(prefix="progress/")}

        until(lambda: any(key.endswith("worker-0") and int(done) > 20 for key, done in progress().items()), "progress")
        for key, percent in sorted(progress().items()):
            say(f"{key}: {percent} %")
        kill(pids["worker-0"], "worker-0")
        until(lambda: not any(key.endswith("worker-0") for key in progress()), "its progress has vanished")
        check(True, "what it had reported vanished with it")

        until(lambda: kv.range(prefix="done/", count_only=True).count == len(jobs), "all jobs", 120)
        done = {item.key.decode(): item for item in kv.range(prefix="done/")}
        check(set(done) == {f"done/{job}" for job in jobs}, f"all {len(jobs)} jobs are done")
        check(all(item.version == 1 for item in done.values()), "each once")
        check(scheduler.again, f"the killed worker's jobs were assigned again: {', '.join(sorted(scheduler.again))}")
        until(lambda: not progress(), "the temporary directory is empty")


if __name__ == "__main__":
    main()
