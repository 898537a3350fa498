"""``kv.atomically``: what a function reads and writes is one step."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab.onemember import OneMember
from lab.patience import PATIENCE
from raykeeper import (
    END,
    KEEP,
    Client,
    InvalidArgument,
    LockLost,
    RequestTimeout,
    RequestTooLarge,
    TransactionConflict,
    Unavailable,
    codec,
)


@pytest.fixture
def kv(member: OneMember, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A handle on a namespace of the test's own, whose calls have all the time that a slow machine takes."""
    with member.client() as client:
        yield client.namespace(f"{request.node.name}/").with_timeout(PATIENCE)


def number(t: Any, key: str) -> int:
    found = t.get(key)
    return 0 if found is None else int(found.raw)


def test_many_threads_move_amounts_and_nothing_is_lost(kv: Client) -> None:
    """Each thread moves amounts between random accounts; nobody ever sees another sum, and no account below zero."""
    accounts = [f"accounts/{n}" for n in range(5)]
    for account in accounts:
        kv.put(account, "100")
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(12):
            source, target = rng.sample(accounts, 2)
            amount = rng.randrange(150)

            def move(t: Any, source: str = source, target: str = target, amount: int = amount) -> bool:
                left = number(t, source) - amount
                if left < 0:
                    return False
                t.put(source, str(left))
                t.put(target, str(number(t, target) + amount))
                return True

            try:
                kv.atomically(move, timeout=PATIENCE)
                seen = [int(item.raw) for item in kv.atomically(lambda t: t.range(prefix="accounts/"))]
                if sum(seen) != 500 or min(seen) < 0:
                    wrong.append(seen)
            except Exception as error:
                wrong.append(error)

    kv = kv.with_timeout(PATIENCE)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_coroutines_count_together(kv: Client) -> None:
    async def main() -> None:
        handle = kv.with_timeout(PATIENCE).aio

        async def add(t: Any) -> int:
            found = await t.get("n")
            n = 1 if found is None else int(found.raw) + 1
            t.put("n", str(n))
            return n

        done = await asyncio.gather(*[handle.atomically(add) for _ in range(20)])
        assert sorted(done) == list(range(1, 21))

    asyncio.run(main())


class Meddling:
    """Runs a function once as it is, and lets others change something before its first run ends."""

    def __init__(self, function: Any, meddle: Any) -> None:
        self.function = function
        self.meddle = meddle
        self.runs = 0

    def __call__(self, t: Any) -> Any:
        self.runs += 1
        result = self.function(t)
        if self.runs == 1:
            self.meddle()
        return result


def count(t: Any) -> int:
    n = len(t.range(prefix="in/"))
    t.put("count", str(n))
    return n


MEDDLING: dict[str, tuple[Any, Any, bool]] = {
    "a key appears in the range": (count, lambda kv: kv.put("in/c", "1"), True),
    "a key goes from the range": (count, lambda kv: kv.delete("in/a"), True),
    "a key of the range changes": (count, lambda kv: kv.put("in/a", "2"), True),
    "a key goes and comes again": (count, lambda kv: (kv.delete("in/a"), kv.put("in/a", "1")), True),
    "a key appears in an empty range": (
        lambda t: t.put("count", str(len(t.range("none/a", "none/x")))),
        lambda kv: kv.put("none/b", "1"),
        True,
    ),
    "a key appears in a range to the end": (
        lambda t: t.put("count", str(len(t.range("in/b", END)))),
        lambda kv: kv.put("z", "1"),
        True,
    ),
    "a key beside the range": (count, lambda kv: kv.put("inside", "1"), False),
    "a key that was read changes": (lambda t: t.put("copy", t.get("in/a").raw), lambda kv: kv.put("in/a", "9"), True),
    "a key that was read is written alike": (
        lambda t: t.put("copy", t.get("in/a").raw),
        lambda kv: kv.put("in/a", "1"),
        True,
    ),
    "a key that was missed appears": (
        lambda t: t.put("copy", str(t.get("missing"))),
        lambda kv: kv.put("missing", "1"),
        True,
    ),
    "a key that is written changes": (
        lambda t: (t.get("in/a"), t.put("in/b", "mine")),
        lambda kv: kv.put("in/b", "theirs"),
        True,
    ),
    "a key that is deleted changes": (
        lambda t: (t.get("in/a"), t.delete("in/b")),
        lambda kv: kv.put("in/b", "theirs"),
        True,
    ),
    "something else changes": (count, lambda kv: kv.put("other", "1"), False),
    "what is written without a read": (lambda t: t.put("in/a", "5"), lambda kv: kv.put("in/a", "6"), False),
}


@pytest.mark.parametrize("what", MEDDLING)
def test_it_runs_again_if_what_it_read_has_changed_and_only_then(what: str, kv: Client) -> None:
    function, meddle, again = MEDDLING[what]
    kv.put("in/a", "1")
    kv.put("in/b", "1")
    meddling = Meddling(function, lambda: meddle(kv))
    kv.atomically(meddling)
    assert meddling.runs == (2 if again else 1)


