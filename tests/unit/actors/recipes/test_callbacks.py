"""``on_change`` and ``on_connection``: what is told, in which order, and what ends it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from lab.onemember import OneMember
from lab.patience import PATIENCE, until
from raykeeper import Client, CompactedError, Event, InvalidArgument, PermissionDenied, Resync, Unavailable
from raykeeper.actors.interruptible import Places
from raykeeper.actors.recipes import callbacks


@pytest.fixture
def kv(member: OneMember, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A handle on a namespace of the test's own, whose calls have all the time that a slow machine takes."""
    with member.client() as client:
        yield client.namespace(f"{request.node.name}/").with_timeout(PATIENCE)


def texts(told: list[Any]) -> list[Any]:
    """A resync as what is there, an event as its key and value."""
    return [
        sorted((item.key, item.raw) for item in change.items)
        if isinstance(change, Resync)
        else (change.type, change.kv.key, change.kv.raw)
        for change in told
    ]


def test_what_is_there_and_then_every_change_in_order(kv: Client) -> None:
    kv.put("in/a", "1")
    kv.put("out", "1")
    told: list[Any] = []
    watching = kv.on_change(prefix="in/", call=told.append)
    kv.put("in/b", "1")
    kv.put("out", "2")
    kv.delete("in/a")
    for n in range(50):
        kv.put("in/c", str(n))
    until(lambda: len(told) == 53)
    wanted = [("put", b"in/b", b"1"), ("delete", b"in/a", b""), *[("put", b"in/c", b"%d" % n) for n in range(50)]]
    assert texts(told) == [[(b"in/a", b"1")], *wanted]
    revisions = [told[0].revision, *[event.kv.mod_revision for event in told[1:]]]
    assert revisions == sorted(set(revisions))
    assert told[2].prev.raw == b"1"
    assert watching.active
    watching.cancel()
    watching.cancel()
    assert not watching.active
    assert watching.error is None


def test_one_call_at_a_time_and_a_slow_function_misses_nothing(kv: Client) -> None:
    inside, most, told, go = [0], [0], [], threading.Event()

    def slow(change: Any) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        go.wait()
        told.append(change)
        inside[0] -= 1

    watching = kv.on_change("k", call=slow)
    for n in range(20):
        kv.put("k", str(n))
    go.set()
    until(lambda: len(told) == 21)
    assert texts(told) == [[], *[("put", b"k", b"%d" % n) for n in range(20)]]
    assert most == [1]
    watching.cancel()


def test_what_a_function_raises_is_logged_and_ends_nothing(kv: Client, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Any] = []

    def fails(change: Any) -> None:
        told.append(change)
        raise KeyError("mine")

    async def coroutine(change: Any) -> None:
        told.append(change)

    with caplog.at_level(logging.ERROR, "raykeeper.client"):
        one, other = kv.on_change("k", call=fails), kv.on_change("k", call=coroutine)
        kv.put("k", "1")
        until(lambda: len(told) == 2)
        until(lambda: len([record for record in caplog.records if "has raised" in record.message]) >= 4)
    assert one.active
    assert other.active
    one.cancel()
    other.cancel()


