"""Ray jobs that know of each other: ``ray job submit -- python jobs.py ROLE``, each job a process that connects.

- ``load`` and ``report``: the report waits until two loads are done (a latch), whichever is submitted first.
- ``migrate``: only one of a kind runs (a lock); one that is submitted meanwhile ends at once and says who runs.
- ``cron``: any number of them may be submitted; one is elected, and does each tick once. If it dies, another one goes
  on.

The example submits them to a Ray of its own, kills the elected cron's driver, and looks at what came of it. Exit status
1 if it is not right. Needs ``pip install 'raykeeper[jobs]'``.

    python examples/jobs.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import ray
from stage import check, kill, say, stage, until

import raykeeper
from raykeeper import Compare, Op

TTL = 3.0


def load(kv: raykeeper.Client, part: str) -> None:
    """Load a part, and say so: for everybody who waits for all of them."""
    kv.put(f"loaded/{part}", f"rows of {part}")
    # Counted first, then marked, so that none is left out. A load that is submitted again is counted once: by the mark
    # whenever that is; by the request_id if it was killed between the two, for as long as answers are remembered.
    if kv.get(f"counted/{part}") is None:
        kv.latch("loaded", count=2).count_down(request_id=f"loaded/{part}")
        kv.put(f"counted/{part}", "")


def report(kv: raykeeper.Client, part: str) -> None:
    """Wait for the loads, however long they take; the latch stays open for all that come later."""
    kv.latch("loaded", count=2).wait()
    kv.put("report", ", ".join(item.text for item in kv.range(prefix="loaded/")))


def migrate(kv: raykeeper.Client, part: str) -> None:
    """Only one of these runs in the whole cluster."""
    lock = kv.lock("migration", ttl=TTL)
    if not lock.acquire(timeout=0):
        holder = lock.holder()
        print(f"a migration runs already, in {holder.who if holder else 'a job that has just ended'}")
        kv.put(f"refused/{part}", "")
        return
    guard = lock.guard()
    guard.put(f"migrating/{part}", "")
    while kv.get("migration-may-end") is None:  # in the real world: work
        time.sleep(0.05)
    guard.put("migrated-by", part)
    lock.release()


def cron(kv: raykeeper.Client, part: str) -> None:
    """While elected, do each tick; a tick that an earlier one has done is not done again."""
    while True:
        try:
            with kv.election("cron", ttl=TTL) as election:
                election.proclaim(f"{part} {os.getpid()}")
                guard = election.guard()
                while not election.lost.is_set():
                    tick = f"tick/{int(time.time())}"  # every second
                    done = Compare.version(tick) == 0
                    guard.txn(compare=[done], success=[Op.put(tick, part)])
                    time.sleep(0.2)
        except raykeeper.KeeperError:
            continue  # lost, or the cluster was away: stand again


ROLES = {"load": load, "report": report, "migrate": migrate, "cron": cron}


def ray_job(*arguments: str) -> None:
    """The command ``ray job``, at the Ray of the example."""
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "job", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"wrong: ray job {' '.join(arguments)}\n{done.stdout}{done.stderr}")


def submit(*arguments: str) -> None:
    """As a user would: ``ray job submit --no-wait -- python jobs.py ...``."""
    where = str(Path(__file__).parent)
    command = [
        "--submission-id",
        "-".join(arguments),
        "--working-dir",
        where,
        "--",
        sys.executable,
        "jobs.py",
        *arguments,
    ]
    ray_job("submit", "--no-wait", *command)
    say(f"submitted: jobs.py {' '.join(arguments)}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("role", nargs="?", choices=sorted(ROLES))
    parser.add_argument("part", nargs="?", default="")
    arguments = parser.parse_args()
    if arguments.role:
        ray.init(logging_level="ERROR")  # the Ray that runs the job
        ROLES[arguments.role](raykeeper.connect().namespace("jobs/"), arguments.part)
        return
    with stage(dashboard=True) as cluster:
        show(cluster.client().namespace("jobs/"))


def show(kv: raykeeper.Client) -> None:
    """Submit them, and look at what comes of it."""
    submit("report", "all")
    submit("load", "a")
    until(lambda: kv.get("loaded/a"), "the first load", 120)
    check(kv.get("report") is None, "the report waits")
    submit("load", "b")
    check(until(lambda: kv.get("report"), "the report", 120).text == "rows of a, rows of b", "it has both")

    submit("migrate", "first")
    until(lambda: kv.get("migrating/first"), "the migration", 120)
    submit("migrate", "second")
    until(lambda: kv.get("refused/second"), "the end of the second", 120)
    kv.put("migration-may-end", "")
    check(until(lambda: kv.get("migrated-by"), "its end", 120).text == "first", "one migration ran, the other did not")

    election = kv.election("cron")
    submit("cron", "one")
    leader = until(election.leader, "a cron", 120)
    submit("cron", "two")
    until(lambda: len(kv.in_use("election")[0].waiters) == 1, "another one that waits", 120)
    name, pid = leader.value.decode().split()
    kill(int(pid), f"the driver of cron {name}, which was elected")
    killed = kv.revision()
    until(lambda: (now := election.leader()) is not None and now.token != leader.token, "another cron", 120)
    tick = until(lambda: [item for item in kv.range(prefix="tick/") if item.create_revision > killed], "a tick")[0]
    check(tick.text == "two", "the other one goes on")
    check(all(item.version == 1 for item in kv.range(prefix="tick/")), "and each tick was done once")
    ray_job("stop", "cron-two")
    say("stopped the other one")
    until(lambda: election.leader() is None, "nobody is the cron", 120)


if __name__ == "__main__":
    main()
