"""Ray Train: checkpoints that only the newest worker group can commit.

When a worker is lost, Train starts the whole group again; a rank 0 of the group before may still run for a while, on a
node that is cut off say, and would put an old checkpoint over a newer one. Here rank 0 holds a lock as long as it
trains, and commits through its guard: who was overtaken is refused. The lock's token, which only grows, is the
generation of the group; each step's parts are kept under it. The checkpoint itself is small enough for RayKeeper
here; a large one goes to a folder named after generation and step, and only its name is committed.

The example kills a worker in the middle. Each step must count once, with the work of every rank in it. Exit status 1
if not. Needs ``pip install 'raykeeper[train]'``. examples/training_gang.py does the same with plain actors, a changing
number of workers, and without starting all of them again.

    python examples/ray_train.py [--steps N]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import threading
import time
from typing import Any

import ray.train
import ray.train.collective
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from stage import check, kill, say, stage, until

import raykeeper
from raykeeper import Op

WORLD = 2
ROWS = 600  # of the data that each step goes over, split among the ranks


def train(config: dict[str, Any]) -> None:
    """What each worker runs; copy what is done with ``lock``, ``generation`` and ``guard``."""
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    kv = config["kv"].namespace("train/").with_codec(raykeeper.codec.JSON)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(kv.lock("rank-0", ttl=5)) if rank == 0 else None
        generation = ray.train.collective.broadcast_from_rank_zero(lock.token if lock is not None else None)
        kv.put(f"worker/{generation}/{rank}", os.getpid())
        while True:
            item = kv.get("checkpoint")
            checkpoint = item.value if item is not None else {"step": 0, "sum": 0, "by": []}
            if checkpoint["step"] >= config["steps"]:
                return
            step = checkpoint["step"] + 1
            kv.put(f"part/{generation}/{step}/{rank}", sum(step * row for row in range(rank, ROWS, world)))
            time.sleep(config["pause"])
            ray.train.collective.barrier()  # all parts are there
            if lock is not None:
                parts = [each.value for each in kv.range(prefix=f"part/{generation}/{step}/")]
                assert len(parts) == world
                by = [*checkpoint["by"], generation]
                new = {"step": step, "sum": checkpoint["sum"] + sum(parts), "by": by}
                lock.guard().txn(success=[Op.put("checkpoint", new), Op.delete(prefix="part/")])
            ray.train.collective.barrier()  # the checkpoint is there
            ray.train.report({"step": step})


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds that each step takes longer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, stage() as cluster:
        kv = cluster.client().namespace("train/").with_codec(raykeeper.codec.JSON)
        config = {"kv": cluster.client(), "steps": arguments.steps, "pause": arguments.pause}

        def lose_one() -> None:
            def trained() -> int:
                item = kv.get("checkpoint")
                return item.value["step"] if item is not None else 0

            until(lambda: trained() >= arguments.steps // 3, "a third", 240)
            [item, *_] = kv.range(prefix="worker/", sort="create_revision", order="descend")
            kill(item.value, f"a worker, after {trained()} steps")

        killer = threading.Thread(target=lose_one, daemon=True)
        killer.start()
        trainer = DataParallelTrainer(
            train,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=WORLD, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(failure_config=FailureConfig(max_failures=3), storage_path=folder),
        )
        trainer.fit()
        killer.join()
        checkpoint = kv.get("checkpoint")
        assert checkpoint is not None
        by = checkpoint.value["by"]
        say(f"generations {sorted(set(by))} took {[by.count(each) for each in sorted(set(by))]} steps")
        right = sum(step * sum(range(ROWS)) for step in range(1, arguments.steps + 1))
        check(checkpoint.value["sum"] == right and len(by) == arguments.steps, "every step counts once")
        check(by == sorted(by) and len(set(by)) == 2, "a second group went on from the first one's checkpoint")


if __name__ == "__main__":
    main()