def test_what_was_compacted_is_told_as_what_is_there(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    following, told, waiting = callbacks.next_event, [], threading.Event()
    calls = itertools.count()

    async def next_event(watch: Any, max_wait: float) -> Event | None:
        if next(calls) == 0:
            waiting.wait()
            raise CompactedError(7)
        return await following(watch, max_wait)

    monkeypatch.setattr(callbacks, "next_event", next_event)
    kv.put("k", "1")
    watching = kv.on_change("k", call=told.append)
    until(lambda: len(told) == 1)
    kv.put("k", "2")
    kv.put("k", "3")
    waiting.set()
    until(lambda: len(told) == 2)
    kv.put("k", "4")
    until(lambda: len(told) == 3)
    assert texts(told) == [[(b"k", b"1")], [(b"k", b"3")], ("put", b"k", b"4")]
    watching.cancel()


def test_a_function_that_cancels_itself_is_not_called_again(kv: Client) -> None:
    told: list[Any] = []
    known = threading.Event()
    watching: list[Any] = []

    def once(change: Any) -> None:
        known.wait()
        told.append(change)
        watching[0].cancel()

    watching.append(kv.on_change("k", call=once))
    kv.put("k", "1")
    known.set()
    later: list[Any] = []
    other = kv.on_change("k", call=later.append)
    kv.put("k", "2")
    until(lambda: len(later) >= 2)
    assert len(told) == 1
    other.cancel()


def test_it_ends_with_its_handle(member: OneMember) -> None:
    told: list[Any] = []
    with member.client() as client:
        watching = [client.on_change("k", call=told.append), client.on_connection(told.append)]
        until(lambda: len(told) >= 2)
        assert all(each.active for each in watching)
    assert not any(each.active for each in watching)
    with pytest.raises(InvalidArgument):
        client.on_change("k", call=told.append)
    with pytest.raises(InvalidArgument):
        client.on_connection(told.append)


def test_another_error_ends_it_and_is_told(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def next_event(watch: Any, max_wait: float) -> Event | None:
        raise PermissionDenied("no longer")

    monkeypatch.setattr(callbacks, "next_event", next_event)
    watching = kv.on_change("k", call=lambda change: None)
    until(lambda: not watching.active)
    assert isinstance(watching.error, PermissionDenied)


def test_there_are_only_so_many(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "_places", Places(1))
    first = kv.on_change("k", call=lambda change: None)
    with pytest.raises(Unavailable):
        kv.on_change("k", call=lambda change: None)
    first.cancel()
    until(lambda: _registered(kv))


def _registered(kv: Client) -> bool:
    try:
        kv.on_change("k", call=lambda change: None).cancel()
    except Unavailable:
        return False
    return True


def test_what_is_wrong_is_said_at_once_and_leaves_nothing(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "_places", Places(1))
    for _ in range(3):
        for wrong in (
            lambda: kv.on_change("k", call="no function"),  # type: ignore[arg-type]
            lambda: kv.on_change("k", prefix="k", call=print),
            lambda: kv.on_change(call=print),
            lambda: kv.on_connection(None),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidArgument):
                wrong()
    kv.on_connection(lambda state: None).cancel()


@pytest.mark.parametrize("coroutine", [False, True])
def test_with_asyncio(coroutine: bool, kv: Client) -> None:
    async def main() -> None:
        told: list[Any] = []
        arrived = asyncio.Event()

        def note(change: Any) -> None:
            told.append(change)
            if len(told) == 4:
                arrived.set()
            if len(told) == 2:
                raise KeyError("mine")

        async def await_and_note(change: Any) -> None:
            await asyncio.sleep(0)
            note(change)

        watching = await kv.aio.on_change("k", call=await_and_note if coroutine else note)
        for n in range(3):
            await kv.aio.put("k", str(n))
        await asyncio.wait_for(arrived.wait(), PATIENCE)
        assert texts(told) == [[], *[("put", b"k", b"%d" % n) for n in range(3)]]
        await watching.cancel()
        assert not watching.active

    asyncio.run(main())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that is not answered is given up soon. On a slow machine that may come to one that would have been."""
    monkeypatch.setattr(callbacks, "CONNECTION_CHECK_S", 0.02)
    monkeypatch.setattr(callbacks, "CONNECTION_PROBE_S", 0.9)


def came_and_went(told: list[str], member: OneMember, away: str, wait: Callable[..., None]) -> None:
    try:
        wait(lambda: "connected" in told)
        member.cut = True
        wait(lambda: told[-1] == away)
    finally:
        member.cut = False
    wait(lambda: told[-1] == "connected")
    assert all(one != other for one, other in itertools.pairwise(told))


def test_the_connection_is_suspended_and_comes_back(kv: Client, member: OneMember, impatient: None) -> None:
    told: list[str] = []
    watching = kv.on_connection(told.append)
    came_and_went(told, member, "suspended", until)
    watching.cancel()


def test_the_connection_is_lost_and_comes_back(
    kv: Client, member: OneMember, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv.put("k", "v")
    hub = kv._known_hub()
    assert hub is not None
    monkeypatch.setattr(hub, "timings", msgspec.structs.replace(hub.timings, session_ttl=2.0))
    told: list[str] = []
    watching = kv.on_connection(told.append)
    came_and_went(told, member, "lost", until)
    watching.cancel()


def test_the_connection_with_asyncio(kv: Client, member: OneMember, impatient: None) -> None:
    async def main() -> None:
        told: list[str] = []
        watching = await kv.aio.on_connection(told.append)

        def meddle() -> None:
            came_and_went(told, member, "suspended", until)

        await asyncio.get_running_loop().run_in_executor(None, meddle)
        await watching.cancel()

    asyncio.run(main())
