"""The directory of proxies, over one real member: who speaks for whom, and what clients are told."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE
from raykeeper import KeeperError
from raykeeper.actors.client.txn_parts import Op
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy import proxy_registry
from raykeeper.actors.proxy.proxy_registry import (
    PROXIES,
    ListedProxy,
    ProxyEntry,
    ProxyRegistry,
    choose_member,
    must_move,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def member() -> Iterator[OneMember]:
    with one_member() as member:
        yield member


class Place:
    """A registry, and what its proxy was told."""

    def __init__(self, member: OneMember, number: int, voters: list[int], near: Collection[int] = ()) -> None:
        self.kv = member.client()
        self.url = f"http://127.0.0.1:{number}"
        self.spoken_for: list[int] = []
        self.voters = voters
        self.near = frozenset(near)
        entry = ProxyEntry(self.url, 0, f"node-{number}", number)
        log = MemberLog("proxy", "test", "proxy")
        self.registry = ProxyRegistry(self.kv.aio, entry, self._voters, lambda: self.near, self.spoken_for.append, log)

    async def _voters(self) -> Collection[int]:
        return self.voters

    @property
    def member(self) -> int:
        return self.spoken_for[-1]


async def settled(places: list[Place], condition: Callable[[], bool]) -> None:
    """Let all check until the condition holds."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, [place.spoken_for for place in places]
        for place in places:
            with suppress(KeeperError):  # on a slow machine a lease is lost; the next check makes another one
                await place.registry.check()


async def close(*places: Place) -> None:
    for place in places:
        await place.registry.close()
        place.kv.close()


def entries(member: OneMember) -> list[Any]:
    with member.client() as kv:
        return list(kv.reserved(PROXIES).range(prefix=b""))


def test_proxies_that_start_together_spread_over_the_voters(member: OneMember) -> None:
    async def scenario() -> None:
        voters = [1, 2, 3]
        places = [Place(member, number, voters) for number in range(2001, 2010)]
        await asyncio.gather(*(place.registry.start() for place in places))
        assert Counter(place.member for place in places) == {1: 3, 2: 3, 3: 3}
        told = await places[0].registry.urls(True)
        assert {voter: sorted(urls) for voter, urls in told.items()} == {
            voter: [place.url for place in places if place.member == voter] for voter in voters
        }
        assert told[places[0].member][0] == places[0].url, "its own first"
        assert await places[0].registry.urls(False) == told
        await close(*places)
        assert entries(member) == []

    asyncio.run(scenario())


def test_proxies_move_when_voters_change_and_when_others_end(member: OneMember) -> None:
    async def scenario() -> None:
        voters = [1, 2]
        places = [Place(member, number, voters) for number in range(2001, 2005)]
        for place in places:
            await place.registry.check()
        assert [place.spoken_for for place in places] == [[1], [2], [1], [2]]
        await close(places[0], places[2])
        left = [places[1], places[3]]
        await settled(left, lambda: Counter(place.member for place in left) == {1: 1, 2: 1})
        assert places[1].spoken_for == [2], "the older one stays"
        voters[:] = [2, 3]
        await settled(left, lambda: Counter(place.member for place in left) == {2: 1, 3: 1})
        assert places[1].spoken_for == [2]
        voters.clear()  # unknown: nobody moves
        for place in left:
            await place.registry.check()
        assert [len(place.spoken_for) for place in left] == [1, 3]
        await close(*left)

    asyncio.run(scenario())


def test_a_proxy_whose_lease_was_lost_registers_again(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_registry, "PROXY_REGISTRATION_TTL_S", 1.0)
    monkeypatch.setattr(proxy_registry, "PROXY_REGISTRY_CHECK_S", 0.05)

    async def scenario() -> None:
        place = Place(member, 2001, [1])
        await place.registry.start()
        until = time.monotonic() + PATIENCE
        while not (present := entries(member)):  # a lease of a second may be lost on a slow machine
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        [found] = present
        with member.client() as kv:
            kv.txn([], [Op.revoke(found.lease)])
        until = time.monotonic() + PATIENCE
        while not (now := entries(member)) or now[0].lease == found.lease:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        await close(place)

    asyncio.run(scenario())


def test_a_dead_proxy_disappears_with_its_lease(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_registry, "PROXY_REGISTRATION_TTL_S", 1.0)

    async def scenario() -> None:
        dead, other = Place(member, 2001, [1, 2]), Place(member, 2002, [1, 2])
        until = time.monotonic() + PATIENCE
        while (await other.registry.urls(True)).keys() != {1, 2}:  # a lease of a second may be lost on a slow machine
            assert time.monotonic() < until
            for place in (dead, other):
                with suppress(KeeperError):  # it was lost between a check's look at it and its write
                    await place.registry.check()
        dead.registry._lease = None  # it is kept alive no longer, and not ended either
        gc.collect()
        until = time.monotonic() + PATIENCE
        while (await other.registry.urls(True)).keys() != {2}:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        await close(dead, other)

    asyncio.run(scenario())


