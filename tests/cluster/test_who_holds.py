"""Who holds, who waits and who is connected, as real processes say it: actors with and without a name, and a task."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import ray

from lab.ray.tools import wait_until
from raykeeper import Client, Cluster
from raykeeper.actors.this_process import start_of

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    """Takes a lock, or waits for it."""

    def __init__(self, kv: Client) -> None:
        self.kv = kv

    def take(self, name: str, max_wait: float | None = None) -> int:
        self.lock = self.kv.lock(name, ttl=30)
        self.lock.acquire(max_wait)
        return os.getpid()

    def end(self) -> None:
        self.lock.release()


def test_holder_and_waiter_say_who_they_are(shared: Cluster) -> None:
    kv = shared.client()
    began = time.time()
    actor: Any = ray.remote(num_cpus=0)(Worker)
    holder, waiter = actor.options(name="the-holder").remote(kv), actor.remote(kv)
    pid = ray.get(holder.take.remote("who"))
    waiting = waiter.take.remote("who")
    lock = kv.lock("who")
    (waits,) = wait_until(lock.waiters, what="a waiter")
    holds = lock.holder()
    assert holds is not None
    assert holds.owner is not None
    assert waits.owner is not None
    who = holds.owner.client
    context = ray.get_runtime_context()
    assert (who.pid, who.actor, who.node, who.job) == (pid, "the-holder", context.get_node_id(), context.get_job_id())
    assert who.started == start_of(pid)
    assert who.address == ray.nodes()[0]["NodeManagerAddress"]
    assert holds.owner.task == "Worker.take"
    for since in (who.since, holds.owner.since):
        assert began - 1 <= since <= time.time() + 1
    assert waits.owner.client.actor.startswith("Worker ")

    listed = {client.pid: client for client in shared.clients()}
    assert (listed[pid].actor, listed[pid].leases, listed[pid].open) == ("the-holder", 1, True)
    (lease,) = [lease for lease in kv.leases() if lease.owner is not None and lease.owner.client.pid == pid]
    assert lease.id == holds.lease

    ray.get(holder.end.remote())
    ray.get(waiting)
    ray.get(waiter.end.remote())


def raykeeper(cluster: Cluster, *arguments: str) -> str:
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAYKEEPER_CLUSTER": cluster.name,
    }
    done = subprocess.run(
        (sys.executable, "-m", "raykeeper", *arguments), env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_stopped_holder_is_marked_in_the_shell(shared: Cluster, stopped: list[int]) -> None:
    kv = shared.client()
    actor: Any = ray.remote(num_cpus=0)(Worker)
    holder = actor.options(name="a-stopped-one").remote(kv)
    pid = ray.get(holder.take.remote("shell/a"))
    other = kv.lock("shell/b")
    with other:
        found = json.loads(raykeeper(shared, "locks", "shell/", "-o", "json"))["locks"]
        assert [each["name"] for each in found] == ["shell/a", "shell/b"]
        (held,) = found[0]["holders"]
        assert (held["pid"], held["actor"], held["task"], held["ttl"]) == (pid, "a-stopped-one", "Worker.take", 30.0)
    assert "actor a-stopped-one (pid" in raykeeper(shared, "clients")

    os.kill(pid, signal.SIGSTOP)
    stopped.append(pid)
    (stuck,) = wait_until(
        lambda: [each for each in kv.namespace("shell/").in_use("lock") if each.stuck], seconds=120, what="a stuck one"
    )
    assert stuck.name == b"shell/a"
    os.kill(pid, signal.SIGCONT)
    ray.kill(holder)


def test_a_lease_names_the_task_that_made_it(shared: Cluster) -> None:
    kv = shared.client()

    def work(kv: Client) -> tuple[int, int]:
        lease = kv.lease(30, keep_alive=False)
        return lease.id, os.getpid()

    task: Any = ray.remote(num_cpus=0)(work)
    id, pid = ray.get(task.options(name="nightly export").remote(kv))
    owner = kv.time_to_live(id).owner
    assert owner is not None
    assert (owner.task, owner.client.pid, owner.client.actor) == ("nightly export", pid, "")
    mine = kv.time_to_live(kv.lease(30, keep_alive=False)).owner
    assert mine is not None
    assert (mine.task, mine.client.pid, mine.client.started) == ("", os.getpid(), start_of(os.getpid()))
