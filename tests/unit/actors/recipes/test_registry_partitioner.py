"""Service discovery, and the splitting of partitions."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.onemember import OneMember, in_thread
from raykeeper import Client, InvalidArgument, LockLost
from raykeeper.actors.client.results import KeyValue
from raykeeper.actors.recipes.contenders import Contenders
from raykeeper.actors.recipes.partitioner import shares, taking

Until = Callable[..., None]


def test_services_are_found_while_they_are_there(kv: Client) -> None:
    registry = kv.registry("search")
    assert registry.lookup() == []
    with registry.register("ranker", "a:1", metadata={"zone": "a"}) as one:
        two = registry.register("ranker", "b:2")
        three = registry.register("in/dex", "c:3")
        assert [(s.name, s.address, s.metadata) for s in registry.lookup()] == [
            ("ranker", "a:1", {"zone": "a"}),
            ("ranker", "b:2", None),
            ("in/dex", "c:3", None),
        ]
        assert [s.address for s in registry.lookup("ranker")] == ["a:1", "b:2"]
        assert [s.address for s in registry.lookup("in/dex")] == ["c:3"]
        assert kv.registry("search/ranker").lookup() == []
        one.update("a:9", {"zone": "b"})
        assert registry.lookup("ranker")[0].address == "a:9"
        assert one.registered
    assert [s.address for s in registry.lookup()] == ["b:2", "c:3"]
    two.deregister()
    three.deregister()
    assert registry.lookup() == []
    assert not one.registered
    for bad in (5, None, b"x"):
        with pytest.raises(InvalidArgument):
            registry.register("x", bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        registry.register("x", "y", metadata=object())


def test_watchers_see_who_comes_changes_and_goes(kv: Client, until: Until) -> None:
    registry = kv.registry("search")
    there = registry.register("one", "a:1")
    seen: list[tuple[str, str, str]] = []

    def watch() -> None:
        for change in kv.registry("search").watch():
            seen.append((change.type, change.service.name, change.service.address))
            if change.service.name == "end":
                return

    watching = in_thread(watch)
    until(lambda: len(seen) == 1)
    kv.compact(kv.put("k", "1").revision)
    two = registry.register("two", "b:2")
    two.update("b:3")
    there.deregister()
    end = registry.register("end", "")
    watching.result()
    assert seen == [
        ("up", "one", "a:1"),
        ("up", "two", "b:2"),
        ("changed", "two", "b:3"),
        ("down", "one", "a:1"),
        (
            "up",
            "end",
            "",
        ),
    ]
    two.deregister()
    end.deregister()


def test_a_forgotten_registration_disappears(kv: Client, until: Until) -> None:
    kv.registry("search").register("one", "a:1", ttl=1)
    gc.collect()
    until(lambda: kv.registry("search").lookup() == [])


def test_many_registrations_cost_no_thread_each(kv: Client, member: OneMember, until: Until) -> None:
    registry = kv.registry("many")
    with registry.register("warm", "a"):
        before = member.thread_count()
        entries = [registry.register(f"s{number}", "a", ttl=60) for number in range(50)]
        assert member.thread_count() <= before + 2
        entries[7]._record.text = entries[7]._record.text.replace(
            b'"a"', b'"b"'
        )  # what could not be said is said later
        until(lambda: [s.address for s in registry.lookup("s7")] == ["b"])
        for entry in entries:
            entry.deregister()


def test_a_service_that_was_cut_off_comes_back(member: OneMember, kv: Client, until: Until) -> None:
    registry = kv.registry("search")
    with registry.register("one", "a:1", ttl=6) as one:
        until(lambda: registry.lookup())
        first = registry.lookup()[0].id
        member.cut = True
        try:
            until(lambda: not one.registered)
            threading.Event().wait(1.0)
        finally:
            member.cut = False
        until(lambda: [s.id > first for s in registry.lookup()] == [True])
        until(lambda: one.registered)  # it knows a little later than the others
    assert registry.lookup() == []


def test_asyncio_registry(kv: Client) -> None:
    async def main() -> None:
        registry = kv.aio.registry("search")
        async with await registry.register("one", "a:1") as one:
            await one.update("a:2")
            assert [s.address for s in await registry.lookup("one")] == ["a:2"]
            async for change in registry.watch():
                assert change.type == "up"
                break
        assert await registry.lookup() == []

    asyncio.run(main())


# --- partitioner -----------------------------------------------------------------------------------------------------


def test_one_member_owns_everything_and_gives_half_to_the_next(kv: Client, until: Until) -> None:
    one = kv.partitioner("p", 8)
    with one:
        assert [partition for partition, _ in one.mine()] == list(range(8))
        before = dict(one.mine())
        guard = one.guard(7)
        guard.put("k", "1")
        with kv.partitioner("p", 8) as two:
            until(lambda: len(one.mine()) == 4 and len(two.mine()) == 4)
            assert sorted(p for p, _ in one.mine() + two.mine()) == list(range(8))
            assert all(token > before[partition] for partition, token in two.mine())
            assert all(before[partition] == token for partition, token in one.mine())
            taken = two.mine()[0][0]
            two.guard(taken).put("k", "2")
            with pytest.raises(LockLost):
                one.guard(taken)
            stale = one.guard(one.mine()[0][0])
        until(lambda: len(one.mine()) == 8)
        stale.put("k", "3")
    assert one.mine() == []
    with pytest.raises(LockLost):
        stale.put("k", "4")
    with pytest.raises(LockLost):
        one.guard(0)


def test_names_and_members_that_disagree(kv: Client) -> None:
    with kv.partitioner("p", ["a", "b", "c/d"]) as one:
        assert [partition for partition, _ in one.mine()] == ["a", "b", "c/d"]
        one.guard("c/d").put("k", "1")
        with pytest.raises(InvalidArgument):
            one.guard("e")
        with pytest.raises(InvalidArgument):
            kv.partitioner("p", ["a", "b"]).join()
        assert len(one.mine()) == 3
    bad: Any
    for bad in (0, -1, True, [], ["a", "a"], [1], "ab", None, 1.5, 10**9):
        with pytest.raises(InvalidArgument):
            kv.partitioner("p", bad)


def test_a_member_comes_and_goes_between_the_two_steps_of_the_first(
    kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree = Contenders.agree_on
    visits = iter([True, True])

    async def visited(line: Contenders, *arguments: Any) -> None:
        await agree(line, *arguments)
        if next(visits, False):
            with kv.partitioner("p", 4):
                pass

    monkeypatch.setattr(Contenders, "agree_on", visited)
    with kv.partitioner("p", 4) as share:
        assert len(share.mine()) == 4


def test_a_forgotten_member_loses_its_partitions(kv: Client, until: Until) -> None:
    one = kv.partitioner("p", 4, ttl=6)
    assert len(one.mine()) == 4  # joins by itself
    with kv.partitioner("p", 4, ttl=6) as two:
        until(lambda: len(two.mine()) == 2)
        del one
        gc.collect()
        until(lambda: len(two.mine()) == 4)


def test_a_member_that_is_cut_off_owns_nothing_and_joins_again(member: OneMember, kv: Client, until: Until) -> None:
    with kv.partitioner("p", 4, ttl=6) as one:
        tokens = [token for _, token in one.mine()]
        member.cut = True
        try:
            until(lambda: one.mine() == [])
        finally:
            member.cut = False
        until(lambda: len(one.mine()) == 4)
        assert min(token for _, token in one.mine()) > max(tokens)


def test_members_come_and_go_and_owners_never_overlap(kv: Client, until: Until) -> None:
    members = [kv.partitioner("p", 12) for _ in range(5)]
    for each in members:
        each.join()
    until(lambda: [len(each.mine()) for each in members] == [3, 3, 2, 2, 2])  # which are their quotas
    seen: dict[int, int] = {}
    for each in members:
        for partition, token in each.mine():
            assert partition not in seen
            seen[partition] = token
    kv.compact(kv.put("k", "1").revision)
    members[0].leave()
    members[3].leave()
    left = [members[1], members[2], members[4]]
    until(lambda: [len(each.mine()) for each in left] == [4, 4, 4])
    for each in left:
        for partition, token in each.mine():
            assert token >= seen[partition]
        each.leave()
    left_over = kv.reserved("partitioner").range(prefix=kv.prefix.replace(b"/", b"%2F"))
    assert not left_over.items


@pytest.mark.parametrize("seed", [1, 2])
def test_each_member_learns_what_it_owns_whatever_comes_and_goes(
    member: OneMember, kv: Client, until: Until, seed: int
) -> None:
    """Members join, leave and are cut off for more than their TTL. Whenever there is quiet, what they say that they own
    is what the store says, token for token, and all partitions are owned."""
    dice = random.Random(seed)
    shares = [kv.partitioner("p", 12, ttl=2) for _ in range(4)]
    joined: set[int] = set()

    def agree() -> bool:
        owned = {item.key.rpartition(b"/")[2]: item.create_revision for item in owners()}
        said = [(b"%d" % partition, token) for each in joined for partition, token in shares[each].mine()]
        return len(said) == len(owned) == (12 if joined else 0) and dict(said) == owned

    def owners() -> list[KeyValue]:
        found = kv.reserved("partitioner").range(prefix=kv.prefix.replace(b"/", b"%2F") + b"p/o/")
        return list(found)

    for _ in range(12):
        number = dice.randrange(len(shares))
        if dice.random() < 0.2:
            member.cut = True
            time.sleep(dice.choice([0.1, 2.3]))
            member.cut = False
        elif number in joined:
            shares[number].leave()
            joined.discard(number)
        else:
            shares[number].join()
            joined.add(number)
        if dice.random() < 0.5:
            until(agree)
    for number in joined:
        shares[number].leave()


def test_asyncio_partitioner(kv: Client) -> None:
    async def main() -> None:
        async with kv.aio.partitioner("p", 4) as one, kv.aio.partitioner("p", 4) as two:
            while not len(one.mine()) == len(two.mine()) == 2:
                await asyncio.sleep(0.01)
            await one.guard(one.mine()[0][0]).put("k", "1")
        assert one.mine() == []

    asyncio.run(main())


def item(key: bytes, lease: int) -> KeyValue:
    return KeyValue(key, b"", 1, 1, 1, lease)


@given(st.integers(1, 8), st.integers(1, 30), st.data())
def test_taking_and_giving_ends_in_equal_shares(count: int, partitions: int, data: st.DataObject) -> None:
    """From any state, if every member acts on what it sees, all is owned, nothing moves without need, and it ends."""
    members = [item(b"m%d" % number, number + 1) for number in range(count)]
    names = [b"p%d" % number for number in range(partitions)]
    owner: dict[bytes, int] = {name: data.draw(st.integers(1, count)) for name in names if data.draw(st.booleans())}
    had = dict(owner)
    for _ in range(2):
        split = shares(members, [item(name, lease) for name, lease in owner.items()], partitions)
        assert sum(member.quota for member in split) == partitions
        assert max(member.quota for member in split) - min(member.quota for member in split) <= 1
        for member in split:
            for name in member.owns[member.quota :]:
                del owner[name]
        split = shares(members, [item(name, lease) for name, lease in owner.items()], partitions)
        free = [name for name in names if name not in owner]
        for member in split:
            for name in taking(split, free, member.key):
                assert name not in owner, "two take the same"
                owner[name] = member.lease
    assert set(owner) == set(names)
    for member in shares(members, [item(name, lease) for name, lease in owner.items()], partitions):
        assert len(member.owns) == member.quota
    kept = sum(1 for name, lease in had.items() if owner[name] == lease)
    quotas = {member.lease: member.quota for member in split}
    wanted = sum(min(quotas[lease], list(had.values()).count(lease)) for lease in quotas)
    assert kept == wanted
