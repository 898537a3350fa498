"""Key-value storage: three processes move money between accounts while the cluster's leader is killed.

Each transfer is one transaction, which happens only if neither account has changed since it was read. At the end no
money was made or lost, now or at any revision of the past. Exit status 1 if that is not so.

    python examples/key_value.py [--transfers N]
"""

from __future__ import annotations

import argparse
import random

import ray
from stage import check, kill_leader, say, stage, until

import raykeeper
from raykeeper import Compare, Op

ACCOUNTS = 5
START = 100


@ray.remote(num_cpus=0)
def transfer(kv: raykeeper.Client, teller: int, transfers: int) -> int:
    """Move random amounts; how often an account had changed in between, so that it was tried again."""
    rng = random.Random(teller)
    accounts = kv.namespace("account/").with_codec(raykeeper.codec.JSON)
    retries = 0
    for number in range(transfers):
        source, target = rng.sample(range(ACCOUNTS), 2)
        while True:
            held = {item.key: item for item in accounts.range(prefix="")}
            one, other = held[b"%d" % source], held[b"%d" % target]
            amount = rng.randint(0, one.value)
            done = accounts.txn(
                compare=[
                    Compare.mod_revision(one.key) == one.mod_revision,
                    Compare.mod_revision(other.key) == other.mod_revision,
                ],
                success=[Op.put(one.key, one.value - amount), Op.put(other.key, other.value + amount)],
            )
            if done.succeeded:
                break
            retries += 1
        kv.put(f"progress/{teller}", f"{number + 1}")
    return retries


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--transfers", type=int, default=50, help="of each process")
    arguments = parser.parse_args()
    with stage() as cluster:
        kv = cluster.client()
        accounts = kv.namespace("account/").with_codec(raykeeper.codec.JSON)
        created = accounts.txn(success=[Op.put(f"{number}", START) for number in range(ACCOUNTS)]).revision
        tellers = [transfer.remote(kv, teller, arguments.transfers) for teller in range(3)]

        def moved() -> int:
            return sum(int(item.value) for item in kv.range(prefix="progress/"))

        until(lambda: moved() >= arguments.transfers, "a third of the transfers")
        kill_leader(cluster)
        retries = ray.get(tellers, timeout=300)
        say(f"{moved()} transfers, {sum(retries)} times another was faster")

        last = kv.revision()
        revisions = range(created, last + 1, max(1, (last - created) // 50))
        totals = {sum(item.value for item in accounts.range(prefix="", revision=each)) for each in revisions}
        check(totals == {ACCOUNTS * START}, f"{ACCOUNTS * START} in all accounts together, at every revision")
        check(moved() == 3 * arguments.transfers, "each transfer was made once")


if __name__ == "__main__":
    main()
