"""What a name costs once nobody uses it any more: nothing. And tokens grow over all holders all the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from onemember import in_thread

from raykeeper import Client, LockLost

USES: dict[str, Callable[[Client], Any]] = {
    "lock": lambda kv: [_hold(kv.lock("n")) for _ in range(2)],
    "rwlock": lambda kv: (_hold(kv.rwlock("n").read()), _hold(kv.rwlock("n").write())),
    "semaphore": lambda kv: (_hold(kv.semaphore("n", 2)), _hold(kv.semaphore("n", 3))),
    "election": lambda kv: _hold(kv.election("n")),
    "barrier": lambda kv: [kv.barrier("n", parties).wait(5) for parties in (1, 1)],
    "partitioner": lambda kv: [_join(kv, partitions) for partitions in (3, 4)],
    "registry": lambda kv: kv.registry("n").register("s", "here").deregister(),
    "a lock that is handed over": lambda kv: _queue_up(kv, lambda: kv.lock("n")),
    "an election that is handed over": lambda kv: _queue_up(kv, lambda: kv.election("n")),
    "a semaphore that is handed over": lambda kv: _queue_up(kv, lambda: kv.semaphore("n", 1)),
    "a writer that waits": lambda kv: _queue_up(kv, lambda: kv.rwlock("n").write()),
    "a queue": lambda kv: _work(kv),
}


def _hold(held: Any) -> int:
    with held:
        return int(held.token)


def _join(kv: Client, partitions: int) -> None:
    with kv.partitioner("n", partitions) as share:
        assert len(share.mine()) == partitions


def _queue_up(kv: Client, make: Callable[[], Any]) -> None:
    holder = make()
    holder.acquire(5)
    waiting = []
    for number in range(3):
        waiting.append(in_thread(lambda: _hold(make())))
        _until(lambda number=number: _places(kv) == number + 2)
    holder.release()
    assert len({each.result() for each in waiting}) == 3


def _work(kv: Client) -> None:
    queue = kv.queue("n")
    waiting = in_thread(lambda: queue.claim(10))
    _until(lambda: _places(kv) == 1)
    queue.put("x")
    waiting.result().ack()
    kv.queue("n").put("y")
    claim = kv.queue("n").claim(0)
    assert claim is not None
    claim.ack()


def _places(kv: Client) -> int:
    return sum(b"/p/" in key or b"/w/" in key for key in keys(kv))


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
    pytest.fail("it does not come about")


def keys(kv: Client) -> list[bytes]:
    areas = ("lock", "rwlock", "semaphore", "election", "barrier", "partitioner", "registry", "queue")
    name = kv.prefix.replace(b"%", b"%25").replace(b"/", b"%2F")
    found = [item.key for area in areas for item in kv.reserved(area).range(prefix="", keys_only=True)]
    return [key for key in found if key.startswith(name)]


@pytest.mark.parametrize("what", USES)
def test_nothing_is_left_of_a_name_that_nobody_uses(what: str, kv: Client) -> None:
    for _ in range(2):
        USES[what](kv)
        assert keys(kv) == []


@pytest.mark.parametrize("make", [Client.lock, Client.election], ids=["lock", "election"])
def test_tokens_grow_over_holders_of_an_empty_line(make: Callable[..., Any], kv: Client) -> None:
    tokens, guards = [], []
    for _ in range(5):
        held = make(kv, "n")
        held.acquire()
        tokens.append(held.token)
        guards.append(held.guard())
        held.release()
    assert all(a < b for a, b in itertools.pairwise(tokens))
    for guard in guards:
        with pytest.raises(LockLost):
            guard.put("k", "v")