def test_a_proxy_that_cannot_reach_the_cluster_knows_itself(member: OneMember, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_registry, "PROXY_REGISTRY_TIMEOUT_S", 0.3)
    monkeypatch.setattr(proxy_registry, "PROXY_DEREGISTER_S", 0.1)

    async def scenario() -> None:
        place, other = Place(member, 2001, [1]), Place(member, 2002, [1])
        await place.registry.start()
        await other.registry.start()
        member.cut = True
        try:
            assert await place.registry.urls(True) == {1: [place.url]}
            late = Place(member, 2003, [1])
            await late.registry.start()  # it will register later
        finally:
            member.cut = False
        await settled([late], lambda: late.spoken_for == [1])
        await close(place, other, late)

    asyncio.run(scenario())


def test_an_entry_that_cannot_be_read_is_passed_over(member: OneMember) -> None:
    async def scenario() -> None:
        with member.client() as kv:
            kv.reserved(PROXIES).put(b"broken", b"\xc1")
            place = Place(member, 2001, [1])
            await place.registry.check()
            assert await place.registry.urls(True) == {1: [place.url]}
            await close(place)
            kv.reserved(PROXIES).delete(b"broken")

    asyncio.run(scenario())


def test_a_voter_on_the_same_node_comes_first_however_many_speak_for_it() -> None:
    assert choose_member([1, 2, 3], [], {2}) == 2
    assert choose_member([1, 2, 3], [2, 2, 2], {2}) == 2
    assert choose_member([1, 2, 3], [1, 2, 3], {3}) == 3
    assert choose_member([1, 2, 3], [1], {1, 3}) == 3, "those of one node spread over the voters there"
    assert choose_member([1, 2, 3], [1, 2], {4}) == 3, "a learner is nobody's"
    assert choose_member([], [1], {1}) == 0


def listed(since: int, member: int, near: bool = False) -> ListedProxy:
    return ListedProxy(b"%d" % since, since, 1, ProxyEntry("http://a:1", member, near=near))


def moving(crowd: list[ListedProxy], voters: list[int], near: Collection[int] = ()) -> list[int]:
    """Since when those are there that have to move, if all of them have these members near."""
    return [
        own.since for own in crowd if must_move(own, [each for each in crowd if each != own], voters, frozenset(near))
    ]


def test_the_youngest_of_a_crowd_moves() -> None:
    crowd = [listed(5, 1), listed(6, 1), listed(7, 2)]
    assert moving(crowd, [1, 2, 3]) == [6]
    assert moving(crowd, [1, 2]) == [], "one more than another is even"


def test_a_proxy_stays_with_the_voter_of_its_node_and_moves_to_it() -> None:
    own = listed(9, 1, near=True)
    crowd = [listed(5, 1), listed(6, 1)]
    assert not must_move(own, crowd, [1, 2, 3], {1}), "though it is the youngest of three, and others have none"
    assert must_move(crowd[1], [crowd[0], own], [1, 2, 3], frozenset()), "and keeps none that is not near from moving"
    assert must_move(listed(9, 2), [], [1, 2, 3], {1}), "a voter has come to its node"
    assert not must_move(listed(9, 2), [], [2, 3], {1}), "it does not vote yet"
    assert must_move(listed(9, 1), [], [1, 2, 3], {1}), "its entry has to say that it is near"
    assert must_move(own, [], [1, 2, 3], frozenset()), "or not any more"
    assert moving([listed(5, 1, near=True), listed(6, 1, near=True)], [1, 2, 3], {1, 2}) == [6]
    assert not must_move(listed(9, 1), [], [], {1}), "unknown: nobody moves"


def test_each_node_of_a_member_speaks_for_it_and_the_others_spread(member: OneMember) -> None:
    async def scenario() -> None:
        voters = [1, 2, 3]
        others = [Place(member, number, voters) for number in range(2001, 2004)]
        await settled(others, lambda: all(place.spoken_for for place in others))
        homes = [Place(member, 3000 + number, voters, [number]) for number in voters]
        late = homes[0]
        late.near = frozenset()  # it learns only later whose node it is on
        await settled(
            [*others, *homes],
            lambda: (
                Counter(place.spoken_for[-1] for place in (*others, *homes) if place.spoken_for) == {1: 2, 2: 2, 3: 2}
            ),
        )
        late.near = frozenset([1])
        await settled([*others, *homes], lambda: [place.member for place in homes] == voters)
        assert [set(place.spoken_for) for place in homes[1:]] == [{2}, {3}], "they have never spoken for another"
        await settled(
            [*others, *homes], lambda: Counter(place.member for place in (*others, *homes)) == {1: 2, 2: 2, 3: 2}
        )
        assert [place.member for place in homes] == voters
        await close(*others, *homes)

    asyncio.run(scenario())
