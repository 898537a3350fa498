"""Local copies of a prefix: what they show, when, how they end, and random histories seen through them."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import random
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.onemember import OneMember, in_thread, one_member
from lab.patience import PATIENCE, until
from raykeeper import Cached, Client, InvalidArgument, Op, RequestTimeout, RequestTooLarge, Unavailable, codec


@pytest.fixture
def member() -> Iterator[OneMember]:
    with one_member() as made:
        yield made


@pytest.fixture
def kv(member: OneMember) -> Iterator[Client]:
    with member.client() as client:
        yield client


def values(found: Any) -> dict[bytes, bytes]:
    return {item.key: item.raw for item in found}


class Polls:
    """Makes polls of watches fail, as over a broken network, while everything else goes through."""

    def __init__(self, member: OneMember) -> None:
        self.failing = False
        self.failed = 0
        real = member.poll

        def poll(number: int, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
            def answer(reply: bytes | Exception) -> None:
                self.failed += self.failing
                done(ConnectionError("cut") if self.failing else reply)

            if self.failing:
                answer(b"")
            else:
                real(number, frame, answer)

        member.poll = poll  # type: ignore[method-assign]


def test_it_holds_what_was_there_and_follows(kv: Client) -> None:
    kv.put("a/1", "one")
    kv.put("b/1", "other")
    with kv.cached("a/") as copy:
        assert copy.revision >= 2
        assert values(copy.range()) == {b"a/1": b"one"}
        found = copy.get("a/1")
        assert found is not None
        assert found == kv.get("a/1")
        last = kv.put("a/2", "two").revision
        assert copy.get("a/2", at_least=last) == kv.get("a/2")
        last = kv.delete("a/1").revision
        assert copy.get(b"a/1", at_least=last) is None
        assert len(copy) == 1
        assert copy.reloads == 0


def test_a_range_is_sorted_of_one_revision_and_may_be_narrower(kv: Client) -> None:
    for name in ("a/9", "a/10", "a/1", "a/2/x", "a/2/y"):
        kv.put(name, name)
    with kv.cached("a/") as copy:
        assert [item.key for item in copy.range()] == [b"a/1", b"a/10", b"a/2/x", b"a/2/y", b"a/9"]
        narrow = copy.range("a/2/")
        assert [item.key for item in narrow] == [b"a/2/x", b"a/2/y"]
        assert (narrow.count, narrow.more, narrow.revision) == (2, False, copy.revision)
        last = kv.put("a/2/a", "new").revision
        assert [item.key for item in copy.range("a/2/", at_least=last)] == [b"a/2/a", b"a/2/x", b"a/2/y"]
        last = kv.put("a/2/a", "newer").revision
        assert copy.range("a/2/a", at_least=last).items[0].raw == b"newer"
        assert copy.range(b"a/3").items == ()


def test_what_is_not_under_the_prefix_is_refused_and_not_taken_for_absent(kv: Client) -> None:
    with kv.cached("a/") as copy:
        for call in (lambda: copy.get("b"), lambda: copy.range("b/"), lambda: copy.range("a")):
            with pytest.raises(InvalidArgument, match="not under the prefix"):
                call()
        with pytest.raises(InvalidArgument, match="a key"):
            copy.get(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="at_least"):
            copy.get("a/1", at_least="7")  # type: ignore[arg-type]


def test_the_empty_prefix_and_one_without_an_end_are_prefixes(kv: Client) -> None:
    kv.put(b"\xff\xff1", "x")
    kv.put("k", "y")
    with kv.cached("") as everything, kv.cached(b"\xff\xff") as high:
        assert values(everything.range()) == {b"\xff\xff1": b"x", b"k": b"y"}
        assert values(high.range(b"\xff\xff")) == {b"\xff\xff1": b"x"}


def test_at_least_comes_about_when_the_revision_touched_other_keys(kv: Client) -> None:
    """The watch of the copy never tells of it."""
    kv.put("a/1", "one")
    with kv.cached("a/") as copy:
        last = kv.put("elsewhere", "x").revision
        assert copy.get("a/1", at_least=last, timeout=PATIENCE) is not None
        assert copy.revision >= last
        assert copy.range(at_least=kv.put("elsewhere", "y").revision, timeout=PATIENCE).revision >= last + 1


def test_a_revision_that_does_not_exist_is_waited_for_no_longer_than_asked(kv: Client) -> None:
    with kv.cached("a/") as copy:
        future = copy.revision + 1
        with pytest.raises(RequestTimeout, match=str(future)):
            copy.get("a/1", at_least=future, timeout=0.05)
        with pytest.raises(RequestTimeout):
            copy.get("a/1", at_least=future, timeout=0)
        waiting = in_thread(lambda: copy.get("a/1", at_least=future + 1))
        kv.put("elsewhere", "x")
        assert not waiting.done
        kv.put("a/1", "one")
        found = waiting.result()
        assert found is not None
        assert found.raw == b"one"
        until(lambda: not copy._sync._waiting)


def test_namespace_and_codec_are_those_of_the_handle(kv: Client) -> None:
    inside = kv.namespace("ns/").with_codec(codec.JSON)
    inside.put("a/1", {"x": [1]})
    with inside.cached("a/") as copy:
        last = inside.put("a/2", [2]).revision
        found = copy.get("a/2", at_least=last)
        assert found is not None
        assert (found.key, found.value) == (b"a/2", [2])
        first = copy.get("a/1")
        assert first is not None
        first.value["x"].append(2)
        again = copy.get("a/1")
        assert again is not None
        assert again.value == {"x": [1]}, "what one reader does to a value is not seen by another"
        assert copy.range().items[0].value == {"x": [1]}
        with pytest.raises(InvalidArgument):
            copy.get("ns/a/1")


def test_it_does_not_pickle_and_says_what_to_do(kv: Client) -> None:
    with kv.cached("a/") as copy, pytest.raises(TypeError, match=r"\.prefix and \.revision"):
        pickle.dumps(copy)


def test_closed_means_closed(kv: Client) -> None:
    handle = kv.namespace("")
    copies = [kv.cached("a/"), handle.cached("a/"), kv.cached("")]
    copies[0].close()
    handle.close()
    copies[2].__exit__(None, None, None)
    looks: list[Callable[[Cached], Any]] = [
        lambda c: c.get("a/1"),
        Cached.range,
        len,
        lambda c: c.get("a/1", at_least=10**9),
    ]
    for copy in copies:
        for look in looks:
            with pytest.raises(InvalidArgument, match="closed"):
                look(copy)
        copy.close()
    with pytest.raises(InvalidArgument, match="closed"):
        handle.cached("a/")


def test_closing_wakes_who_waits(kv: Client) -> None:
    copy = kv.cached("a/")
    waiting = in_thread(lambda: copy.get("a/1", at_least=10**9))
    until(lambda: copy._sync._waiting)
    copy.close()
    with pytest.raises(InvalidArgument, match="closed"):
        waiting.result()


def test_nothing_is_left_of_a_copy_that_was_closed_or_collected(member: OneMember, kv: Client) -> None:
    def threads() -> int:
        return sum(thread.name.startswith("raykeeper-cached") for thread in threading.enumerate())

    until(lambda: threads() == 0 and member.watches == 0)  # those of earlier tests have ended
    kept = [kv.cached("a/") for _ in range(3)]
    assert threads() == 3
    content = weakref.ref(kept[0]._sync)
    kept[0].close()
    del kept[:]
    gc.collect()
    until(lambda: threads() == 0)
    until(lambda: member.watches == 0)
    gc.collect()
    assert content() is None


def test_more_than_it_may_hold_is_an_error_at_once_or_later(kv: Client) -> None:
    kv.put("a/1", bytes(1000))
    with pytest.raises(RequestTooLarge, match="max_bytes=1000"):
        kv.cached("a/", max_bytes=1000)
    with kv.cached("a/", max_bytes=3000) as copy:
        for _ in range(5):
            last = kv.put("a/1", bytes(1000)).revision  # replaced, not added
        assert copy.get("a/1", at_least=last) is not None
        kv.delete("a/1")
        last = kv.put("a/2", bytes(1000)).revision
        assert copy.get("a/2", at_least=last) is not None
        last = kv.put("a/3", bytes(2000)).revision
        with pytest.raises(RequestTooLarge):
            copy.get("a/3", at_least=last + 1)
        with pytest.raises(RequestTooLarge):
            copy.get("a/2")
    for wrong in (0, "many", True):
        with pytest.raises(InvalidArgument, match="max_bytes"):
            kv.cached("a/", max_bytes=wrong)  # type: ignore[arg-type]


def test_long_prefixes_come_in_pages_of_one_revision(kv: Client) -> None:
    for number in range(6):
        kv.put(f"a/{number}", bytes([number]) * 500_000)
    with kv.cached("a/") as copy:
        assert values(copy.range()) == {b"a/%d" % n: bytes([n]) * 500_000 for n in range(6)}


def test_lost_history_is_loaded_anew_in_one_step(member: OneMember, kv: Client) -> None:
    polls = Polls(member)
    kv.put("a/1", "one")
    kv.put("a/2", "two")
    with kv.cached("a/") as copy:
        polls.failing = True
        kv.put("a/1", "1")
        kv.delete("a/2")
        last = kv.put("a/3", "3").revision
        kv.compact(last)
        until(lambda: polls.failed)
        assert values(copy.range()) == {b"a/1": b"one", b"a/2": b"two"}, "old, but all of one revision"
        polls.failing = False
        assert values(copy.range(at_least=last)) == {b"a/1": b"1", b"a/3": b"3"}
        assert copy.reloads == 1
        last = kv.put("a/1", "new").revision
        found = copy.get("a/1", at_least=last)
        assert found is not None
        assert found.raw == b"new"


def test_a_cluster_that_does_not_answer_is_an_error_within_the_timeout(member: OneMember, kv: Client) -> None:
    member.cut = True
    with pytest.raises((RequestTimeout, Unavailable)):
        kv.cached("a/", timeout=0.1)
    member.cut = False


def test_coroutines_have_the_same(kv: Client) -> None:
    async def main() -> None:
        client = kv.aio
        await client.put("a/1", "one")
        async with await client.cached("a/") as copy:
            found = await copy.get("a/1")
            assert found is not None
            last = (await client.put("elsewhere", "x")).revision
            assert (await copy.range(at_least=last)).revision >= last
            with pytest.raises(RequestTimeout):
                await copy.get("a/1", at_least=last + 5, timeout=0.02)
            waiting = asyncio.ensure_future(copy.get("a/1", at_least=last + 5))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(TypeError):
                pickle.dumps(copy)
        with pytest.raises(InvalidArgument, match="closed"):
            await copy.get("a/1")
        left = await client.cached("a/")
        kv.close()
        with pytest.raises(InvalidArgument, match="closed"):
            await left.range()

    asyncio.run(main())


def test_a_forked_child_is_told_that_nobody_keeps_its_copy(kv: Client) -> None:
    kv.put("a/1", "one")
    with kv.cached("a/") as copy:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(60)  # nothing else would end it if it hangs
                copy.get("a/1")
                os.write(write, b"a stale copy")
            except BaseException as error:
                os.write(write, type(error).__name__.encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        assert os.read(read, 100) == b"ForkedProcess"
        os.close(read)
        assert copy.get("a/1") is not None


# --- random histories ------------------------------------------------------------------------------------------------


History = dict[int, dict[bytes, bytes]]


def write_at_random(kv: Client, rng: random.Random, steps: int, history: History, wanted: list[int]) -> None:
    """Change keys inside and outside of the prefix, and write down what the prefix held at each revision."""
    content = dict(history[max(history)])
    for step in range(steps):
        key, value = f"a/{rng.randrange(8)}", b"%d" % step
        kind = rng.random()
        if kind < 0.4:
            revision = kv.put(key, value).revision
            content[key.encode()] = value
        elif kind < 0.55:
            revision = kv.delete(key).revision
            content.pop(key.encode(), None)
        elif kind < 0.6:
            revision = kv.delete(prefix="a/").revision
            content.clear()
        elif kind < 0.85:  # all of one transaction carry one value
            some = rng.sample(range(8), 3)
            revision = kv.txn(success=[Op.put(f"a/{n}", value) for n in some]).revision
            content.update({b"a/%d" % n: value for n in some})
        else:
            revision = kv.put("elsewhere", value).revision
        history[revision] = dict(content)
        wanted[0] = revision


class Reader:
    """Looks at a copy all the time, and writes down what it saw."""

    def __init__(self, copy: Cached, wanted: list[int]) -> None:
        self.copy = copy
        self.wanted = wanted
        self.stop = False
        self.seen: list[tuple[int, dict[bytes, bytes]]] = []

    def __call__(self) -> None:
        newest = 0
        while not self.stop:
            asked = self.wanted[0]
            found = self.copy.range(at_least=asked if len(self.seen) % 3 == 0 else None)
            assert found.revision >= newest, "it went back"
            assert len(self.seen) % 3 or found.revision >= asked
            newest = found.revision
            self.seen.append((found.revision, values(found)))
            for number in range(8):
                pair = self.copy.get(f"a/{number}")
                newest = max(newest, self.copy.revision if pair is None else pair.mod_revision)


@pytest.mark.parametrize("seed", range(2))
def test_every_look_is_the_store_at_one_revision(member: OneMember, kv: Client, seed: int) -> None:
    rng = random.Random(seed)
    polls = Polls(member)
    with kv.cached("a/") as copy:
        wanted = [0]
        readers = [Reader(copy, wanted) for _ in range(2)]
        threads = [in_thread(reader) for reader in readers]
        history: History = {kv.revision(): {}}
        for _ in range(4):
            write_at_random(kv, rng, 40, history, wanted)
            polls.failing = True
            write_at_random(kv, rng, 10, history, wanted)
            if rng.random() < 0.7:
                kv.compact(wanted[0])
            polls.failing = False
        final = copy.range(at_least=wanted[0])
        for reader in readers:
            reader.stop = True
        for thread in threads:
            thread.result()
        reloads = copy.reloads
    assert values(final) == history[wanted[0]]
    assert reloads > 0
    revisions = sorted(history)
    for reader in readers:
        assert len({revision for revision, _ in reader.seen}) > 5
        for revision, content in reader.seen:
            model = history[max(each for each in revisions if each <= revision)]
            assert content == model, f"seed {seed}, revision {revision}"
