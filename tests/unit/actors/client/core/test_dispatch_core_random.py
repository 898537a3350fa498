"""The dispatch core under every fault at once: each call ends exactly once, and no outcome is a lie."""

from __future__ import annotations

import dataclasses
import random

import pytest

from lab.client.model import ModelWorld, Trouble
from raykeeper.errors import KeeperError, RequestTimeout, SessionExpired, Unavailable
from raykeeper.limits import Limits
from raykeeper.schema.answers import PutAnswer

TROUBLES = {
    "none": Trouble(),
    "loss": Trouble(lose=0.1, lose_reply=0.1),
    "doubles and reordering": Trouble(double=0.4, delay=0.2),
    "late": Trouble(long_delay=0.1, double=0.1),
    "leaders": Trouble(change_leader=0.2, no_leader=0.03),
    "mute": Trouble(mute=0.05, fail=0.1),
    "expiry": Trouble(expire=0.05, lose=0.05, double=0.1),
    "all": Trouble(0.05, 0.2, 0.05, 0.05, 0.02, 0.05, 0.1, 0.01, 0.02, 0.01),
}


def play(seed: int, trouble: Trouble, limits: Limits | None = None) -> tuple[ModelWorld, list[bytes]]:
    """Random calls, some of them given up, until all is settled."""
    world = ModelWorld(seed, dataclasses.replace(trouble), limits)
    rng = random.Random(seed + 1)
    puts: list[bytes] = []
    for step in range(rng.randint(5, 60)):
        for _ in range(rng.choice([1, 1, 2, 30])):
            name = b"%d.%d" % (step, len(world.outcomes))
            kind = rng.random()
            if kind < 0.7:
                world.put(name, timeout=rng.choice([0.01, 0.5, 3.0, 10.0, 10.0]))
                puts.append(name)
            else:
                world.read(name, timeout=rng.choice([0.5, 10.0]), serializable=kind < 0.85)
        world.run(world.now + rng.choice([0.0, 0.001, 0.05, 0.3, 2.0]))
        if rng.random() < 0.1:
            for name in rng.sample(puts, min(3, len(puts))):
                world.give_up(name)
    world.settle()
    return world, puts


def check(world: ModelWorld, puts: list[bytes]) -> None:
    for name, outcomes in world.outcomes.items():
        assert len(outcomes) == 1, f"{name!r} ended {len(outcomes)} times"
    assert world.core.pending == 0
    for name in puts:
        outcome = world.outcomes[name][0]
        times = world.state.effects[name]
        assert times <= 1
        if not isinstance(outcome, KeeperError):
            assert isinstance(outcome, PutAnswer)
            assert times == 1
        elif outcome.applied is False:
            assert times == 0
            assert isinstance(outcome, (RequestTimeout, Unavailable))
        else:
            assert outcome.applied is None
            assert isinstance(outcome, (RequestTimeout, Unavailable, SessionExpired))
    assert len({o.revision for n in puts if isinstance(o := world.outcomes[n][0], PutAnswer)}) == sum(
        isinstance(world.outcomes[n][0], PutAnswer) for n in puts
    ), "two writes were answered with one answer"


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("trouble", TROUBLES)
def test_every_call_ends_once_and_truly(trouble: str, seed: int) -> None:
    check(*play(seed, TROUBLES[trouble]))


@pytest.mark.parametrize("seed", range(10))
def test_small_limits_change_nothing(seed: int) -> None:
    limits = Limits(max_batch_requests=3, max_session_answers=5, max_calls_in_flight=2, max_batch_bytes=1024)
    check(*play(seed, TROUBLES["all"], limits))


def test_the_faults_bite() -> None:
    """Over all seeds most calls succeed, and every kind of end is seen."""
    kinds: dict[str, int] = {}
    for seed in range(25):
        world, puts = play(seed, TROUBLES["all"])
        for name in puts:
            outcome = world.outcomes[name][0]
            kind = f"{type(outcome).__name__} {getattr(outcome, 'applied', '')}"
            kinds[kind] = kinds.get(kind, 0) + 1
    total = sum(kinds.values())
    assert kinds["PutAnswer "] > total / 2
    assert {"RequestTimeout None", "Unavailable None", "SessionExpired None"} <= set(kinds)


def test_without_faults_nothing_fails() -> None:
    for seed in range(10):
        world, puts = play(seed, TROUBLES["none"])
        for name in puts:
            outcome = world.outcomes[name][0]
            assert isinstance(outcome, (PutAnswer, RequestTimeout)), outcome