def test_the_last_run_counts_and_phantoms_do_not(kv: Client) -> None:
    kv.put("in/a", "1")
    meddling = Meddling(count, lambda: kv.put("in/b", "1"))
    assert kv.atomically(meddling) == 2
    assert kv.get("count").text == "2"  # type: ignore[union-attr]


def test_all_reads_of_a_run_are_of_one_revision(kv: Client) -> None:
    kv.put("a", "1")
    kv.put("b", "1")
    kv.put("c/1", "1")
    seen = []

    def look(t: Any) -> None:
        first = t.get("a").raw
        kv.txn([], [])
        for key in ("a", "b", "c/1", "c/2"):
            kv.put(key, "2")
        seen.append((first, t.get("a").raw, t.get("b").raw, [item.raw for item in t.range(prefix="c/")]))

    kv.atomically(look)
    assert seen == [(b"1", b"1", b"1", [b"1"])]


def test_it_reads_what_it_has_written(kv: Client) -> None:
    kv.put("a", "1")
    kv.put("c", "1")

    def look(t: Any) -> list[Any]:
        t.put("b", "2")
        t.put("d", "2")
        t.delete("a")
        t.delete("d")
        t.put("c", "3")
        found = t.range(prefix="")
        assert (found.count, found.more, found.revision) == (2, False, found.revision)
        assert {item.raw for item in t.range(prefix="", keys_only=True)} == {b""}
        assert t.get("a") is None
        assert t.get("b").version == 0
        t.put("a", "4")
        assert t.get("a").raw == b"4"
        t.delete("a")
        return [(item.key, item.raw) for item in found]

    assert kv.atomically(look) == [(b"b", b"2"), (b"c", b"3")]
    assert [(item.key, item.raw) for item in kv.range(prefix="")] == [(b"b", b"2"), (b"c", b"3")]


def test_writes_are_of_one_revision_and_go_to_the_namespace(kv: Client) -> None:
    kv.atomically(lambda t: [t.put(f"k{n}", "v") for n in range(5)])
    assert len({item.mod_revision for item in kv.range(prefix="")}) == 1
    assert kv.range(prefix="").count == 5


def test_a_function_that_raises_leaves_nothing(kv: Client) -> None:
    before = kv.revision()

    def fails(t: Any) -> None:
        t.put("k", "v")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        kv.atomically(fails)

    async def fails_too(t: Any) -> None:
        fails(t)

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(kv.aio.atomically(fails_too))
    assert kv.revision() == before


def test_a_function_that_only_reads_is_not_compared(kv: Client) -> None:
    kv.put("k", "v")
    meddling = Meddling(lambda t: t.get("k").raw, lambda: kv.put("k", "w"))
    assert kv.atomically(meddling) == b"v"
    assert meddling.runs == 1


def test_too_many_are_faster(kv: Client) -> None:
    numbers = itertools.count()

    def late(t: Any) -> None:
        t.get("k")
        kv.put("k", str(next(numbers)))
        t.put("k", "mine")

    with pytest.raises(TransactionConflict) as caught:
        kv.atomically(late, retries=3)
    assert caught.value.applied is False
    assert next(numbers) == 4
    assert kv.get("k").raw == b"3"  # type: ignore[union-attr]
    with pytest.raises(TransactionConflict):
        kv.with_timeout(PATIENCE).atomically(late, retries=0)


def test_the_timeout_covers_all_runs(kv: Client) -> None:
    def late(t: Any) -> None:
        t.get("k")
        kv.put("k", "theirs")
        t.put("k", "mine")

    kv.put("k", "theirs")
    with pytest.raises((TransactionConflict, RequestTimeout, Unavailable)):
        kv.atomically(late, timeout=0.3)
    assert kv.get("k").raw != b"mine"  # type: ignore[union-attr]


def test_what_does_not_fit_into_one_transaction_is_refused_while_it_runs(kv: Client) -> None:
    def puts(t: Any, n: int) -> None:
        for each in range(n):
            t.put(f"in/{each}", "v")

    def gets(t: Any, n: int) -> None:
        for each in range(n):
            t.get(f"in/{each}")

    kv.atomically(lambda t: puts(t, 128))
    kv.atomically(lambda t: gets(t, 128))
    kv.atomically(lambda t: (gets(t, 128), puts(t, 128)))
    for function in (
        lambda t: puts(t, 129),
        lambda t: gets(t, 129),
        lambda t: t.range(prefix="in/"),  # 128 keys, and the range itself
        lambda t: (t.put("other", "v"), gets(t, 128)),
    ):
        with pytest.raises(RequestTooLarge) as caught:
            kv.atomically(function)
        assert caught.value.applied is False
    kv.delete("in/0")
    assert kv.atomically(lambda t: (t.put("in/1", "w"), len(t.range(prefix="in/")))[1]) == 127


