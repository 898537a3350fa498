"""Elections, barriers, latches, semaphores, queues, partitioners and services on real processes that are killed."""

from __future__ import annotations

import itertools
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray

from lab.ray.crowd import Crowd, by_pid, kill_leader, now, pid_of, results, sleep
from lab.ray.tools import Lateness, Made, told, wait_until
from raykeeper import Client, KeeperError, LockLost, Op

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

TTL = 3.0


@pytest.fixture(scope="module")
def kv(shared: Any) -> Client:
    return shared.client()


# --- election --------------------------------------------------------------------------------------------------------


def lead(kv: Client, terms: int) -> list[int]:
    """Campaign, lead for a moment and proclaim, this many times; the tokens."""
    tokens: list[int] = []
    tries = 0
    while len(tokens) < terms:
        tries += 1
        assert tries < 100
        term = len(tokens)
        election = kv.election("lead", ttl=TTL)
        try:
            election.campaign(f"{os.getpid()}")
            tokens.append(election.token)
            for step in range(3):
                election.proclaim(f"{os.getpid()} {term}.{step}")
                election.guard().put("leader", f"{election.token}")
                sleep(0.1)
            election.resign()
        except (LockLost, KeeperError):
            continue  # on a crowded machine a lease may be lost, in the line or in office
    return tokens


def observe(kv: Client) -> list[tuple[int, bytes]]:
    """What an observer sees, until somebody says that it is over."""
    seen = []
    for leader in kv.election("lead").observe():
        if not seen:
            kv.put(f"observing/{os.getpid()}", "")
        seen.append((leader.token, leader.value))
        if leader.value == b"over":
            return seen
    return seen


def test_never_two_leaders_with_one_token_and_observers_see_each_in_order(kv: Client, crowd: Crowd) -> None:
    people = crowd.take(6)
    first = kv.election("lead")
    first.campaign("0")
    watching = [person.start(observe, kv) for person in people[:2]]
    wait_until(lambda: kv.range(prefix="observing/", count_only=True).count == 2, what="observers")
    watch = kv.watch("leader")
    running = [person.start(lead, kv, 4) for person in people[2:]]
    first.resign()
    pid = wait_until(
        lambda: int((leader := first.leader()) is not None and leader.value.split()[0]), what="a leader that can die"
    )
    by_pid(people, pid).kill()
    outcomes = results(running, 300)
    last = kv.election("lead", ttl=TTL)
    assert last.campaign("over", timeout=90)
    history = [int(event.kv.value) for event in told(watch, kv.revision())]
    tokens = [token for outcome in outcomes if isinstance(outcome, list) for token in outcome]
    assert sum(isinstance(outcome, Exception) for outcome in outcomes) == 1
    assert len(tokens) == len(set(tokens)) == 12
    assert history == sorted(history)
    saw = results(watching, 90)
    for seen in saw:
        led = [token for token, _ in itertools.groupby(token for token, _ in seen)]
        assert led == sorted(set(led)), "leaders were seen out of order, or twice"
        assert set(tokens) <= set(led), "a leader was missed"
    last.resign()


# --- barrier, latch, semaphore ---------------------------------------------------------------------------------------


def meet(kv: Client, epochs: int, parties: int) -> list[tuple[float, float]]:
    """Arrive at one barrier again and again: when, and when it opened."""
    barrier = kv.barrier("meet", parties, ttl=TTL)
    times = []
    for _ in range(epochs):
        arrived = now()
        assert barrier.wait(60)
        times.append((arrived, now()))
    return times


def test_a_barrier_opens_for_all_and_a_party_that_dies_is_replaced(kv: Client, crowd: Crowd) -> None:
    people = crowd.take(5)
    doomed = people[0].start(meet, kv, 1, 4)
    space = kv.reserved("barrier")
    wait_until(lambda: space.range(prefix="meet/p/", count_only=True).count == 1, what="a party")
    people[0].kill()
    wait_until(lambda: space.range(prefix="meet/p/", count_only=True).count == 0, what="its end")
    times = results([person.start(meet, kv, 5, 4) for person in people[1:]], 300)
    for epoch in range(5):
        assert max(each[epoch][0] for each in times) <= min(each[epoch][1] for each in times)
    assert isinstance(results([doomed], 90)[0], Exception)


def count_down(kv: Client, number: int) -> bool:
    latch = kv.latch("done", 4)
    if number < 4:
        latch.count_down(request_id=f"shard-{number}")
        latch.count_down(request_id=f"shard-{number}")  # as Ray does, when it runs a task again
    return latch.wait(60)


def test_a_latch_opens_once_all_have_counted(kv: Client, crowd: Crowd) -> None:
    people = crowd.take(5)
    waiting = people[4].start(count_down, kv, 4)
    three = [person.start(count_down, kv, number) for number, person in enumerate(people[:3])]
    wait_until(lambda: kv.latch("done", 4).left() == 1, what="three of four")
    assert kv.latch("done", 4).wait(0.2) is False
    people[0].kill()  # who has counted has counted
    last = people[3].start(count_down, kv, 3)
    assert results([waiting, last, *three[1:]], 90) == [True] * 4


