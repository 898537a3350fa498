"""``request_id``: scoped to the handle's namespace, bound to the operation, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from lab.onemember import OneMember
from raykeeper import Client, Compare, InvalidArgument, LockLost, Op, RequestTooLarge, codec

OPERATIONS: dict[str, Callable[[Client, str], Any]] = {
    "put": lambda kv, id: kv.put("k", "1", request_id=id),
    "put of another key": lambda kv, id: kv.put("j", "1", request_id=id),
    "put of another value": lambda kv, id: kv.put("k", "2", request_id=id),
    "put that asks for more": lambda kv, id: kv.put("k", "1", prev=True, request_id=id),
    "delete": lambda kv, id: kv.delete("k", request_id=id),
    "delete of a prefix": lambda kv, id: kv.delete(prefix="k", request_id=id),
    "txn": lambda kv, id: kv.txn([], [Op.put("k", "1")], request_id=id),
    "txn of another shape": lambda kv, id: kv.txn([], [Op.put("k", "1"), Op.put("j", "1")], request_id=id),
    "txn that compares": lambda kv, id: kv.txn([Compare.version("k") == 0], [Op.put("k", "1")], request_id=id),
    "atomically": lambda kv, id: kv.atomically(lambda t: t.put("k", "1"), request_id=id),
    "counter": lambda kv, id: kv.counter("c").add(1, request_id=id),
    "counter, another number": lambda kv, id: kv.counter("c").add(2, request_id=id),
    "counter, another name": lambda kv, id: kv.counter("d").add(1, request_id=id),
    "latch": lambda kv, id: kv.latch("l", 3).count_down(request_id=id),
    "latch, another name": lambda kv, id: kv.latch("m", 3).count_down(request_id=id),
    "queue": lambda kv, id: kv.queue("q").put("x", request_id=id),
    "queue, another item": lambda kv, id: kv.queue("q").put("y", request_id=id),
    "queue, another priority": lambda kv, id: kv.queue("q").put("x", 1, request_id=id),
    "queue, another name": lambda kv, id: kv.queue("r").put("x", request_id=id),
}


def revision(kv: Client) -> int:
    return kv.revision()


@pytest.mark.parametrize("what", OPERATIONS)
def test_the_same_again_is_done_once_and_answers_the_same(what: str, kv: Client, member: OneMember) -> None:
    run, leases = OPERATIONS[what], member.leases
    first, done = run(kv, "once"), revision(kv)
    assert [run(kv, "once") for _ in range(3)] == [first] * 3
    assert run(kv.with_timeout(3), "once") == first
    assert revision(kv) == done
    assert member.leases <= leases


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(OPERATIONS, 2)))
def test_another_operation_under_the_same_name_is_refused(first: str, second: str, kv: Client) -> None:
    OPERATIONS[first](kv, "once")
    done = revision(kv)
    with pytest.raises(InvalidArgument, match="request_id") as caught:
        OPERATIONS[second](kv, "once")
    assert caught.value.applied is False
    assert revision(kv) == done


@pytest.mark.parametrize(("first", "second"), list(itertools.product(OPERATIONS, ["put", "counter", "latch", "queue"])))
def test_another_namespace_has_names_of_its_own(first: str, second: str, kv: Client) -> None:
    a, b = kv.namespace("a/"), kv.namespace("a/b/")
    OPERATIONS[first](a, "once")
    before = revision(kv)
    OPERATIONS[second](b, "once")
    assert revision(kv) == before + 1


def test_a_previous_value_does_not_leak_into_another_namespace(kv: Client) -> None:
    a, b = kv.namespace("a/"), kv.namespace("b/")
    a.put("secret", "s3cret")
    a.put("secret", "new", prev=True, request_id="rotation")
    assert b.put("secret", "z", prev=True, request_id="rotation").prev is None
    assert b.get("secret").value == b"z"  # type: ignore[union-attr]


def test_a_namespace_and_a_name_are_told_apart(kv: Client) -> None:
    kv.namespace("a").put("k", "1", request_id="bc")
    kv.namespace("ab").put("k", "2", request_id="c")
    assert kv.get("abk").value == b"2"  # type: ignore[union-attr]


def test_a_codec_makes_no_difference(kv: Client) -> None:
    done = kv.put("k", "[1]", request_id="once")
    assert kv.with_codec(codec.JSON).put("k", [1], request_id="once").revision == done.revision


def test_under_a_guard_the_token_does_not_matter_and_a_refusal_is_not_remembered(kv: Client) -> None:
    lock = kv.lock("l")
    writes: dict[str, Callable[[Client, str], Any]] = {**OPERATIONS}
    for number, write in enumerate(writes.values()):
        lock.acquire()
        late = lock.guard()
        lock.release()
        with pytest.raises(LockLost):
            write(late, f"late-{number}")
        with lock:
            first = write(lock.guard(), f"late-{number}")
        with lock:
            done = revision(kv)
            assert write(lock.guard(), f"late-{number}") == first
            assert revision(kv) == done


def test_a_counter_finds_its_turn_and_then_knows_its_answer(kv: Client) -> None:
    one, other = kv.counter("c"), kv.counter("c")
    one.add(1)
    other.add(1)
    assert one.add(5, request_id="once") == 7  # it had to look again, and that was not the answer
    other.add(10)
    assert one.add(5, request_id="once") == other.add(5, request_id="once") == 7
    assert one.add(1) == 18


def test_many_calls_of_one_name_leave_nothing(kv: Client, member: OneMember) -> None:
    before = member.leases
    assert {kv.counter("rows").add(1, request_id="the-same") for _ in range(60)} == {1}
    assert member.leases <= before
    assert kv.reserved("counter").range(prefix="", keys_only=True).count >= 1


def test_the_same_for_asyncio(kv: Client) -> None:
    async def main() -> None:
        a = kv.aio
        assert await a.counter("c").add(1, request_id="once") == await a.counter("c").add(1, request_id="once") == 1
        for call in (
            a.put("k", "v", request_id="once"),
            a.latch("l", 2).count_down(request_id="once"),
            a.queue("q").put("x", request_id="once"),
        ):
            with pytest.raises(InvalidArgument):
                await call

    asyncio.run(main())


def test_a_name_has_a_bound(kv: Client) -> None:
    kv.put("k", "v", request_id="r" * 256)
    with pytest.raises(RequestTooLarge):
        kv.put("k", "v", request_id="r" * 257)
    for bad in ("", 7, b"", True, "\ud800"):
        for run in OPERATIONS.values():
            with pytest.raises(InvalidArgument):
                run(kv, bad)  # type: ignore[arg-type]
