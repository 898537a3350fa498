"""A distributed job on Ray: an elected trainer, workers that take shards from a queue, a checkpoint under a guard.

Every process runs the same code. One of them is elected trainer: it gathers what the workers have computed and commits
the checkpoint through its guard, so that a trainer that was overtaken can never put an old one over a newer one. All
of them take shards from the queue; a shard whose worker dies comes back. The trainer is killed, and so is a worker.
At the end the checkpoint holds the sum over all shards, each counted once. Exit status 1 if not.

    python examples/distributed_job.py [--shards N]
"""

from __future__ import annotations

import argparse
import os
import threading
import time

import ray
from stage import check, kill, kill_leader, say, stage, until

import raykeeper
from raykeeper import Op

SIZE = 1000
TTL = 3.0


@ray.remote(num_cpus=0)
class Process:
    """A worker that may become the trainer."""

    def __init__(self, kv: raykeeper.Client, shards: int) -> None:
        self.kv = kv.with_codec(raykeeper.codec.JSON)
        self.shards = shards
        threading.Thread(target=self.stand_for_trainer, daemon=True).start()
        threading.Thread(target=self.work, daemon=True).start()

    def pid(self) -> int:
        """Its process id."""
        return os.getpid()

    def work(self) -> None:
        """Take a shard, compute, and hand the result in together with the shard, under the claim's guard."""
        queue = self.kv.queue("shards", ttl=TTL)
        while True:
            try:
                with queue.claim() as claim:
                    low = claim.item * SIZE
                    time.sleep(0.05)  # so that there is something to interrupt
                    claim.guard().put(f"result/{claim.item}", sum(range(low, low + SIZE)))
            except raykeeper.KeeperError:
                continue  # lost, or the cluster was away: the shard comes back

    def stand_for_trainer(self) -> None:
        """Campaign; while elected, gather and commit."""
        while True:
            try:
                with self.kv.election("trainer", ttl=TTL) as election:
                    election.proclaim(os.getpid())
                    self.train(election.guard())
            except raykeeper.KeeperError:
                continue

    def train(self, guard: raykeeper.Client) -> None:
        """Continue from the last checkpoint, whichever leader made it."""
        item = guard.get("checkpoint")
        checkpoint = item.value if item else {"shards": [], "sum": 0}
        while True:
            for result in guard.range(prefix="result/"):
                shard = int(result.key.removeprefix(b"result/"))
                if shard not in checkpoint["shards"]:  # its worker may have died before it said so, and it was redone
                    shards = [*checkpoint["shards"], shard]
                    checkpoint = {"shards": shards, "sum": checkpoint["sum"] + result.value}
                # The checkpoint and the end of the result are one step, or none if another one is trainer.
                guard.txn(success=[Op.put("checkpoint", checkpoint), Op.delete(result.key)])
            time.sleep(0.05)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shards", type=int, default=60)
    arguments = parser.parse_args()
    with stage() as cluster:
        kv = cluster.client().with_codec(raykeeper.codec.JSON)
        queue = kv.queue("shards")
        for shard in range(arguments.shards):
            queue.put(shard)
        processes = [Process.remote(cluster.client(), arguments.shards) for _ in range(4)]
        pids = {ray.get(process.pid.remote()) for process in processes}
        election = kv.election("trainer")

        def trained() -> int:
            item = kv.get("checkpoint")
            return len(item.value["shards"]) if item else 0

        def trainer() -> int:
            leader = election.leader()
            return int(leader.value) if leader is not None and leader.value in pids else 0

        until(lambda: trained() >= arguments.shards // 4, "a quarter")
        first = until(trainer, "a trainer")
        kill(first, f"the trainer, after {trained()} shards")
        second = until(lambda: trainer() not in (0, first) and trainer(), "another trainer")
        say(f"process {second} is trainer now")
        worker = next(pid for pid in pids if pid not in (first, second))
        kill(worker, "a worker")
        kill_leader(cluster)
        until(lambda: trained() == arguments.shards, "all shards", 120)
        until(lambda: len(queue) == 0, "an empty queue")
        checkpoint = kv.get("checkpoint")
        assert checkpoint is not None
        check(sorted(checkpoint.value["shards"]) == list(range(arguments.shards)), "every shard is in, once")
        check(checkpoint.value["sum"] == sum(range(arguments.shards * SIZE)), "and the sum is right")


if __name__ == "__main__":
    main()
