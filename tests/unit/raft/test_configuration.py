"""Configuration changes: what comes out of each, and which are void."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykeeper.raft import (
    ChangeKind,
    Configuration,
    ConfigurationChange,
    InvalidChange,
    MemberChange,
    apply_change,
    decode_change,
    encode_change,
)
from raykeeper.raft.quorum import has_quorum

VOTER, LEARNER, REMOVE = ChangeKind.ADD_VOTER, ChangeKind.ADD_LEARNER, ChangeKind.REMOVE
THREE = Configuration(voters=(1, 2, 3))
WITH_LEARNER = Configuration(voters=(1, 2, 3), learners=(4,), index=5)
JOINT = Configuration(voters=(1, 2, 4), outgoing=(1, 2, 3), learners_next=(3,), auto_leave=True, index=6)


def change(base: int, *steps: tuple[ChangeKind, int]) -> ConfigurationChange:
    return ConfigurationChange(base, tuple(MemberChange(kind, member) for kind, member in steps))


@pytest.mark.parametrize(
    ("before", "made", "after"),
    [
        (THREE, change(0, (VOTER, 4)), Configuration(voters=(1, 2, 3, 4), index=9)),
        (THREE, change(0, (LEARNER, 4)), Configuration(voters=(1, 2, 3), learners=(4,), index=9)),
        (THREE, change(0, (REMOVE, 3)), Configuration(voters=(1, 2), index=9)),
        (THREE, change(0, (LEARNER, 3)), Configuration(voters=(1, 2), learners=(3,), index=9)),
        (
            THREE,
            change(0, (LEARNER, 4), (LEARNER, 5)),
            Configuration(voters=(1, 2, 3), learners=(4, 5), index=9),
        ),
        (WITH_LEARNER, change(5, (VOTER, 4)), Configuration(voters=(1, 2, 3, 4), index=9)),
        (WITH_LEARNER, change(5, (REMOVE, 4)), Configuration(voters=(1, 2, 3), index=9)),
        (
            WITH_LEARNER,
            change(5, (REMOVE, 4), (VOTER, 5)),
            Configuration(voters=(1, 2, 3, 5), index=9),
        ),
        (
            WITH_LEARNER,
            change(5, (VOTER, 4), (REMOVE, 3)),
            Configuration(voters=(1, 2, 4), outgoing=(1, 2, 3), auto_leave=True, index=9),
        ),
        (
            WITH_LEARNER,
            change(5, (VOTER, 4), (LEARNER, 3)),
            Configuration(voters=(1, 2, 4), outgoing=(1, 2, 3), learners_next=(3,), auto_leave=True, index=9),
        ),
        (
            WITH_LEARNER,
            change(5, (REMOVE, 1), (REMOVE, 2)),
            Configuration(voters=(3,), outgoing=(1, 2, 3), learners=(4,), auto_leave=True, index=9),
        ),
        (JOINT, change(6), Configuration(voters=(1, 2, 4), learners=(3,), index=9)),
    ],
)
def test_change(before: Configuration, made: ConfigurationChange, after: Configuration) -> None:
    assert apply_change(before, made, 9) == after


@pytest.mark.parametrize(
    ("before", "made", "why"),
    [
        (THREE, change(1, (VOTER, 4)), "based on"),
        (WITH_LEARNER, change(0, (VOTER, 4)), "based on"),
        (THREE, change(0, (VOTER, 1)), "already a voter"),
        (WITH_LEARNER, change(5, (LEARNER, 4)), "already a learner"),
        (THREE, change(0, (REMOVE, 9)), "no member 9"),
        (THREE, change(0, (VOTER, 0)), "not a member id"),
        (THREE, change(0, (VOTER, 4), (REMOVE, 4)), "twice"),
        (THREE, change(0, (REMOVE, 1), (REMOVE, 2), (REMOVE, 3)), "no voter"),
        (THREE, change(0, (LEARNER, 1), (LEARNER, 2), (LEARNER, 3)), "no voter"),
        (THREE, change(0), "not joint"),
        (JOINT, change(6, (VOTER, 9)), "left first"),
    ],
)
def test_void(before: Configuration, made: ConfigurationChange, why: str) -> None:
    with pytest.raises(InvalidChange, match=why):
        apply_change(before, made, 9)


def test_of_two_changes_from_one_configuration_only_one_takes_effect() -> None:
    first = apply_change(THREE, change(0, (VOTER, 4)), 9)
    with pytest.raises(InvalidChange):
        apply_change(first, change(0, (REMOVE, 1)), 10)


def test_a_change_survives_its_encoding() -> None:
    made = ConfigurationChange(7, (MemberChange(VOTER, 4), MemberChange(REMOVE, 1)), b"context")
    assert decode_change(encode_change(made)) == made
    with pytest.raises(InvalidChange):
        decode_change(b"\xc1")


steps = st.lists(st.tuples(st.sampled_from(ChangeKind), st.integers(1, 7)), max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=8))
def test_any_chain_of_changes_keeps_neighbouring_quorums_overlapping(chain: list[list[tuple[ChangeKind, int]]]) -> None:
    configuration = THREE
    everybody = range(1, 8)
    for index, named in enumerate(chain, 1):
        try:
            after = apply_change(configuration, change(configuration.index, *named), index)
        except InvalidChange:
            continue
        assert after.voters
        assert after.index == index
        assert not set(after.learners) & ({*after.voters, *after.outgoing})
        assert set(after.learners_next) <= set(after.outgoing) - set(after.voters)
        # Members that are not a quorum of the one leave no room for a quorum of the other.
        for bits in range(1 << len(everybody)):
            some = {member for member in everybody if bits >> member - 1 & 1}
            assert not (has_quorum(configuration, some) and has_quorum(after, set(everybody) - some))
        configuration = after
