"""Locks on real processes, which are killed and stopped while they hold them."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from lab.ray.crowd import Crowd, by_pid, kill_leader, now, pid_of, results, sleep
from lab.ray.tools import Lateness, Made, leader, serving, wait_until
from raykeeper import Client, KeeperError, LockLost

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

TTL = 6.0
HOLD, LONG = 0.15, 2.0
"""Seconds of a turn; long ones while holders are harmed, so that some are left on a slow machine too."""


def hold(kv: Client, path: str, numbers: list[int]) -> list[tuple[int, int, str]]:
    """Contenders of one process: each takes one turn, and writes all the while, unfenced and through its guard."""
    outcomes: list[tuple[int, int, str]] = []

    def contend(number: int) -> None:
        lock = kv.lock("the-lock", ttl=TTL)
        token, end = 0, "refused"
        try:
            lock.acquire()
            token, guard = lock.token, lock.guard()
            began, working = now(), True
            while working:  # once more at the end: a process that was stopped does not know
                working = now() < began + (HOLD if kv.get("all harm is done") else LONG)
                with open(path, "a") as file:
                    file.write(f"{token}\n")
                guard.put("guarded", f"{token}")
                sleep(0.01)
            end = "done"
            lock.release()
        except LockLost:
            end = "overtaken"
        except KeeperError as error:
            end = f"{type(error).__name__}: {error}"
        outcomes.append((number, token, end))

    threads = [threading.Thread(target=contend, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_exclusive_means_exclusive(clusters: Made, crowd: Crowd, tmp_path: Path, stopped: list[int]) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    people = crowd.take(8)
    assert len({person.pid for person in people}) == 8
    unfenced = tmp_path / "unfenced"
    unfenced.touch()
    history: list[int] = []
    watch = kv.watch("guarded")

    def follow() -> None:
        for event in watch:
            history.append(int(event.kv.value))

    threading.Thread(target=follow, daemon=True).start()

    contenders = 50
    shares = [list(range(contenders))[number::8] for number in range(8)]
    running = [person.start(hold, kv, str(unfenced), share) for person, share in zip(people, shares, strict=True)]
    lock = kv.lock("the-lock")
    wait_until(lambda: len(lock.waiters()) > contenders // 2, what="a line")

    def holder_of_another_process(than: set[int]) -> Any:
        held = lock.holder()
        return held if held is not None and pid_of(held.who) not in than else None

    harmed: set[int] = set()

    def stop_a_holder() -> None:
        """Stop a holder for longer than its TTL, until somebody else has written."""
        while True:
            held = wait_until(lambda: holder_of_another_process(harmed), seconds=120, what="a holder")
            person = by_pid(people, pid_of(held.who))
            stopped.append(person.pid)
            person.stop()
            still = lock.holder()
            if still is not None and still.token == held.token and f"{held.token}\n" in unfenced.read_text():
                break
            person.go_on()
        harmed.add(person.pid)
        wait_until(lambda: any(token > held.token for token in history), seconds=120, what="another holder")
        person.go_on()

    def kill_a_holder() -> None:
        held = wait_until(lambda: holder_of_another_process(harmed), seconds=120, what="a holder")
        person = by_pid(people, pid_of(held.who))
        person.kill()
        harmed.add(person.pid)
        wait_until(lambda: any(token > held.token for token in history), seconds=120, what="another holder")

    stop_a_holder()
    kill_leader(cluster)
    kill_a_holder()
    stop_a_holder()
    kv.put("all harm is done", "")
    outcomes = results(running, 300)
    kv.put("guarded", f"{2**62}")
    wait_until(lambda: bool(history) and history[-1] == 2**62, what="the end of history")

    said = [outcome for each in outcomes if isinstance(each, list) for outcome in each]
    assert sum(isinstance(each, Exception) for each in outcomes) == 1, "one process was killed"
    # Each that lived had its turn, or was stopped so long that its place was gone.
    lost = [outcome for outcome in said if outcome[2] != "done"]
    excused = {number for person, share in zip(people, shares, strict=True) if person.pid in harmed for number in share}
    assert [outcome for outcome in lost if outcome[0] not in excused] == []
    assert sum(outcome[2] == "done" for outcome in said) >= contenders - len(excused)
    # Turns were taken in the order of arrival, and nobody's write came after a later holder's.
    assert history == sorted(history), "an overtaken holder has written through its guard"
    finished = [token for _, token, end in said if end == "done"]
    assert set(finished) <= set(history)
    # The faults did something: unfenced, an overtaken holder has written.
    written = [int(line) for line in unfenced.read_text().split()]
    assert any(a > b for a, b in itertools.pairwise(written)), "nobody was overtaken: this proves nothing"


def take_and_stall(kv: Client, ttl: float) -> tuple[float, float]:
    """Hold a lock until it is lost: when that was, and when it began."""
    lock = kv.lock("cut", ttl=ttl)
    lock.acquire()
    kv.put("holding", str(os.getpid()))
    assert lock.lost.wait(60)
    return now(), 0.0


def test_a_holder_that_is_cut_off_learns_it_before_anybody_else_holds_the_lock(
    clusters: Made, crowd: Crowd, stopped: list[int]
) -> None:
    """All members are stopped: nobody can be heard of. The holder knows within the TTL; others get it only later."""
    cluster = clusters.launch()
    kv = cluster.client()
    (person,) = crowd.take(1)
    losing = person.start(take_and_stall, kv, TTL)
    wait_until(lambda: kv.get("holding"), what="the holder")
    members = [member.pid for member in cluster.members()]
    stopped += members
    began = now()
    for pid in members:
        os.kill(pid, 19)
    lost_at, _ = ray.get(losing, timeout=30)
    assert lost_at - began <= TTL
    for pid in members:
        os.kill(pid, 18)
    other = kv.lock("cut", ttl=30)
    assert other.acquire(timeout=30)
    assert now() > lost_at
    other.release()


def forget(kv: Client) -> None:
    """What a task does that takes a lock, and fails."""
    lock = kv.lock("forgotten", ttl=TTL)
    lock.acquire()
    raise RuntimeError("this task has failed")


def test_a_task_that_fails_frees_its_lock(shared: Any, crowd: Crowd) -> None:
    kv = shared.client()
    (person,) = crowd.take(1)
    with pytest.raises(RuntimeError, match="this task has failed"):
        person.run(forget, kv)
    began = now()
    lock = kv.lock("forgotten", ttl=TTL)
    with Lateness(kv) as late:
        assert lock.acquire(timeout=60)
        got = now()
    assert got - began < TTL + 1 + late.tolerance
    assert person.alive
    lock.release()


def stand_in_line(kv: Client, name: str, count: int, turns: int) -> list[tuple[int, float, float]]:
    """Coroutines that wait for one lock; those who get a turn say which, and from when to when."""

    async def contend() -> tuple[int, float, float] | None:
        lock = kv.aio.lock(name, ttl=60)
        await lock.acquire()
        entered, token = now(), lock.token
        left = now()
        await lock.release()
        return token, entered, left

    async def main() -> Any:
        return await asyncio.gather(*(contend() for _ in range(count)))

    return [each for each in asyncio.run(main()) if each is not None]


def hand_overs(kv: Client, crowd: Crowd, name: str, processes: int, each: int) -> list[float]:
    """How long each hand-over took, from the release until the next one knows."""
    people = crowd.take(processes)
    lock = kv.lock(name, ttl=60)
    lock.acquire()
    patient = kv.with_timeout(100)  # processes that begin, twenty at once, on a busy machine
    running = [person.start(stand_in_line, patient, name, each, 0) for person in people]
    began = now()
    space = kv.reserved("lock").with_timeout(30)
    while space.range(prefix=f"{name}/p/", count_only=True).count <= processes * each:
        assert now() - began < 120, f"not {processes * each} in line within two minutes"
        sleep(0.2)
    print(f"{processes * each} in line after {now() - began:.1f} s")
    lock.release()
    turns = sorted(turn for outcome in results(running, 300) for turn in outcome)
    assert len(turns) == processes * each
    assert [turn[1] for turn in turns] == sorted(turn[1] for turn in turns), "turns are taken in the order of arrival"
    return [entered - left for (_, _, left), (_, entered, _) in itertools.pairwise(turns)]


def test_a_thousand_wait_as_ten_do(clusters: Made, crowd: Crowd) -> None:
    cluster = clusters.launch()
    kv = cluster.client(timeout=60)  # while twenty processes start, members may wait for a processor
    few = hand_overs(kv, crowd, "few", 5, 2)
    many = hand_overs(kv, crowd, "many", 20, 50)
    assert min(*few, *many) > 0, "two held it at once"
    print(f"hand-over: {statistics.median(few) * 1e3:.1f} ms with 10, {statistics.median(many) * 1e3:.1f} ms with 1000")
    assert statistics.median(many) < 2 * statistics.median(few) + 0.02
    wait_until(lambda: serving(cluster))
    assert leader(cluster)
