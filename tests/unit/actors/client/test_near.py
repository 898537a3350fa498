"""Members on the client's own node are asked first, where any member may be."""

from __future__ import annotations

import random

import pytest

from raykeeper.actors.client.core.outbox import Outbox
from raykeeper.actors.client.core.router import Prefer, Router
from raykeeper.limits import Limits

MEMBERS = (1, 2, 3, 4)


def outbox(prefer: Prefer, seed: int = 0) -> Outbox:
    return Outbox("test", Limits(), random.Random(seed), prefer)


def asked(prefer: Prefer, near: set[int], leader: int) -> set[int]:
    router = Router(MEMBERS, leader=leader, near=near)
    return {outbox(prefer, seed).target(router, 0.0) for seed in range(50)}


@pytest.mark.parametrize("leader", [0, 1, 3])
def test_near_members_share_what_any_may_answer(leader: int) -> None:
    assert asked(Prefer.NEAR, {2, 3}, leader) == {2, 3}


@pytest.mark.parametrize(
    ("near", "leader", "wanted"), [({2, 3}, 3, {3}), ({2, 3}, 1, {2, 3}), (set(), 3, set(MEMBERS))]
)
def test_the_leader_comes_first_only_if_it_is_near(near: set[int], leader: int, wanted: set[int]) -> None:
    assert asked(Prefer.LEADER_IF_NEAR, near, leader) == wanted


def test_who_must_ask_the_leader_does_so_wherever_it_is() -> None:
    assert asked(Prefer.LEADER, {2}, 4) == {4}


def test_a_near_member_that_fails_is_not_asked_for_a_while() -> None:
    near = {2}
    box, router = outbox(Prefer.NEAR), Router(MEMBERS, near=near)
    box.failed(2, 0.0, "gone")
    assert box.target(router, 0.1) in {1, 3, 4}
    near.add(3)  # found out later
    assert box.target(router, 0.1) == 3
    assert box.target(router, 100.0) in {2, 3}
