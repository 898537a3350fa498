"""Members on the client's own node are asked first, where any member may be."""

from __future__ import annotations

import random

import pytest

from raykeeper.actors.client.outbox import Outbox
from raykeeper.limits import Limits

MEMBERS = (1, 2, 3, 4)


def outbox(near: set[int], seed: int = 0, *, to_leader: bool = False) -> Outbox:
    return Outbox("test", Limits(), random.Random(seed), to_leader=to_leader, near=near)


def test_near_members_share_what_any_may_answer() -> None:
    asked = {outbox({2, 3}, seed).target(MEMBERS, 0, 0.0) for seed in range(50)}
    assert asked == {2, 3}


@pytest.mark.parametrize(
    ("near", "leader", "wanted"), [({2, 3}, 3, {3}), ({2, 3}, 1, {2, 3}), (set(), 3, set(MEMBERS))]
)
def test_the_leader_comes_first_only_if_it_is_near(near: set[int], leader: int, wanted: set[int]) -> None:
    assert {outbox(near, seed).target(MEMBERS, leader, 0.0) for seed in range(50)} == wanted


def test_who_must_ask_the_leader_does_so_wherever_it_is() -> None:
    assert outbox({2}, to_leader=True).target(MEMBERS, 4, 0.0) == 4


def test_a_near_member_that_fails_is_not_asked_for_a_while() -> None:
    near = {2}
    box = outbox(near)
    box.failed(2, 0.0, "gone")
    assert box.target(MEMBERS, 0, 0.1) in {1, 3, 4}
    near.add(3)  # found out later
    assert box.target(MEMBERS, 0, 0.1) == 3
    assert box.target(MEMBERS, 0, 100.0) in {2, 3}
