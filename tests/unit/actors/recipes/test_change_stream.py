"""Observers of elections and registries: waits that can be bounded, and ended from elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from lab.onemember import OneMember, in_thread
from lab.patience import PATIENCE
from raykeeper import Client, InvalidArgument, codec

KINDS = {
    "observe": (lambda kv: kv.election("e").observe(), lambda kv: kv.election("e").campaign("me")),
    "watch": (lambda kv: kv.registry("r").watch(), lambda kv: kv.registry("r").register("n", "here")),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


def test_a_wait_ends_in_time(kv: Client, kind: Any) -> None:
    follow, happen = kind
    with follow(kv) as following:
        assert following.next(timeout=0) is None
        assert following.next(timeout=0.02) is None
        kept = happen(kv)
        assert following.next(timeout=PATIENCE) is not None
        assert following.next(timeout=0) is None
        del kept
    assert list(following) == []


def test_what_is_there_is_told_at_once(kv: Client, kind: Any) -> None:
    follow, happen = kind
    kept = happen(kv)
    with contextlib.closing(follow(kv)) as following:
        assert following.next(timeout=0) is not None
    del kept


def test_a_wait_forever_can_be_ended(kv: Client, kind: Any) -> None:
    following = kind[0](kv)
    waiting = in_thread(lambda: list(following))
    assert following.next(timeout=0) is None or True
    following.cancel()
    assert waiting.result() == []


def test_it_waits_while_the_cluster_cannot_be_reached(kv: Client, kind: Any, member: OneMember) -> None:
    follow, happen = kind
    kept = happen(kv)
    following = follow(kv.with_timeout(0.05))
    member.cut = True
    try:
        assert following.next(timeout=0.1) is None
    finally:
        member.cut = False
    assert following.next(timeout=PATIENCE) is not None
    following.cancel()
    del kept


def test_a_bad_timeout_is_refused(kv: Client, kind: Any) -> None:
    for bad in (-1, float("nan"), "1", True):
        with pytest.raises(InvalidArgument):
            kind[0](kv).next(timeout=bad)


def test_asyncio(kv: Client, kind: Any) -> None:
    async def main() -> None:
        following = kind[0](kv.aio)
        assert await following.next(timeout=0.01) is None
        kept = await kind[1](kv.aio)
        async with contextlib.aclosing(following):
            async for told in following:
                assert told is not None
                break
            waiting = asyncio.create_task(following.next())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            waiting = asyncio.create_task(following.next())
            await asyncio.sleep(0)
            await following.cancel()
            assert await waiting is None
        del kept

    asyncio.run(main())


def test_a_leader_that_says_nothing_on_a_handle_with_a_codec(kv: Client) -> None:
    class OnlyDicts:
        comparable = True

        def encode(self, value: object) -> bytes:
            if not isinstance(value, dict):
                raise TypeError("only dicts")
            return codec.JSON.encode(value)

        def decode(self, data: bytes) -> Any:
            return codec.JSON.decode(data)

    election = kv.with_codec(OnlyDicts()).election("e")
    assert election.leader() is None
    assert election.campaign({"host": "one"}, 5)
    assert election.leader().value == {"host": "one"}  # type: ignore[union-attr]
    election.resign()
    assert election.acquire(PATIENCE)
    with election.observe() as leaders:
        assert leaders.next(timeout=PATIENCE).value is None  # type: ignore[union-attr]
    election.release()
