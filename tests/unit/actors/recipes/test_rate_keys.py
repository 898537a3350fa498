"""What a rate limit leaves in the cluster, and how often its holders write there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.onemember import OneMember
from lab.patience import PATIENCE, until
from raykeeper import Client
from raykeeper.actors.client.leases import revoke_steps
from raykeeper.actors.recipes import rate_holder as rate

NEVER = 1e-6
"""Tokens a second: none comes while a test runs."""
SLOW = 1e-4
"""Tokens a second: none comes either, but they would within the time that a lease may last."""
MANY = 1e6
"""Tokens a second: there are always some."""
TTL = 600.0
"""No lease is lost because a machine is slow."""


@pytest.fixture(autouse=True)
def nobody_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No share is given back because a machine is slow."""
    monkeypatch.setattr(rate, "RATE_IDLE_S", TTL)


@pytest.fixture
def kv(member: OneMember, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A handle on a namespace of the test's own, whose calls have all the time that a slow machine takes."""
    with member.client() as client:
        yield client.namespace(f"{request.node.name}/").with_timeout(PATIENCE)
        member.cut = False


def keys_of(kv: Client, limiter: Any) -> list[Any]:
    return kv.reserved("rate").range(prefix=limiter._logic._folder).items


def test_a_rate_of_which_nothing_is_owed_leaves_no_key(kv: Client) -> None:
    calls = kv.rate("r", MANY, 5, TTL)
    assert calls.acquire()
    until(lambda: calls._logic.bucket.lower(MANY, 5) == 0 and calls._logic.bucket.tokens == 5)
    calls.close()
    assert not keys_of(kv, calls)


def test_what_is_owed_is_known_until_it_would_have_come_again(kv: Client) -> None:
    calls = kv.rate("r", SLOW, 5, TTL)
    assert calls.acquire(2)
    calls.close()
    (state,) = keys_of(kv, calls)
    info = kv.time_to_live(state.lease)
    assert 20_000 - TTL < info.ttl <= 20_000
    with kv.rate("r", SLOW, 5, TTL) as other:
        assert not other.try_acquire(4)
        assert other.try_acquire(3)
        (there,) = [item for item in keys_of(kv, other) if item.key == state.key]
        assert not there.lease, "while it is in use, no lease ends it"
    (state,) = keys_of(kv, calls)
    kv._run(revoke_steps(state.lease), None)  # as if that time had passed
    with kv.rate("r", 7, 3, TTL) as other:
        assert other.acquire(3)


def test_what_comes_only_in_centuries_stays(kv: Client) -> None:
    calls = kv.rate("r", NEVER, 100_000, TTL)
    assert calls.acquire(50_000)
    calls.close()
    (state,) = keys_of(kv, calls)
    assert not state.lease


def test_holders_that_are_in_each_others_way_pause_for_longer_each_time(
    kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, most = kv.rate("r", NEVER, 10, TTL), []
    uniform: Callable[[float, float], float] = rate._rng.uniform

    class Generator:
        def uniform(self, low: float, high: float) -> float:
            if threading.current_thread() is threading.main_thread():  # who joins, and not the follower of another test
                most.append(high)
            return uniform(low, high) / 100

    write, left = rate.RateHolder._write, [None] * 6

    async def too_late(self: Any, *arguments: Any) -> bool:
        if left and self is calls._logic:
            left.pop()
            return False
        return await write(self, *arguments)

    monkeypatch.setattr(rate, "_rng", Generator())
    monkeypatch.setattr(rate.RateHolder, "_write", too_late)
    assert calls.acquire()
    assert most[:6] == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5]
    calls.close()
