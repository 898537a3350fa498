"""A gang of actors that trains together: rendezvous with generations, ranks, a leader, checkpoints under its guard.

The workers come and go; those that are there train. Each one registers under a lease and stands for leader. The
leader makes a *plan* whenever the set of workers changes: a generation, which only grows, and a rank for each worker.
All of a generation meet at a barrier, load the checkpoint and train, step by step. A worker that is lost leaves the
others waiting at the barrier of a step; as soon as the plan is overtaken they meet again, as the next generation, at
the last checkpoint. Only the leader of the newest plan can commit one: the guard of its election refuses an overtaken
leader, and the same transaction compares the generation.

The example kills a worker, starts another one in its place, and kills the leader. Each step must count once, with
the work of every rank in it. Exit status 1 if not.

    python examples/training_gang.py [--steps N]
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from typing import Any

import ray
from stage import check, kill, say, stage, until

import raykeeper
from raykeeper import Compare, Op

WORLD = 3
TTL = 3.0
ROWS = 600  # of the data that each step goes over, split among the ranks


class Overtaken(Exception):
    """The plan that this worker trained by is no longer the newest."""


class Gang:
    """One worker's place in a gang: copy this class.

    ::

        gang = Gang(kv, "llm", "worker-a")
        while not done:
            try:
                plan = gang.meet()       # waits until this worker is in a plan, and all of it have come
                train(plan)              # calls gang.step_barrier(plan) each step, gang.commit(plan, ...) on rank 0
            except (Overtaken, raykeeper.KeeperError):
                continue                 # a worker was lost, or has come: meet again
    """

    def __init__(self, kv: raykeeper.Client, name: str, worker: str, at_least: int = 1) -> None:
        self.kv = kv.namespace(f"gang/{name}/").with_codec(raykeeper.codec.JSON)
        self.worker = worker
        self.at_least = at_least
        self.election = self.kv.election("leader", ttl=TTL)
        self.registration = self.kv.registry("workers").register(worker, worker, ttl=TTL)
        self.plan = self.kv.cached("plan")  # the newest plan, kept up to date in this process
        self.met = 0  # the generation that this worker has met last
        threading.Thread(target=self._lead, daemon=True).start()

    # -- every worker -----------------------------------------------------------------------------------------------

    def meet(self) -> dict[str, Any]:
        """Wait for a plan with this worker in it, and for the others that are in it.

        A worker that is back without a newer plan has failed in this one, and the others wait for it at a step: it asks
        for another plan, for all of them.
        """
        while True:
            plan = self.newest()
            if plan["generation"] == self.met:
                self.kv.put(f"failed/{self.met}", self.worker)
                while self.newest()["generation"] == self.met:
                    time.sleep(0.02)
            elif self.worker in plan["ranks"]:
                self.met = plan["generation"]
                if self._gather(plan, "start"):
                    return plan
            else:
                time.sleep(0.02)

    def step_barrier(self, plan: dict[str, Any]) -> None:
        """Wait for the others of the generation; raises ``Overtaken`` once there is a newer one."""
        if not self._gather(plan, "step"):
            raise Overtaken(plan["generation"])

    def _gather(self, plan: dict[str, Any], where: str) -> bool:
        # A barrier of this generation alone: nobody of an earlier one is ever counted. Between two waits it looks
        # whether the plan is overtaken; they get longer, so that all wait at the same time on a busy machine, too.
        barrier = self.kv.barrier(f"{where}/{plan['generation']}", parties=len(plan["ranks"]), ttl=TTL)
        patience = 0.5
        while self.newest()["generation"] == plan["generation"]:
            try:
                if barrier.wait(timeout=patience):
                    return True
            except raykeeper.LeaseLost:
                pass
            patience = min(8.0, 2 * patience)
        return False

    def newest(self) -> dict[str, Any]:
        """The newest plan that this process has heard of."""
        item = self.plan.get("plan")
        return item.value if item is not None else {"generation": -1, "ranks": {}, "leader": ""}

    # -- rank 0 -------------------------------------------------------------------------------------------------------

    def commit(self, plan: dict[str, Any], checkpoint: dict[str, Any]) -> None:
        """Make this the checkpoint, unless another one leads, or there is a newer plan."""
        try:
            done = self.election.guard().txn(
                compare=[Compare.value("plan") == plan],
                success=[Op.put("checkpoint", checkpoint), Op.delete(prefix="part/")],
            )
        except (raykeeper.LockLost, raykeeper.InvalidArgument) as error:  # it does not lead (any more)
            raise Overtaken(plan["generation"]) from error
        if not done.succeeded:
            raise Overtaken(plan["generation"])

    def _lead(self) -> None:
        while True:
            try:
                with self.election:
                    self.election.proclaim(self.worker)
                    self._make_plans(self.election.guard())
            except raykeeper.KeeperError:
                continue  # lost, or the cluster was away: stand again

    def _make_plans(self, guard: raykeeper.Client) -> None:
        """Another plan whenever the workers change, or one of them has failed. The leader has rank 0."""
        while not self.election.lost.is_set():
            here = sorted({service.name for service in self.kv.registry("workers").lookup()} | {self.worker})
            here.sort(key=lambda worker: worker != self.worker)
            ranks = {worker: rank for rank, worker in enumerate(here)}
            item = guard.get("plan")
            plan = item.value if item is not None else {"generation": 0, "ranks": {}}
            failed = guard.get(f"failed/{plan['generation']}") is not None
            if len(here) >= self.at_least and (failed or plan["ranks"] != ranks):
                new = {"generation": plan["generation"] + 1, "ranks": ranks, "leader": self.worker}
                guard.txn(success=[Op.put("plan", new), Op.delete(prefix="failed/")])
            time.sleep(0.05)


@ray.remote(num_cpus=0)
class Worker:
    """Trains: each step sums its share of the rows, and rank 0 puts the shares together."""

    def __init__(self, kv: raykeeper.Client, name: str) -> None:
        self.gang = Gang(kv, "example", name, at_least=2)
        self.kv = self.gang.kv
        threading.Thread(target=self.train, daemon=True).start()

    def pid(self) -> int:
        """Its process id."""
        return os.getpid()

    def train(self) -> None:
        """Until the process ends."""
        while True:
            try:
                self.train_generation(self.gang.meet())
            except (Overtaken, raykeeper.KeeperError):
                continue  # meet again

    def train_generation(self, plan: dict[str, Any]) -> None:
        """From the last checkpoint on, until the plan is overtaken."""
        rank, size = plan["ranks"][self.gang.worker], len(plan["ranks"])
        while True:
            item = self.kv.get("checkpoint")
            checkpoint = item.value if item is not None else {"step": 0, "sum": 0, "by": []}
            step = checkpoint["step"] + 1
            self.kv.put(f"part/{plan['generation']}/{step}/{rank}", sum(step * row for row in range(rank, ROWS, size)))
            self.gang.step_barrier(plan)  # all parts are there
            if rank == 0:
                parts = [each.value for each in self.kv.range(prefix=f"part/{plan['generation']}/{step}/")]
                assert len(parts) == size
                by = [*checkpoint["by"], plan["generation"]]
                self.gang.commit(plan, {"step": step, "sum": checkpoint["sum"] + sum(parts), "by": by})
            self.gang.step_barrier(plan)  # the checkpoint is there


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    with stage() as cluster:
        client = cluster.client()
        kv = client.namespace("gang/example/").with_codec(raykeeper.codec.JSON)
        workers = {f"w{number}": Worker.remote(client, f"w{number}") for number in range(WORLD)}
        pids = {name: ray.get(worker.pid.remote()) for name, worker in workers.items()}

        def plan() -> dict[str, Any]:
            item = kv.get("plan")
            return item.value if item is not None else {"generation": 0, "ranks": {}, "leader": ""}

        def step() -> int:
            item = kv.get("checkpoint")
            return item.value["step"] if item is not None else 0

        def trained(more: int) -> None:
            enough = step() + more
            until(lambda: step() >= enough, f"{more} more steps")

        until(lambda: len(plan()["ranks"]) == WORLD, "a plan with all of them")
        trained(steps // 4)
        first = plan()
        say(f"generation {first['generation']}: {first['ranks']}, at step {step()}")
        victim = next(name for name in first["ranks"] if name != first["leader"])
        kill(pids[victim], f"the worker {victim}")
        until(lambda: victim not in plan()["ranks"], "a plan without it")
        trained(steps // 4)
        say(f"generation {plan()['generation']}: {plan()['ranks']}, at step {step()}")

        workers["new"] = Worker.remote(client, "new")
        until(lambda: "new" in plan()["ranks"], "a plan with the new one")
        trained(steps // 4)
        second = plan()
        say(f"generation {second['generation']}: {second['ranks']}, at step {step()}")
        check(len(second["ranks"]) == WORLD, "the lost worker is replaced")

        pids["new"] = ray.get(workers["new"].pid.remote())
        kill(pids[second["leader"]], f"the gang's leader {second['leader']}")
        until(lambda: plan()["leader"] != second["leader"], "another leader")
        until(lambda: second["leader"] not in plan()["ranks"], "a plan without it")
        trained(steps // 4)
        say(f"generation {plan()['generation']}: {plan()['ranks']}, at step {step()}")

        checkpoint = kv.get("checkpoint")
        assert checkpoint is not None
        end, by = checkpoint.value["step"], checkpoint.value["by"]
        check(checkpoint.value["sum"] == sum(s * sum(range(ROWS)) for s in range(1, end + 1)), "every step counts once")
        check(len(by) == end and by == sorted(by), "generations follow one another")
        check(len(set(by)) >= 3, "it went on after each loss")


if __name__ == "__main__":
    main()
