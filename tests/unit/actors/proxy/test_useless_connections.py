"""Whose connections end without a request, and from when on that is a flood."""

from __future__ import annotations

import logging

import pytest

from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.useless_connections import UselessConnections
from raykeeper.limits import MIN_PROXY_USELESS, PROXY_SOURCE_PER_S


def counted() -> UselessConnections:
    return UselessConnections(MemberLog("proxy", "test", "proxy"))


def come(found: UselessConnections, source: str, count: int) -> None:
    for _ in range(count):
        found.count(source)


def test_a_flood_is_of_one_address_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    found = counted()
    come(found, "a", PROXY_SOURCE_PER_S)
    come(found, "b", PROXY_SOURCE_PER_S)
    found.review(1.0, serving=True)
    assert not found.floods
    for _ in range(3):
        come(found, "a", PROXY_SOURCE_PER_S + 1)
        found.review(1.0, serving=True)
        assert found.floods
    assert caplog.text.count("a floods") == 1
    found.review(1.0, serving=True)
    assert not found.floods
    come(found, "a", PROXY_SOURCE_PER_S + 1)
    found.review(1.0, serving=True)
    assert caplog.text.count("a floods") == 2


def test_on_a_machine_without_time_whoever_makes_most_of_it_floods() -> None:
    """What is accepted there in a second may be less than what counts as a flood elsewhere."""
    found, few = counted(), 2 * MIN_PROXY_USELESS
    for starved, of_a, of_b in ((False, few, 0), (True, MIN_PROXY_USELESS - 1, 0), (True, few, few)):
        come(found, "a", of_a)
        come(found, "b", of_b)
        found.review(1.0, serving=True, starved=starved)
        assert not found.floods
    come(found, "a", few)
    come(found, "b", few - 1)
    found.review(1.0, serving=True, starved=True)
    assert found.floods
    found.review(1.0, serving=True, starved=True)
    assert not found.floods


def test_a_slow_sweep_counts_by_the_second() -> None:
    found = counted()
    come(found, "a", 3 * PROXY_SOURCE_PER_S)
    found.review(3.0, serving=True)
    assert not found.floods
    come(found, "a", 3 * PROXY_SOURCE_PER_S + 1)
    found.review(3.0, serving=True)
    assert found.floods


def test_while_nobody_is_served_nobody_floods() -> None:
    found = counted()
    come(found, "a", 8 * PROXY_SOURCE_PER_S)
    found.review(1.0, serving=False)
    assert not found.floods
    found.review(1.0, serving=True)
    assert not found.floods, "what came while nobody was served does not count later"


def test_a_connection_whose_address_is_not_known_any_more_is_nobodys() -> None:
    found = counted()
    come(found, "", 8 * PROXY_SOURCE_PER_S)
    found.review(1.0, serving=True)
    assert not found.floods
