"""When a lane is opened again, by what was wrong with the one before."""

from __future__ import annotations

import random

import pytest

from raykeeper.actors.transport.lane import LaneUnreachable
from raykeeper.actors.transport.lane_retry import SWALLOWED, LaneRetry
from raykeeper.limits import (
    LANE_MAX_PAUSE_S,
    LANE_PAUSE_S,
    LANE_PROVEN_S,
    LANE_REFUSED_PAUSE_S,
    LANE_UNREACHABLE_ATTEMPTS,
    LANE_UNREACHABLE_PAUSE_S,
)

NOWHERE = LaneUnreachable("it cannot be reached")


@pytest.fixture
def retry() -> LaneRetry:
    return LaneRetry(random.Random(1))


def test_a_member_that_does_not_answer_is_asked_every_few_seconds_and_nothing_is_said(retry: LaneRetry) -> None:
    assert not any(retry.failed(100.0, TimeoutError()) for _ in range(20))
    assert LANE_MAX_PAUSE_S / 2 <= retry.not_before - 100.0 <= LANE_MAX_PAUSE_S
    assert retry.problem(100.0) == ""


def test_one_that_has_no_lanes_is_asked_less_often(retry: LaneRetry) -> None:
    assert not any(retry.failed(100.0, None, LANE_REFUSED_PAUSE_S) for _ in range(20))
    assert LANE_REFUSED_PAUSE_S / 2 <= retry.not_before - 100.0 <= LANE_REFUSED_PAUSE_S


def test_the_long_absence_of_a_member_does_not_count_against_its_address(retry: LaneRetry) -> None:
    for _ in range(1000):
        retry.failed(100.0, TimeoutError())
    assert not retry.failed(100.0, NOWHERE)
    assert retry.not_before - 100.0 <= LANE_PAUSE_S


def test_lanes_that_open_and_are_swallowed_count_as_none(retry: LaneRetry) -> None:
    now, told = 100.0, []
    for _ in range(20):
        now = retry.not_before + 1
        retry.opened(now)
        now += LANE_PROVEN_S / 2
        told.append(retry.ended(now, swallowed=True, longest=LANE_PAUSE_S))
    assert told.index(True) == LANE_UNREACHABLE_ATTEMPTS - 1
    assert told.count(True) == 1
    assert retry.not_before - now >= LANE_UNREACHABLE_PAUSE_S / 2
    assert retry.problem(now) == SWALLOWED


def test_a_lane_that_has_lasted_makes_all_forgotten(retry: LaneRetry) -> None:
    for _ in range(20):
        retry.failed(100.0, NOWHERE)
    retry.opened(1000.0)
    assert retry.problem(1000.0), "an open lane proves nothing yet"
    assert not retry.problem(1000.0 + LANE_PROVEN_S)
    assert not retry.ended(1000.0 + LANE_PROVEN_S, swallowed=True, longest=LANE_PAUSE_S)
    assert retry.not_before <= 1000.0 + LANE_PROVEN_S + LANE_PAUSE_S
    assert not retry.problem(1000.0 + LANE_PROVEN_S)


def test_the_end_of_its_process_says_nothing_of_an_address(retry: LaneRetry) -> None:
    for _ in range(20):
        retry.opened(100.0)
        assert not retry.ended(100.0, swallowed=False, longest=LANE_PAUSE_S)
    assert retry.not_before <= 100.0 + LANE_PAUSE_S
    assert not retry.problem(100.0)


def test_a_member_that_was_seen_is_tried_at_once(retry: LaneRetry) -> None:
    for _ in range(20):
        retry.failed(100.0, NOWHERE)
    retry.seen(100.0)
    assert retry.not_before == 100.0
    assert retry.problem(100.0), "what is wrong with its address still is"