def use_slots(kv: Client, path: str, rounds: int) -> int:
    """Hold one of three slots now and then; note who is inside, by the cluster's own order."""
    refused = 0
    for _ in range(rounds):
        semaphore = kv.semaphore("slots", 3, ttl=TTL)
        try:
            semaphore.acquire()
            guard = semaphore.guard()
            guard.put(f"slots/{semaphore.token}", "in")
            sleep(0.1)
            guard.delete(f"slots/{semaphore.token}")
            semaphore.release()
        except (LockLost, KeeperError):
            refused += 1
    return refused


def test_a_semaphore_is_never_over_its_limit_under_guards(
    kv: Client, crowd: Crowd, tmp_path: Path, stopped: list[int]
) -> None:
    """A holder that died leaves its key: it counts until its slot is free again, which its lease tells."""
    people = crowd.take(6)
    inside = 0
    running = [person.start(use_slots, kv, "", 5) for person in people]
    semaphore = kv.semaphore("slots", 3)
    holders = wait_until(lambda: len(semaphore.holders()) == 3 and semaphore.holders(), what="three holders")
    by_pid(people, pid_of(holders[0].who)).kill()
    paused = next(each for each in holders[1:] if pid_of(each.who) != pid_of(holders[0].who))
    person = by_pid(people, pid_of(paused.who))
    stopped.append(person.pid)
    person.stop()
    wait_until(lambda: all(each.token != paused.token for each in semaphore.holders()), what="the paused one's end")
    person.go_on()
    results(running, 300)
    # Every write under a guard lies between the entry and the end of a holder's place; count those at each revision.
    slots = kv.reserved("semaphore")
    watch = slots.watch(prefix="slots/p/", start_revision=1)
    entered = kv.watch(prefix="slots/", start_revision=1)
    changes: list[tuple[int, str, int]] = []
    for name, source in (("place", watch), ("write", entered)):
        for event in told(source, kv.revision()):
            lease_or_token = event.kv.key.rpartition(b"/")[2]
            changes.append(
                (event.kv.mod_revision, f"{name} {event.type}", int(lease_or_token, 16 if name == "place" else 10))
            )
    alive: dict[int, int] = {}
    most = 0
    for revision, what, number in sorted(changes):
        if what == "place put":
            alive.setdefault(number, revision)
        elif what == "place delete":
            alive.pop(number, None)
        elif what == "write put":
            order = sorted(alive.values())
            assert number in order[:3], f"at revision {revision} a write came from token {number}, beside {order[:3]}"
            most = max(most, min(3, len(order)))
            inside += 1
    assert inside >= 20
    assert most == 3


# --- queue -----------------------------------------------------------------------------------------------------------


def work(kv: Client, patience: float, pace: float) -> int:
    """Claim items until there are none for a while. What is done is written through the claim's guard."""
    queue = kv.queue("work", ttl=TTL)
    done = 0
    while True:
        try:
            claim = queue.claim(timeout=patience)
            if claim is None:
                return done
            key = f"done/{claim.item.decode()}"
            sleep(random.uniform(0, 2 * pace))
            # Exactly once: under the guard, and only if nobody has been here.
            claim.guard().txn([], [Op.put(key, f"{claim.token}")])
            claim.ack()
            done += 1
            kv.counter("acknowledged").add(1)
        except (LockLost, KeeperError):
            continue


def test_no_item_is_lost_and_none_acknowledged_twice(kv: Client, crowd: Crowd, stopped: list[int]) -> None:
    people = crowd.take(6)
    total = 60
    queue = kv.queue("work")
    for number in range(total):
        queue.put(f"{number}")
    acknowledged: Counter[bytes] = Counter()
    watch = kv.reserved("queue").watch(prefix="work/i/", start_revision=1, only="delete")
    running = [person.start(work, kv, 2 * TTL, 0.1) for person in people]
    wait_until(lambda: len(queue) < total - 10, what="some work done")
    people[0].kill()
    stopped.append(people[1].pid)
    people[1].stop()
    people[2].kill()
    sleep(TTL + 1)
    people[1].go_on()
    outcomes = results(running, 300)
    assert sum(isinstance(outcome, Exception) for outcome in outcomes) == 2
    assert len(queue) == 0
    acknowledged.update(event.kv.key for event in told(watch, kv.revision()))
    assert len(acknowledged) == total
    assert set(acknowledged.values()) == {1}
    assert {item.key for item in kv.range(prefix="done/")} == {b"done/%d" % number for number in range(total)}


# --- partitioner -----------------------------------------------------------------------------------------------------

PARTITIONS = 12


