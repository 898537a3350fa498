"""The simulator must be able to fail: each wrong version of the code is caught, and the right one passes there."""

from __future__ import annotations

import pytest

from simulation.campaign import reproduce
from simulation.mutants import MUTANTS
from simulation.world import World

SEEDS = 40


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    mutant = MUTANTS[name]
    for seed in range(SEEDS):
        with mutant.apply():
            report = World(seed, mutant.profile).run()
        if report.failure:
            print(f"{name}: caught by seed {seed} of profile {mutant.profile}: {report.failure.splitlines()[0]}")
            right = World(seed, mutant.profile).run()
            assert not right.failure, f"{reproduce(seed, mutant.profile)}\n{right.failure}"
            return
    pytest.fail(f"no seed below {SEEDS} of profile {mutant.profile} caught the mutant: {name}")
