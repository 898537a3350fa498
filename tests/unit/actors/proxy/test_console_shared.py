"""What open consoles cost: a view is made once a moment and user, however many look, and takes a bounded number of
reads; live tails are shared out among those who have some."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest

from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import request
from lab.patience import PATIENCE, until
from raykeeper.actors.proxy import console_shared, console_views, member_calls
from raykeeper.actors.proxy.console_keys import Tails
from raykeeper.actors.proxy.console_shared import MadeView, SharedAnswers, ViewOfUser
from raykeeper.actors.proxy.etcd_backend import EtcdBackend
from raykeeper.actors.proxy.member_calls import MemberCalls
from raykeeper.actors.proxy.rpc_status import RpcCode, RpcError
from raykeeper.limits import CONSOLE_LEASES, CONSOLE_NAMES, MAX_CONSOLE_TAILS

FOREVER = 1e9
VIEWS = ("cluster", "events", "clients", "load", "leases", "locks", "semaphores", "queues", "services")
LOCKS = ViewOfUser("locks", "ann")


@pytest.fixture
def port() -> Iterator[EtcdPort]:
    with etcd_port(console="read") as port:
        yield port


def get(port: EtcdPort, view: str) -> Any:
    reply = request(port.endpoint, "GET", f"/console/api/{view}")
    assert reply.status == 200, reply
    return json.loads(reply.body)


def test_many_consoles_cost_what_one_does(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_shared, "CONSOLE_SHARED_S", FOREVER)
    monkeypatch.setattr(member_calls, "STATUS_TIMEOUT_S", PATIENCE)
    with ThreadPoolExecutor(8) as people:
        found = list(people.map(lambda number: get(port, VIEWS[number % len(VIEWS)]), range(len(VIEWS) * 8)))
    assert len(found) == len(VIEWS) * 8
    assert port.site is not None
    assert port.site.shared.made == len(VIEWS)
    get(port, "keys?prefix=")
    get(port, "keys?prefix=")
    assert port.site.shared.made == len(VIEWS), "what is asked for by name is not shared"


def test_what_a_view_costs_members(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions to members, and reads, for one answer, with more in the store than is shown; and how long it is."""
    monkeypatch.setattr(console_shared, "CONSOLE_SHARED_S", 0.0)
    monkeypatch.setattr(console_shared, "CONSOLE_READS_A_SECOND", FOREVER)
    monkeypatch.setattr(console_views, "CONSOLE_NAMES", 20)
    monkeypatch.setattr(member_calls, "STATUS_TIMEOUT_S", PATIENCE)
    kv = port.proxy.kv
    for _ in range(CONSOLE_LEASES + 5):
        kv.lease(300.0, keep_alive=False)
    held = [kv.lock(f"lock {number}", ttl=300) for number in range(25)]
    for lock in held:
        assert lock.acquire()
    asked = list[str]()
    for kind, name in ((MemberCalls, "_ask"), (EtcdBackend, "run")):
        monkeypatch.setattr(kind, name, noting(asked, getattr(kind, name)))
    for view in VIEWS:
        asked.clear()
        found = get(port, view)
        assert len(asked) <= 2, view  # one of them may be whether anyone may ask
        assert len(json.dumps(found)) < 256 * 1024, view
        assert found.get("reads", 0) <= 20 * 2 + 1, view
    leases = get(port, "leases")
    assert (len(leases["leases"]), leases["total"]) == (CONSOLE_LEASES, CONSOLE_LEASES + 5 + len(held))
    locks = get(port, "locks")
    assert (len(locks["locks"]), locks["reads"]) == (20, 20 * 2 + 1)
    for lock in held:
        lock.release()


def noting(asked: list[str], call: Any) -> Any:
    def noted(*arguments: Any) -> Any:
        asked.append(call.__name__)
        return call(*arguments)

    return noted


def test_a_view_that_takes_many_reads_is_made_rarely() -> None:
    now = [1000.0]
    shared = SharedAnswers(lambda: now[0])

    async def make() -> MadeView:
        return MadeView(b"%d" % shared.made, reads=2 * CONSOLE_NAMES)

    async def ask(after: float) -> bytes:
        now[0] += after
        return await shared.answer(LOCKS, make)

    async def play() -> list[bytes]:
        return [await ask(after) for after in (0.0, 1.5, 2.0, 0.6, 0.1)]

    assert asyncio.run(play()) == [b"1", b"1", b"1", b"2", b"2"]


