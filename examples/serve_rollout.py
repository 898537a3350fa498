"""Ray Serve: replicas that take over flags and models within milliseconds, and one of them for the nightly job.

Each replica keeps a copy of ``config/`` (``cached``): a request reads flags from its own process's memory, and a
change reaches all replicas as fast as a watch delivers it, without a redeployment. The model is rolled out by
compare-and-set (:func:`roll_out`): a caller that names another version than the one that is current is refused, so two
operators cannot overwrite each other. All replicas stand for ``nightly``; the one that is elected does what is due,
once, under its guard.

The example changes a flag, rolls out a model, and kills the elected replica in the middle of the nightly job: Serve
starts another replica, and the job is done once. Exit status 1 if not. Needs ``pip install 'raykeeper[serve]'``.

    python examples/serve_rollout.py [--replicas N]
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from typing import Any

import ray
from ray import serve
from stage import check, kill, say, stage, until

import raykeeper
from raykeeper import Compare, Op

TTL = 3.0


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Model:
    """Answers with what its model makes of a number; copy ``__init__``, ``changed`` and ``nightly``."""

    def __init__(self, kv: raykeeper.Client) -> None:
        self.kv = kv.namespace("serve/").with_codec(raykeeper.codec.JSON)
        self.config = self.kv.cached("config/")  # in this process, at most milliseconds old
        self.model = self.load(1)
        self.changes = self.kv.on_change(prefix="config/", call=self.changed)
        threading.Thread(target=self.nightly, daemon=True).start()

    def load(self, version: int) -> dict[str, Any]:
        """In the real world: gigabytes."""
        return {"version": version, "factor": version}

    def changed(self, change: Any) -> None:
        """Called with what is there, then with each change, in order, on a thread of its own."""
        item = self.kv.get("config/model")
        if item is not None and item.value != self.model["version"]:
            self.model = self.load(item.value)  # requests go on with the old one until this line is done
        if isinstance(change, raykeeper.Event):  # for the example: when did this replica know it
            seen = {"key": change.kv.key.decode(), "revision": change.kv.mod_revision, "at": time.monotonic()}
            self.kv.put(f"seen/{change.kv.mod_revision}/{os.getpid()}", seen)

    def __call__(self, number: int) -> dict[str, Any]:
        """One request: flags and model are read from memory."""
        model = self.model
        shout = self.config.get("config/flags/shout")
        answer = {"answer": number * model["factor"], "version": model["version"], "pid": os.getpid()}
        return {**answer, "text": "LOUD"} if shout is not None and shout.value else answer

    def nightly(self) -> None:
        """The replica that is elected does what is due; what an earlier one had begun is done again from the start."""
        while True:
            try:
                with self.kv.election("nightly", ttl=TTL) as election:
                    election.proclaim(os.getpid())
                    while not election.lost.is_set():
                        for due in self.kv.range(prefix="due/"):
                            self.do(due.key.decode().removeprefix("due/"), election.guard())
                        time.sleep(0.1)
            except raykeeper.KeeperError:
                continue

    def do(self, night: str, guard: raykeeper.Client) -> None:
        """The job of one night: its result, its end and the mark that it was done are one step, or none."""
        guard.put(f"begun/{night}", os.getpid())
        time.sleep(0.5)
        guard.txn(
            compare=[Compare.version(f"done/{night}") == 0],
            success=[Op.put(f"done/{night}", os.getpid()), Op.delete(f"due/{night}")],
        )


def roll_out(kv: raykeeper.Client, old: int | None, new: int) -> bool:
    """Make another version current, if ``old`` still is (``None``: if none ever was)."""
    is_old = Compare.version("config/model") == 0 if old is None else Compare.value("config/model") == old
    return kv.txn(compare=[is_old], success=[Op.put("config/model", new)]).succeeded


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=3)
    replicas = parser.parse_args().replicas
    with stage() as cluster:
        kv = cluster.client().namespace("serve/").with_codec(raykeeper.codec.JSON)
        serve.start(http_options={"location": "NoServer"})
        handle = serve.run(Model.options(num_replicas=replicas).bind(cluster.client()))

        def ask(number: int) -> dict[str, Any]:
            return dict(handle.remote(number).result(timeout_s=60))

        def everywhere(revision: int, began: float, what: str) -> None:
            def seen() -> list[Any]:
                there = kv.range(prefix=f"seen/{revision}/").items
                return [item.value for item in there] if len(there) == replicas else []

            times = sorted(1000 * (each["at"] - began) for each in until(seen, f"{what} everywhere"))
            say(f"{what}: taken over by {len(times)} replicas after {times[0]:.1f} to {times[-1]:.1f} ms")

        check(ask(7)["answer"] == 7, "the first model answers")
        began = time.monotonic()
        everywhere(kv.put("config/flags/shout", True).revision, began, "the flag")
        check(all(ask(1)["text"] == "LOUD" for _ in range(20)), "each request has it")

        check(roll_out(kv, None, 1), "version 1 is current")
        began = time.monotonic()
        check(roll_out(kv, 1, 2), "version 2 is rolled out")
        check(not roll_out(kv, 1, 3), "who thinks that version 1 is current is refused")
        item = kv.get("config/model")
        assert item is not None
        everywhere(item.mod_revision, began, "the model")
        check(all(ask(7)["answer"] == 14 for _ in range(20)), "each request gets the new model")

        kv.put("due/monday", "")
        first = until(lambda: kv.get("begun/monday"), "the nightly job").value
        kill(first, "the replica in the middle of the nightly job")
        second = until(lambda: kv.get("done/monday"), "its end", 120)
        check(second.value != first, f"another replica, process {second.value}, has done it")
        check(second.version == 1 and kv.get("due/monday") is None, "once")
        check(
            until(lambda: _living(ask, first, replicas), "a replica in its place", 120), "all replicas are there again"
        )
        check(ask(7)["answer"] == 14, "with the new model")
        serve.shutdown()


def _living(ask: Any, dead: int, replicas: int) -> bool:
    try:
        pids = {ask(1)["pid"] for _ in range(8 * replicas)}
    except ray.exceptions.RayError:
        return False
    return dead not in pids and len(pids) == replicas


if __name__ == "__main__":
    main()