def own(kv: Client) -> int:
    """Be a member until it is over, and write through the guard of whatever is owned."""
    refused = 0
    with kv.partitioner("parts", PARTITIONS, ttl=TTL) as share:
        while not kv.get("all parts are over", timeout=60):
            for partition, token in share.mine():
                try:
                    share.guard(partition).put(f"part/{partition}", f"{token}")
                except (LockLost, KeeperError):
                    refused += 1
            sleep(0.05)
    return refused


def owners(kv: Client) -> dict[bytes, int]:
    """The lease that owns each partition."""
    return {item.key: item.lease for item in kv.reserved("partitioner").range(prefix="parts/o/")}


def test_owners_never_overlap_and_all_is_owned_again_soon(kv: Client, crowd: Crowd, stopped: list[int]) -> None:
    people = crowd.take(4)
    watch = kv.watch(prefix="part/")
    running = [person.start(own, kv) for person in people[:3]]

    def spread(members: int) -> bool:
        leases = Counter(owners(kv).values())
        return (
            sum(leases.values()) == PARTITIONS
            and len(leases) == members
            and max(leases.values()) <= -(-PARTITIONS // members)
        )

    def within(seconds: float, members: int, what: str) -> None:
        began = now()
        with Lateness(kv) as late:
            wait_until(lambda: spread(members), what=f"all owned by {members} after {what}")
            took = now() - began
        assert took <= seconds + late.tolerance, f"{took:.1f} s until all were owned after {what}"

    within(20, 3, "the beginning")
    joined = people[3].start(own, kv)
    wait_until(lambda: len(kv.reserved("partitioner").range(prefix="parts/m/")) == 4, what="a join")
    within(TTL + 2, 4, "a join")
    people[3].kill()
    within(TTL + 2 + 1, 3, "a death")
    stopped.append(people[0].pid)
    people[0].stop()
    within(TTL + 2 + 1, 2, "a pause")
    people[0].go_on()
    within(TTL + 2, 3, "its end")
    written = lambda: {item.key for item in kv.range(prefix="part/")}  # noqa: E731
    wait_until(
        lambda: len(written()) == PARTITIONS,
        what=lambda: f"all written; {sorted(written())} are, and the owners' leases are {owners(kv)}",
    )
    kv.put("all parts are over", "")
    outcomes = results(running, 300)
    assert not any(isinstance(outcome, Exception) for outcome in outcomes)
    assert isinstance(results([joined], 90)[0], Exception)
    assert owners(kv) == {}
    last: dict[bytes, int] = {}
    for event in told(watch, kv.revision()):
        token = int(event.kv.value)
        assert token >= last.get(event.kv.key, 0), "an owner has written after the next one"
        last[event.kv.key] = token
    assert {item.key for item in kv.range(prefix="part/")} == set(last), "a change that the watch was not told of"
    assert len(last) == PARTITIONS


# --- registry --------------------------------------------------------------------------------------------------------


def serve(kv: Client, number: int) -> None:
    with kv.registry("api").register("ranker", f"host:{number}", ttl=TTL, metadata={"pid": os.getpid()}):
        sleep(600)


def test_a_dead_service_disappears_and_watchers_are_told(kv: Client, crowd: Crowd) -> None:
    people = crowd.take(3)
    for number, person in enumerate(people):
        person.start(serve, kv, number)
    registry = kv.registry("api")
    wait_until(lambda: len(registry.lookup("ranker")) == 3, what="three services")
    changes = registry.watch()
    assert {next(changes).service.address for _ in range(3)} == {"host:0", "host:1", "host:2"}
    people[1].kill()
    began = now()
    with Lateness(kv) as late:
        gone = next(changes)
        took = now() - began
    assert (gone.type, gone.service.address) == ("down", "host:1")
    assert took < TTL + 1.5 + late.tolerance
    assert {service.address for service in registry.lookup()} == {"host:0", "host:2"}
    for person in people:
        if person.alive:
            person.kill()


# --- all of them, while the leader dies ------------------------------------------------------------------------------


def use_all(kv: Client, rounds: int) -> int:
    """A little of everything, each call with all the time in the world."""
    total = 0
    for _ in range(rounds):
        with kv.lock("all", ttl=15) as lock:
            lock.guard().put("all/lock", "1")
        kv.queue("all", ttl=15).put("item")
        claim = kv.queue("all", ttl=15).claim()
        assert claim is not None
        claim.ack()
        kv.counter("all").add(1)
        assert kv.barrier("all", 3, ttl=15).wait(60)
        total += 1
    return total


def test_everything_goes_on_when_leaders_die(clusters: Made, crowd: Crowd) -> None:
    cluster = clusters.launch()
    kv = cluster.client().with_timeout(30)
    people = crowd.take(3)
    running = [person.start(use_all, kv, 25) for person in people]
    counter = kv.counter("all")
    for step in (10, 35):
        wait_until(lambda step=step: counter.value() >= step, what=f"{step} additions")  # type: ignore[misc]
        kill_leader(cluster)
    assert results(running, 300) == [25] * 3
    assert counter.value() == 75
    assert len(kv.queue("all")) == 0
