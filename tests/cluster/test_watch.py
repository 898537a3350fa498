"""Watches on a real cluster: what every watcher saw, held against the history of the store."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import pickle
import random
import signal
import sys
import threading
import time
from typing import Any

import pytest
import ray

import raykeeper
from lab.ray.crowd import Crowd
from lab.ray.tools import Made, kill, leader, serving, wait_until
from raykeeper import CompactedError, InvalidArgument, KeeperError, Op, Unavailable, codec
from raykeeper.actors.client.core import subscription

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SECONDS = float(os.environ.get("RAYKEEPER_WATCH_SECONDS", "20"))
"""How long leaders are killed for. Minutes prove more; these are for every day."""

Change = tuple[int, str, bytes, bytes]


def change(event: Any) -> Change:
    return event.kv.mod_revision, event.type, event.kv.key, event.kv.raw


@pytest.fixture
def kv(shared: Any) -> Any:
    with shared.client() as client:
        yield client


def hub_of(kv: Any) -> Any:
    return kv._share.hub


# --- killing members for as long as it takes -------------------------------------------------------------------------


def watch_from_now(name: str, member: int) -> dict[str, Any]:
    """Watch everything until the end is written, beginning at the given member. Runs in a process of its own."""
    kv = raykeeper.connect(name)
    kv.revision()
    hub = hub_of(kv)
    hub._router.near = frozenset()  # or all would begin at the leader
    hub.watch_core._outbox._rotation = member - 1
    changes: list[Change] = []
    batches: list[tuple[int, int]] = []
    members = set()
    with kv.watch("end") as end, kv.watch(prefix="w/", prev=True) as watch:
        start = watch.revision
        kv.put(f"ready/{member}/{os.getpid()}", str(hub.watch_core.member))
        for batch in watch.batches():
            members.add(hub.watch_core.member)
            assert all(event.kv.mod_revision == batch.revision for event in batch.events)
            assert not batches or batch.revision > batches[-1][0], "time goes backwards"
            batches.append((batch.revision, len(batch.events)))
            for event in batch.events:
                changes.append(change(event))
                assert (event.prev is None) == (event.kv.version == 1 and event.type == "put")
            if batch.events and batch.events[-1].kv.key == b"w/last":
                break
        last = end.next(timeout=30)
        assert end.next(timeout=0.2) is None
    return {
        "start": start,
        "changes": changes,
        "end": None if last is None else change(last),
        "members": len(members),
        "notices": sum(1 for _, events in batches if not events),
    }


class Writers:
    """Threads that write under ``w/``, and what was acknowledged to them."""

    def __init__(self, kv: Any) -> None:
        self.kv = kv
        self.acknowledged: set[Change] = set()
        self.failed = 0
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._write, args=(number,)) for number in range(3)]
        for thread in self.threads:
            thread.start()

    def _write(self, number: int) -> None:
        rng = random.Random(number)
        for n in itertools.count():
            if self.stopping.wait(0.002):
                return
            key, other = (f"w/{number}/{each}" for each in rng.sample(range(20), 2))
            value = f"{number}:{n}"
            try:
                kind = rng.random()
                if kind < 0.2:
                    deleted = self.kv.delete(key, timeout=30)
                    if deleted.deleted:
                        self.acknowledged.add((deleted.revision, "delete", key.encode(), b""))
                elif kind < 0.4:
                    revision = self.kv.txn(success=[Op.put(key, value), Op.put(other, value)], timeout=30).revision
                    for each in (key, other):
                        self.acknowledged.add((revision, "put", each.encode(), value.encode()))
                else:
                    revision = self.kv.put(key, value, timeout=30).revision
                    self.acknowledged.add((revision, "put", key.encode(), value.encode()))
            except KeeperError as error:
                self.failed += error.applied is False

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)


def test_watchers_on_all_members_while_leaders_are_killed(clusters: Made, crowd: Crowd, stopped: list[int]) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("w/first", "")
    people = crowd.take(6)
    watching = [person.start(watch_from_now, cluster.name, 1 + n % 3) for n, person in enumerate(people)]
    wait_until(lambda: kv.range(prefix="ready/", keys_only=True).count == len(people), 60, "all watch")
    assert {item.text for item in kv.range(prefix="ready/")} == {"1", "2", "3"}, "there are watchers on all members"
    writers = Writers(kv)
    until = time.monotonic() + SECONDS
    kills = 0
    while time.monotonic() < until:
        threading.Event().wait(1.0)
        kill(leader(cluster).pid)
        kills += 1
        if kills == 2:  # and once somebody stands still instead
            follower = next(m for m in cluster.members() if m.role == "follower" and m.pid)
            stopped.append(follower.pid)
            os.kill(follower.pid, signal.SIGSTOP)
            threading.Event().wait(3.0)
            os.kill(follower.pid, signal.SIGCONT)
        wait_until(lambda: serving(cluster), 60, "all members serve again")
    writers.stop()
    assert writers.failed == 0
    kv.put("end", "")
    kv.put("w/last", "", timeout=30)
    seen = ray.get(watching, timeout=120)
    history = [change(event) for event in up_to_last(kv, 2)]
    assert writers.acknowledged <= set(history)
    assert len(history) == len(set(history))
    assert history == sorted(history, key=lambda each: each[0])
    for one in seen:
        assert one["changes"] == [each for each in history if each[0] > one["start"]]
        assert one["end"] is not None, "the watch that had not seen its first event has lost it"
    moved = sum(one["members"] > 1 for one in seen)
    print(f"\n{kills} leaders killed, {len(history)} changes, {moved} of {len(seen)} watchers moved")
    assert moved


def up_to_last(kv: Any, start: int) -> Any:
    with kv.watch(prefix="w/", start_revision=start) as watch:
        for event in watch:
            yield event
            if event.kv.key == b"w/last":
                return


# --- what a watch shows ----------------------------------------------------------------------------------------------


def test_now_is_after_what_was_written_before(kv: Any) -> None:
    for n in range(20):
        revision = kv.put("now/key", str(n)).revision
        with kv.watch("now/key") as watch:
            assert watch.revision >= revision
            assert watch.next(timeout=0) is None
            kv.put("now/key", "next")
            event = watch.next(timeout=10)
            assert event.kv.value == b"next"


def test_puts_and_deletes_with_what_was_before_and_filters(kv: Any) -> None:
    start = kv.revision() + 1
    kv.put("seen/a", "1")
    kv.put("seen/a", "2")
    kv.delete("seen/a")
    kv.put("seen/b", "3")
    with kv.watch(prefix="seen/", start_revision=start, prev=True) as watch:
        events = [watch.next(timeout=10) for _ in range(4)]
    assert [(event.type, event.kv.key, event.kv.value) for event in events] == [
        ("put", b"seen/a", b"1"),
        ("put", b"seen/a", b"2"),
        ("delete", b"seen/a", b""),
        ("put", b"seen/b", b"3"),
    ]
    assert [event.prev and event.prev.value for event in events] == [None, b"1", b"2", None]
    with kv.watch(prefix="seen/", start_revision=start, only="delete") as watch:
        assert [watch.next(timeout=10).kv.mod_revision, watch.next(timeout=0.3)] == [start + 2, None]
    with kv.watch("seen/a", start_revision=start, only="put") as watch:
        assert [watch.next(timeout=10).kv.value, watch.next(timeout=10).kv.value] == [b"1", b"2"]
    with kv.watch("seen/a", "seen/b", start_revision=start + 1) as watch:
        assert [watch.next(timeout=10).type for _ in range(2)] == ["put", "delete"]


def test_batches_are_whole_revisions_and_idle_ones_tell_of_progress(kv: Any) -> None:
    with kv.watch(prefix="batch/") as watch:
        kv.txn(success=[Op.put("batch/a", "1"), Op.put("batch/b", "1"), Op.put("elsewhere", "1")])
        batches = watch.batches()
        batch = next(batches)
        assert [event.kv.key for event in batch.events] == [b"batch/a", b"batch/b"]
        assert batch.revision == watch.revision == batch.events[0].kv.mod_revision
        revision = kv.put("elsewhere", "2").revision
        notice = next(batches)
        while notice.revision < revision:
            assert notice.events == ()
            notice = next(batches)
        assert notice.events == ()
        assert watch.revision >= revision


def test_the_future_is_silent_until_it_comes(kv: Any) -> None:
    start = kv.revision() + 4
    with kv.watch("future", start_revision=start) as watch:
        for _ in range(3):
            kv.put("future", "too early")
        assert watch.next(timeout=0.5) is None
        kv.put("future", "in time")
        event = watch.next(timeout=10)
        assert (event.kv.mod_revision, event.kv.value) == (start, b"in time")


def all_have_compacted(cluster: Any) -> None:
    """A member that lags may still have what the others forgot, and would tell it."""
    wait_until(lambda: len({member.applied_index for member in cluster.members()}) == 1, what="all are equally far")


def test_compaction_under_a_watcher(shared: Any, kv: Any) -> None:
    revisions = [kv.put("compact/key", str(n)).revision for n in range(10)]
    kv.delete("compact/key")
    kv.compact(revisions[5])
    all_have_compacted(shared)
    with kv.watch("compact/key", start_revision=revisions[5]) as watch:
        events = [watch.next(timeout=10) for _ in range(6)]
        assert [event.kv.mod_revision for event in events] == [*revisions[5:], revisions[-1] + 1]
    with kv.watch("compact/key", start_revision=revisions[4]) as watch:
        with pytest.raises(CompactedError) as caught:
            watch.next(timeout=10)
        assert caught.value.compact_revision == revisions[5]
        with pytest.raises(CompactedError):
            next(watch)


def test_a_slow_consumer_costs_little_and_holds_back_nobody(kv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "WATCH_BUFFER_EVENTS", 50)
    with kv.watch(prefix="slow/") as slow, kv.watch(prefix="slow/") as quick:
        for n in range(60):
            kv.txn(success=[Op.put(f"slow/{n}/{i}", "v" * 100) for i in range(20)])
            assert [quick.next(timeout=10).kv.key for _ in range(20)] == [f"slow/{n}/{i}".encode() for i in range(20)]
        assert slow._subscription.phase is subscription.Phase.PAUSED
        assert len(slow._subscription._events) <= 70
        for n in range(60):
            assert [slow.next(timeout=10).kv.key for _ in range(20)] == [f"slow/{n}/{i}".encode() for i in range(20)]
        assert slow.next(timeout=0.2) is None


def test_a_slow_consumer_whose_history_is_compacted_gets_what_it_had_and_is_told(
    shared: Any, kv: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "WATCH_BUFFER_EVENTS", 5)
    with kv.watch("behind") as watch:
        for n in range(50):
            kv.put("behind", str(n))
        wait_until(lambda: watch._subscription.phase is subscription.Phase.PAUSED, 20, "its buffer is full")
        for n in range(50, 60):
            kv.put("behind", str(n))
        revision = kv.revision()
        kv.compact(revision)
        all_have_compacted(shared)
        seen: list[int] = []
        with pytest.raises(CompactedError) as caught:
            seen.extend(int(event.kv.value) for event in watch)
        assert seen == list(range(len(seen)))
        assert 5 <= len(seen) <= 50
        assert caught.value.compact_revision == revision


def test_a_member_that_stands_still_is_left(clusters: Made, stopped: list[int]) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    with kv.watch("key") as watch:
        member = next(m for m in cluster.members() if m.id == hub_of(kv).watch_core.member)
        stopped.append(member.pid)
        os.kill(member.pid, signal.SIGSTOP)
        kv.put("key", "value", timeout=30)
        began = time.monotonic()
        assert watch.next(timeout=20).kv.value == b"value"
        assert time.monotonic() - began < 10
        assert hub_of(kv).watch_core.member != member.id


# --- handles ---------------------------------------------------------------------------------------------------------


def test_namespaces_and_codecs(kv: Any) -> None:
    inner = kv.namespace("space/").with_codec(codec.JSON)
    with inner.watch(prefix="", prev=True) as watch:
        inner.put("a", {"n": 1})
        kv.put("outside", "x")
        inner.put("a", [2])
        inner.delete("a")
        events = [watch.next(timeout=10) for _ in range(3)]
    assert [(event.kv.key, event.type) for event in events] == [(b"a", "put"), (b"a", "put"), (b"a", "delete")]
    assert [events[0].kv.value, events[1].kv.value, events[1].prev.value] == [{"n": 1}, [2], {"n": 1}]
    assert events[2].kv.value == b""


def test_cancelling_ends_iterators_in_other_threads(kv: Any) -> None:
    watch = kv.watch("cancelled")
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(list(watch))) for _ in range(2)]
    threads.append(threading.Thread(target=lambda: seen.append(list(watch.batches()))))
    for thread in threads:
        thread.start()
    watch.cancel()
    for thread in threads:
        thread.join(10)
    assert seen == [[], [], []]
    assert watch.next() is None


def test_closing_the_handle_ends_its_watches_and_collecting_a_watch_cancels_it(shared: Any) -> None:
    keep = shared.client()
    keep.revision()
    hub = hub_of(keep)
    wait_until(lambda: len(hub.watch_core) == 0, what="the end of earlier tests' watches")
    with shared.client() as kv:
        watch = kv.watch("closing")
        assert len(hub.watch_core) == 1
    assert list(watch) == []
    wait_until(lambda: len(hub.watch_core) == 0, what="its end")
    watch = keep.watch("collected")
    assert len(hub.watch_core) == 1
    del watch
    gc.collect()
    wait_until(lambda: len(hub.watch_core) == 0)


def test_a_watch_does_not_pickle_and_says_what_to_do(kv: Any) -> None:
    with kv.watch("key") as watch, pytest.raises(TypeError, match="start_revision"):
        pickle.dumps(watch)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"key": "k", "prefix": "p"},
        {"key": "k", "only": "puts"},
        {"key": "k", "start_revision": 0},
        {"key": "k", "prev": 1},
        {"key": 5},
    ],
)
def test_wrong_arguments(kv: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        kv.watch(**arguments)


def test_without_a_quorum_a_watch_from_now_is_unavailable(clusters: Made, stopped: list[int]) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("key", "value")
    for member in cluster.members()[:2]:
        stopped.append(member.pid)
        os.kill(member.pid, signal.SIGSTOP)
    with pytest.raises(Unavailable):
        kv.watch("key", timeout=3.0)
    assert len(hub_of(kv).watch_core) == 0


def test_coroutines(kv: Any) -> None:
    async def go() -> None:
        aio = kv.aio
        async with await aio.watch(prefix="aio/") as watch:
            assert await watch.next(timeout=0.05) is None
            writing = asyncio.create_task(write(aio))
            seen = []
            async for event in watch:
                seen.append(event.kv.value)
                if len(seen) == 10:
                    break
            assert seen == [b"%d" % n for n in range(10)]
            await writing
            await aio.txn(success=[Op.put("aio/a", "1"), Op.put("aio/b", "1")])
            async for batch in watch.batches():
                assert len(batch.events) == 2
                break
            waiting = asyncio.create_task(watch.next())
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await aio.put("aio/a", "after")
            event = await watch.next(timeout=10)
            assert event.kv.value == b"after", "cancelling a wait loses nothing"
            assert watch.revision == event.kv.mod_revision
        assert [event async for event in watch] == []

    async def write(aio: Any) -> None:
        for n in range(10):
            await aio.put(f"aio/{n}", str(n))

    asyncio.run(go())


def test_many_watches_of_a_process_are_one_stream(kv: Any) -> None:
    watches = [kv.watch(f"many/{n}", start_revision=kv.revision() + 1) for n in range(300)]
    wait_until(lambda: all(watch._subscription.phase is subscription.Phase.LIVE for watch in watches), 10)
    kv.txn(success=[Op.put(f"many/{n}", str(n)) for n in range(100)])
    assert [watch.next(timeout=10).kv.text for watch in watches[:100]] == [str(n) for n in range(100)]
    for watch in watches:
        watch.cancel()