def test_if_the_one_who_makes_it_goes_the_next_one_does() -> None:
    shared = SharedAnswers()

    async def play() -> bytes:
        begun = asyncio.Event()

        async def never() -> MadeView:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        async def make() -> MadeView:
            return MadeView(b"made")

        first = asyncio.ensure_future(shared.answer(LOCKS, never))
        await begun.wait()
        second = asyncio.ensure_future(shared.answer(LOCKS, make))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(play()) == b"made"


@pytest.mark.parametrize(("code", "made"), [(RpcCode.UNAVAILABLE, 1), (RpcCode.PERMISSION_DENIED, 2)])
def test_that_nobody_answers_is_shared_and_a_refusal_is_not(
    monkeypatch: pytest.MonkeyPatch, code: RpcCode, made: int
) -> None:
    monkeypatch.setattr(console_shared, "CONSOLE_SHARED_S", FOREVER)
    shared = SharedAnswers()

    async def fail() -> MadeView:
        raise RpcError(code, "no")

    async def play() -> None:
        for _ in range(2):
            with pytest.raises(RpcError, match="no"):
                await shared.answer(LOCKS, fail)

    asyncio.run(play())
    assert shared.made == made


def test_a_proxy_keeps_few_answers_and_none_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(console_shared, "MAX_CONSOLE_ANSWERS", 2)
    shared = SharedAnswers(lambda: now[0])

    async def make() -> MadeView:
        return MadeView(b"")

    async def play() -> list[int]:
        for user in "abcd":
            await shared.answer(ViewOfUser("locks", user), make)
        kept = [len(shared._known)]
        now[0] += 10
        await shared.answer(ViewOfUser("locks", "e"), make)
        return [*kept, len(shared._known)]

    assert asyncio.run(play()) == [2, 1]


# --- live tails ------------------------------------------------------------------------------------------------------


class Follower:
    """One who follows a key until it has enough; nothing of it is a real watch."""

    def __init__(self, user: str, client: str = "10.0.0.1 port 7") -> None:
        self.user, self.client = user, client
        self.enough = asyncio.Event()
        self.revision = 1

    async def watch_key(self, *arguments: object) -> Follower:
        return self

    async def next(self, seconds: float) -> None:
        await self.enough.wait()
        raise asyncio.CancelledError

    async def cancel(self) -> None:
        pass

    async def start(self, status: int, headers: dict[str, str]) -> None:
        pass

    send = watch_key


async def follow(tails: Tails, who: Any) -> bool:
    """Whether it may."""
    task = asyncio.ensure_future(tails.follow(who, who, b"k", False, {}))
    for _ in range(10):
        await asyncio.sleep(0)
    if not task.done():
        return True
    assert isinstance(error := task.exception(), RpcError)
    assert error.code is RpcCode.RESOURCE_EXHAUSTED or error.code is RpcCode.UNAVAILABLE
    return False


def test_nobody_takes_all_places_of_live_tails() -> None:
    async def play() -> dict[str, int]:
        tails, places = Tails(), dict[str, int]()
        everyone = list[Follower]()
        for user in ("ann", "bob", "cyd", ""):
            for number in range(MAX_CONSOLE_TAILS):
                who = Follower(user, f"10.0.0.9 port {number}")
                if await follow(tails, who):
                    everyone.append(who)
                    places[user] = places.get(user, 0) + 1
        first = next(each for each in everyone if each.user == "ann")
        first.enough.set()
        for _ in range(10):
            await asyncio.sleep(0)
        places["ann again"] = int(await follow(tails, Follower("ann")))
        places["dan"] = int(await follow(tails, Follower("dan")))
        for each in everyone:
            each.enough.set()
        for _ in range(10):
            await asyncio.sleep(0)
        return places

    half = MAX_CONSOLE_TAILS // 2
    assert asyncio.run(play()) == {
        "ann": half,
        "bob": half // 2,
        "cyd": half // 4,
        "": half // 8,
        "ann again": 0,
        "dan": 1,
    }


def test_a_tail_that_has_ended_leaves_its_place(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.proxy.console_keys.MAX_CONSOLE_TAILS", 1)
    for _ in range(3):

        def begins() -> bool:
            connection = HTTPConnection(port.endpoint, timeout=PATIENCE)
            connection.request("GET", "/console/api/tail?key=a")
            reply = connection.getresponse()
            begun = reply.status == 200 and bool(reply.readline())
            connection.close()
            reply.close()
            return begun

        until(begins)
