"""Elections: who leads, what observers see, and what an overtaken leader may no longer do."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from lab.onemember import in_thread
from lab.patience import PATIENCE
from raykeeper import Client, LockLost, codec

Until = Callable[..., None]


def test_the_first_leads_until_it_resigns(kv: Client, until: Until) -> None:
    one, two = kv.election("e"), kv.election("e")
    assert one.leader() is None
    assert one.campaign("one")
    assert two.leader().value == b"one"  # type: ignore[union-attr]
    assert two.leader().token == one.token  # type: ignore[union-attr]
    assert two.campaign("two", timeout=0.1) is False
    waiting = in_thread(lambda: two.campaign("two"))
    one.proclaim("one more")
    assert two.leader().value == b"one more"  # type: ignore[union-attr]
    until(lambda: kv.reserved("election").range(prefix=b"").count >= 2)
    guard = one.guard()
    guard.put("k", "1")
    one.resign()
    assert waiting.result() is True
    with pytest.raises(LockLost):
        one.proclaim("one again")
    with pytest.raises(LockLost):
        guard.put("k", "2")
    assert one.leader().value == b"two"  # type: ignore[union-attr]
    two.resign()
    assert one.leader() is None


def test_observers_see_each_leader_and_proclamation_in_order(kv: Client, until: Until) -> None:
    seen: list[tuple[bytes, int]] = []

    def observe() -> None:
        for leader in kv.election("e").observe():
            seen.append((leader.value, leader.token))
            if leader.value == b"end":
                return

    observer = in_thread(observe)
    expected = []
    for number in range(4):
        election = kv.election("e")
        election.campaign(f"{number}")
        expected.append((b"%d" % number, election.token))
        election.proclaim(f"{number}+")
        expected.append((b"%d+" % number, election.token))
        rival = kv.election("e")
        assert rival.campaign("rival", timeout=0) is False
        if number == 1:
            kv.compact(kv.put("k", "1").revision)
        until(lambda: seen == expected)
        election.resign()
    with kv.election("e") as last:
        last.proclaim("end")
        observer.result()
    assert [token for _, token in seen] == sorted(token for _, token in seen)


def test_values_go_through_the_codec(kv: Client) -> None:
    election = kv.with_codec(codec.JSON).election("e")
    election.campaign({"host": "a"})
    assert election.leader().value == {"host": "a"}  # type: ignore[union-attr]
    assert next(iter(election.observe())).value == {"host": "a"}
    election.guard().put("k", [1])
    assert kv.get("k").value == b"[1]"  # type: ignore[union-attr]
    election.resign()


def test_asyncio(kv: Client) -> None:
    async def main() -> None:
        one, two = kv.aio.election("e"), kv.aio.election("e")
        assert await one.campaign("one")
        seen = []

        async def observe() -> None:
            async for leader in kv.aio.election("e").observe():
                seen.append(leader.value)
                if leader.value == b"two":
                    return

        observer = asyncio.create_task(observe())
        waiting = asyncio.create_task(two.campaign("two"))
        while not seen:
            await asyncio.sleep(0.005)
        await one.proclaim("one+")
        while len(seen) < 2:
            await asyncio.sleep(0.005)
        await one.resign()
        assert await asyncio.wait_for(waiting, PATIENCE)
        await asyncio.wait_for(observer, PATIENCE)
        assert seen == [b"one", b"one+", b"two"]
        assert (await two.leader()).token == two.token  # type: ignore[union-attr]
        await two.resign()

    asyncio.run(main())


def test_tokens_only_grow(kv: Client) -> None:
    tokens = []
    for _ in range(5):
        with kv.election("e") as election:
            tokens.append(election.token)
    assert all(a < b for a, b in itertools.pairwise(tokens))