def test_large_values_are_not_read_again_in_the_same_request(kv: Client) -> None:
    """With what they have grown to, the answer could be too long."""
    for key in ("a", "b", "c", "d", "e"):
        kv.put(key, "x" * 10_000)

    def grow() -> None:
        for key in ("a", "b", "c", "d", "e"):
            kv.put(key, "y" * 1_000_000)

    meddling = Meddling(lambda t: t.put("sum", str(sum(len(t.get(key).raw) for key in "abcde"))), grow)
    kv.with_timeout(PATIENCE).atomically(meddling)
    assert kv.get("sum").text == "5000000"  # type: ignore[union-attr]
    assert meddling.runs == 2


def test_it_goes_on_after_a_compaction(kv: Client) -> None:
    kv.put("a", "1")
    kv.put("b", "1")
    runs = []

    def look(t: Any) -> tuple[bytes, bytes]:
        runs.append(1)
        a = t.get("a").raw
        if len(runs) == 1:
            kv.put("a", "2")
            kv.compact(kv.put("b", "2").revision)
        b = t.get("b").raw
        t.put("c", "3")
        return a, b

    assert kv.atomically(look) == (b"2", b"2")
    assert len(runs) == 2


def test_a_name_is_done_once_even_if_it_would_write_something_else(kv: Client) -> None:
    def add(t: Any) -> int:
        t.put("n", str(number(t, "n") + 1))
        return number(t, "n")

    assert kv.atomically(add, request_id="once") == 1
    assert kv.atomically(add, request_id="once") is None
    assert asyncio.run(kv.aio.atomically(lambda t: t.put("n", "50"), request_id="once")) is None
    assert kv.atomically(add, request_id="twice") == 2
    with pytest.raises(InvalidArgument, match="request_id"):
        kv.put("k", "v", request_id="once")


def test_a_name_whose_run_came_too_late_may_be_used_again(kv: Client) -> None:
    def late(t: Any) -> None:
        t.get("k")
        kv.put("k", "theirs")
        t.put("k", "mine")

    with pytest.raises(TransactionConflict):
        kv.atomically(late, retries=0, request_id="once")
    assert kv.atomically(lambda t: t.put("k", "mine") or "done", request_id="once") == "done"
    assert kv.get("k").raw == b"mine"  # type: ignore[union-attr]


def test_under_a_guard(kv: Client) -> None:
    lock = kv.lock("l", ttl=600)
    with lock:
        guard = lock.guard()
        guard.atomically(lambda t: t.put("k", str(number(t, "k") + 1)))
        guard.atomically(lambda t: t.put("k", str(number(t, "k") + 1)), request_id="once")
        assert guard.atomically(lambda t: t.put("k", "100"), request_id="once") is None
    with pytest.raises(LockLost):
        guard.atomically(lambda t: t.put("k", str(number(t, "k") + 1)))
    assert kv.get("k").text == "2"  # type: ignore[union-attr]


def test_a_codec_and_a_lease(kv: Client) -> None:
    values = kv.with_codec(codec.JSON)
    values.put("k", {"n": 1})
    with kv.lease(60) as lease:

        def add(t: Any) -> Any:
            t.put("k", {"n": t.get("k").value["n"] + 1}, lease=lease)
            return t.get("k").value

        meddling = Meddling(add, lambda: values.put("k", {"n": 10}))
        assert values.atomically(meddling) == {"n": 11}
        assert values.get("k").value == {"n": 11}  # type: ignore[union-attr]
        assert values.get("k").lease == lease.id  # type: ignore[union-attr]
    assert kv.get("k") is None


def test_what_is_not_allowed(kv: Client) -> None:
    leaked: list[Any] = []
    kv.atomically(leaked.append)
    for call in (
        lambda: leaked[0].get("k"),
        lambda: leaked[0].range(prefix=""),
        lambda: leaked[0].put("k", "v"),
        lambda: leaked[0].delete("k"),
        lambda: kv.atomically("k"),  # type: ignore[arg-type]
        lambda: kv.atomically(lambda t: t.put("k", KEEP)),
        lambda: kv.atomically(lambda t: t.put("k", "v", lease=KEEP)),
        lambda: kv.atomically(lambda t: asyncio.sleep(0)),
        lambda: kv.atomically(lambda t: t.range("k", prefix="k")),
        lambda: kv.atomically(lambda t: t.put("k", "v"), retries=-1),
    ):
        with pytest.raises(InvalidArgument):
            call()
    assert kv.range(prefix="").count == 0


def test_reads_of_a_coroutine_may_be_made_together(kv: Client) -> None:
    for n in range(10):
        kv.put(f"k{n}", str(n))

    async def look(t: Any) -> int:
        found = await asyncio.gather(*[t.get(f"k{n}") for n in range(10)])
        t.put("sum", str(sum(int(item.raw) for item in found)))
        return len({t._run.revision})

    asyncio.run(kv.aio.atomically(look))
    assert kv.get("sum").text == "45"  # type: ignore[union-attr]
