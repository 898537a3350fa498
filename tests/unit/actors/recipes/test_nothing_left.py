"""What a name costs once it is no longer in use: nothing. And tokens grow over all holders all the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from lab.onemember import in_thread
from lab.patience import PATIENCE, until
from raykeeper import Client, LockLost, Op
from raykeeper.actors.recipes import barrier

KINDS: dict[str, Callable[[Client], Any]] = {
    "lock": lambda kv: kv.lock("n", 600),
    "election": lambda kv: kv.election("n", 600),
    "semaphore": lambda kv: kv.semaphore("n", 1, 600),
    "writer": lambda kv: kv.rwlock("n", 600).write(),
}
USES: dict[str, Callable[[Client], Any]] = {
    "lock": lambda kv: [_hold(kv.lock("n")) for _ in range(2)],
    "rwlock": lambda kv: (_hold(kv.rwlock("n").read()), _hold(kv.rwlock("n").write())),
    "semaphore": lambda kv: (_hold(kv.semaphore("n", 2)), _hold(kv.semaphore("n", 3))),
    "election": lambda kv: _hold(kv.election("n")),
    "barrier": lambda kv: [kv.barrier("n", parties).wait(PATIENCE) for parties in (1, 1)],
    "partitioner": lambda kv: [_join(kv, partitions) for partitions in (3, 4)],
    "registry": lambda kv: kv.registry("n").register("s", "here").deregister(),
    "a lock that is handed over": lambda kv: _queue_up(kv, lambda: kv.lock("n")),
    "an election that is handed over": lambda kv: _queue_up(kv, lambda: kv.election("n")),
    "a semaphore that is handed over": lambda kv: _queue_up(kv, lambda: kv.semaphore("n", 1)),
    "a writer that waits": lambda kv: _queue_up(kv, lambda: kv.rwlock("n").write()),
    "a queue": lambda kv: _work(kv),
    **{
        f"{name}, {how}": lambda kv, name=name, give_up=give_up: give_up(kv, lambda: KINDS[name](kv))
        for how, give_up in {
            "with one who gives up": lambda kv, make: _give_up(kv, make),
            "with one who gives up last": lambda kv, make: _give_up_last(kv, make),
            "with one who gives up in the middle": lambda kv, make: _give_up_in_the_middle(kv, make),
            "with one who is interrupted": lambda kv, make: _interrupted(make),
        }.items()
        for name in KINDS
    },
    "lock, with one who dies": lambda kv: _die(kv.lock("n", 600)),
    "election, with one who dies": lambda kv: _die(kv.election("n", 600)),
    "writer, with one who dies": lambda kv: _die(kv.rwlock("n", 600).write()),
    "a barrier that is given up": lambda kv: [kv.barrier("n", 2).wait(timeout) for timeout in (0, 0.1)],
    "a barrier that several give up": lambda kv: _give_up_barrier(kv),
    "a queue without items": lambda kv: [kv.queue("n").claim(timeout) for timeout in (0, 0.1)],
    "a queue that the last gives up": lambda kv: _give_up_queue(kv),
}


@pytest.fixture(autouse=True)
def _time_enough_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried here is what a name leaves, not what a slow machine makes of half a second."""
    monkeypatch.setattr(barrier, "CLEANUP_GRACE_S", 20.0)


def _hold(held: Any) -> int:
    with held:
        return int(held.token)


def _join(kv: Client, partitions: int) -> None:
    with kv.partitioner("n", partitions) as share:
        assert len(share.mine()) == partitions


def _queue_up(kv: Client, make: Callable[[], Any]) -> None:
    holder = make()
    holder.acquire(PATIENCE)
    waiting = []
    for number in range(3):
        waiting.append(in_thread(lambda: _hold(make())))
        until(lambda number=number: _places(kv) == number + 2)
    holder.release()
    assert len({each.result() for each in waiting}) == 3


def _give_up(kv: Client, make: Callable[[], Any]) -> None:
    with make():
        for timeout in (0, 0.05):
            assert not make().acquire(timeout)


def _give_up_last(kv: Client, make: Callable[[], Any]) -> None:
    """A waiter gives up once the holder has released: then no contender is left."""
    holder, waiter = make(), make()
    holder.acquire(PATIENCE)
    turn = waiter._holder.wait_turn

    async def late(place: Any, deadline: Any) -> bool:
        holder.release()
        await turn(place, deadline)
        return False

    waiter._holder.wait_turn = late
    assert not waiter.acquire(PATIENCE)


def _give_up_in_the_middle(kv: Client, make: Callable[[], Any]) -> None:
    """Of a line of four, the last gives up, the others have their turns, and the next contender comes after them."""
    order: list[str] = []

    def hold(name: str) -> None:
        with make():
            order.append(name)

    holder = make()
    holder.acquire(PATIENCE)
    waiting = []
    for number, name in enumerate(["first", "second"]):
        waiting.append(in_thread(lambda name=name: hold(name)))
        until(lambda number=number: _places(kv) == number + 2)
    assert not make().acquire(0.05)
    waiting.append(in_thread(lambda: hold("third")))
    until(lambda: _places(kv) == 4)
    holder.release()
    for each in waiting:
        each.result()
    assert order == ["first", "second", "third"]


def _die(held: Any) -> None:
    held.acquire(PATIENCE)
    lease = held._holder.current_ticket().lease
    lease._client.txn([], [Op.revoke(lease.id)])


def _interrupted(make: Callable[[], Any]) -> None:
    waiter = make()

    async def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    waiter._holder.wait_turn = interrupted
    with make(), pytest.raises(KeyboardInterrupt):
        waiter.acquire(PATIENCE)


def _give_up_barrier(kv: Client) -> None:
    for each in [in_thread(lambda: kv.barrier("n", 4).wait(0.3)) for _ in range(3)]:
        assert not each.result()


def _give_up_queue(kv: Client) -> None:
    """The first of those who wait gets the item, and the last gives up."""
    first = in_thread(lambda: kv.queue("n").claim(PATIENCE))
    until(lambda: _places(kv) == 1)
    last = in_thread(lambda: kv.queue("n").claim(0.5))
    until(lambda: _places(kv) == 2 or last.done)  # on a slow machine its time may be over before anyone looks
    kv.queue("n").put("x")
    claim = first.result()
    assert last.result() is None
    claim.ack()


def _work(kv: Client) -> None:
    queue = kv.queue("n")
    waiting = in_thread(lambda: queue.claim(PATIENCE))
    until(lambda: _places(kv) == 1)
    queue.put("x")
    waiting.result().ack()
    kv.queue("n").put("y")
    claim = kv.queue("n").claim(0)
    assert claim is not None
    claim.ack()


def _places(kv: Client) -> int:
    return sum(b"/p/" in key or b"/w/" in key for key in keys(kv))


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
