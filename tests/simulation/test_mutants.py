"""The simulator must be able to fail: each wrong version of the code is caught, and the right one passes there."""

from __future__ import annotations

import pytest

from simulation.campaign import reproduce
from simulation.invariants import Observer
from simulation.mutants import MUTANTS
from simulation.world import World

SEEDS = 160


def _catch(name: str) -> None:
    mutant = MUTANTS[name]
    for seed in range(mutant.first_seed, mutant.first_seed + SEEDS):
        with mutant.apply():
            report = World(seed, mutant.profile).run()
        if report.failure:
            print(f"{name}: caught by seed {seed} of profile {mutant.profile}: {report.failure.splitlines()[0]}")
            right = World(seed, mutant.profile).run()
            assert not right.failure, f"{reproduce(seed, mutant.profile)}\n{right.failure}"
            return
    pytest.fail(
        f"none of {SEEDS} seeds from {mutant.first_seed} on of profile {mutant.profile} caught the mutant: {name}"
    )


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    _catch(name)


def test_a_broken_promise_is_caught_by_what_comes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if nobody looked at the disks when a promise is spoken: the faults are such that its breach does harm."""
    monkeypatch.setattr(Observer, "spoken", lambda *arguments: None)
    monkeypatch.setattr(Observer, "_on_quorum", lambda *arguments: None)
    _catch("an acknowledgement before the member's own fsync")
