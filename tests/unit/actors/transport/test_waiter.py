"""Threads that wait for outcomes: each is woken once, one after the other, even if one leaves meanwhile."""

from __future__ import annotations

import threading

from lab.lanes import until
from raykeeper.actors.transport.waiter import OutcomeWaiter, WakeQueue
from raykeeper.limits import THREADS_WOKEN_AT_ONCE


def waiters(queue: WakeQueue, number: int) -> list[OutcomeWaiter[int]]:
    made: list[OutcomeWaiter[int]] = [OutcomeWaiter(queue) for _ in range(number)]
    for each, waiter in enumerate(made):
        waiter.set_outcome(each)
    return made


def test_each_thread_wakes_the_next_one() -> None:
    queue = WakeQueue()
    outcomes: list[int] = []
    blocked: list[OutcomeWaiter[int]] = [OutcomeWaiter(queue) for _ in range(50)]
    threads = [threading.Thread(target=lambda each=each: outcomes.append(each.wait()), daemon=True) for each in blocked]
    for thread in threads:
        thread.start()
    for number, waiter in enumerate(blocked):
        waiter.set_outcome(number)
    assert outcomes == [], "an outcome alone wakes nobody: the hub's lock may be held"
    queue.wake()
    until(lambda: len(outcomes) == 50)
    assert sorted(outcomes) == list(range(50))


def test_few_are_awake_at_a_time() -> None:
    queue = WakeQueue()
    made = waiters(queue, 3 * THREADS_WOKEN_AT_ONCE)

    def awake() -> int:
        return sum(not waiter._pending.locked() for waiter in made)

    queue.wake()
    assert awake() == THREADS_WOKEN_AT_ONCE
    assert made.pop(0).wait() == 0
    assert awake() == THREADS_WOKEN_AT_ONCE, "it has woken another one"


def test_a_thread_that_was_interrupted_leaves_nobody_asleep() -> None:
    queue = WakeQueue()
    first, second, third, fourth = waiters(queue, 4)
    first.leave()
    assert not second._pending.locked(), "before it was woken"
    second.leave()
    assert not third._pending.locked(), "after it was woken"
    third.set_outcome(7)
    assert third.wait() == 2, "the first outcome counts"
    assert fourth.wait() == 3
