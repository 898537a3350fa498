"""Majorities, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import pytest

from raykeeper.raft import Configuration
from raykeeper.raft.quorum import VoteResult, has_quorum, is_majority, majority_value, quorum_value, vote_result

WON, LOST, PENDING = VoteResult.WON, VoteResult.LOST, VoteResult.PENDING


@pytest.mark.parametrize(("part", "whole"), [(1, 1), (2, 2), (2, 3), (3, 4), (3, 5)])
def test_a_majority_is_more_than_half(part: int, whole: int) -> None:
    assert is_majority(part, whole)
    assert not is_majority(part - 1, whole)


def test_none_of_none_are_not_a_majority() -> None:
    assert not is_majority(0, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], 0),
        ([7], 7),
        ([3, 7], 3),
        ([1, 5, 9], 5),
        ([9, 1, 5], 5),
        ([1, 1, 9], 1),
        ([1, 5, 5, 9], 5),
        ([1, 2, 3, 4], 2),
        ([1, 2, 3, 4, 5], 3),
        ([0, 0, 9, 9, 9], 9),
        ([0, 0, 0, 9, 9], 0),
    ],
)
def test_majority_value(values: list[int], expected: int) -> None:
    assert majority_value(values) == expected


@pytest.mark.parametrize("count", range(1, 6))
def test_majority_value_is_the_highest_that_more_than_half_have_reached(count: int) -> None:
    for values in product(range(4), repeat=count):
        reached = [index for index in range(4) if 2 * sum(value >= index for value in values) > count]
        assert majority_value(values) == max(reached)


@pytest.mark.parametrize(
    ("voters", "outgoing", "values", "expected"),
    [
        ((1, 2, 3), (), {1: 9, 2: 5, 3: 0}, 5),
        ((1, 2, 3), (1, 2, 3), {1: 9, 2: 5, 3: 0}, 5),
        ((1, 2, 4), (1, 2, 3), {1: 9, 2: 0, 3: 9, 4: 9}, 9),
        ((1, 4, 5), (1, 2, 3), {1: 9, 2: 9, 3: 9, 4: 3, 5: 2}, 3),
        ((4, 5, 6), (1, 2, 3), {1: 9, 2: 1, 3: 1, 4: 9, 5: 9, 6: 9}, 1),
        ((), (), {}, 0),
    ],
)
def test_quorum_value(
    voters: tuple[int, ...], outgoing: tuple[int, ...], values: dict[int, int], expected: int
) -> None:
    assert quorum_value(Configuration(voters=voters, outgoing=outgoing), values.__getitem__) == expected


@pytest.mark.parametrize(
    ("voters", "outgoing", "members", "expected"),
    [
        ((1, 2, 3), (), [1, 2], True),
        ((1, 2, 3), (), [1], False),
        ((1, 2, 3), (), [1, 8, 9], False),
        ((1, 2), (), [1], False),
        ((1, 4, 5), (1, 2, 3), [1, 4], False),
        ((1, 4, 5), (1, 2, 3), [1, 4, 2], True),
        ((), (), [1], False),
    ],
)
def test_has_quorum(voters: tuple[int, ...], outgoing: tuple[int, ...], members: Sequence[int], expected: bool) -> None:
    assert has_quorum(Configuration(voters=voters, outgoing=outgoing), members) is expected


@pytest.mark.parametrize(
    ("voters", "outgoing", "votes", "expected"),
    [
        ((1,), (), {1: True}, WON),
        ((1,), (), {}, PENDING),
        ((1, 2, 3), (), {1: True}, PENDING),
        ((1, 2, 3), (), {1: True, 2: True}, WON),
        ((1, 2, 3), (), {1: True, 2: False}, PENDING),
        ((1, 2, 3), (), {1: True, 2: False, 3: False}, LOST),
        ((1, 2), (), {1: True, 2: False}, LOST),
        ((1, 2, 3), (), {1: True, 8: True, 9: True}, PENDING),
        ((1, 2, 3, 4), (), {1: True, 2: True, 3: False, 4: False}, LOST),
        ((1, 4, 5), (1, 2, 3), {1: True, 4: True}, PENDING),
        ((1, 4, 5), (1, 2, 3), {1: True, 4: True, 2: True}, WON),
        ((1, 4, 5), (1, 2, 3), {1: True, 2: True, 4: False, 5: False}, LOST),
        ((), (), {1: True}, LOST),
    ],
)
def test_vote_result(
    voters: tuple[int, ...], outgoing: tuple[int, ...], votes: dict[int, bool], expected: VoteResult
) -> None:
    assert vote_result(Configuration(voters=voters, outgoing=outgoing), votes) is expected


def test_two_quorums_of_a_joint_configuration_and_its_neighbours_always_meet() -> None:
    members = range(1, 6)
    old = Configuration(voters=(1, 2, 3))
    joint = Configuration(voters=(1, 4, 5), outgoing=(1, 2, 3))
    new = Configuration(voters=(1, 4, 5))
    quorums = {
        name: [set(c) for n in members for c in combinations(members, n) if has_quorum(configuration, c)]
        for name, configuration in (("old", old), ("joint", joint), ("new", new))
    }
    for one, other in (("old", "joint"), ("joint", "new"), ("joint", "joint")):
        assert all(a & b for a in quorums[one] for b in quorums[other])
    assert any(not a & b for a in quorums["old"] for b in quorums["new"]), "which is why joint consensus exists"
