"""The share of seeds that ``make test`` runs, and what makes a run worth believing: it can be run again, exactly.

``RAYKEEPER_SEEDS`` says how many seeds; ``make simulate SEEDS=n`` is for thousands.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.collector import thresholds
from simulation.campaign import campaign, reproduce, run_seed, summary
from simulation.focused_profiles import FOCUSED
from simulation.profiles import Profile
from simulation.world import Report, World, replaced

SEEDS = int(os.environ.get("RAYKEEPER_SEEDS", "50"))
BATCH = 10
LONG = ("hours", "minutes", "minutes of sleep")
"""Profiles of which one seed takes seconds."""
MOST_WEAK = 2
"""Runs of a batch that may be too weak to count."""


def _explain(report: Report) -> str:
    command = reproduce(report.seed, report.profile)
    return f"seed {report.seed} ({report.profile}): run again with `{command}`\n{report.failure}"


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_fault_breaks_a_promise(first: int) -> None:
    reports = [run_seed(seed) for seed in range(first, min(first + BATCH, SEEDS))]
    failed = [_explain(report) for report in reports if report.failure]
    assert not failed, "\n\n".join(failed)
    weak = [f"seed {report.seed} ({report.profile}): {report.weak}" for report in reports if report.weak]
    assert len(weak) <= MOST_WEAK, "too many runs do not count:\n" + "\n".join(weak)


@pytest.mark.parametrize("profile", FOCUSED)
def test_no_focused_fault_breaks_a_promise(profile: str) -> None:
    reports = []
    for seed in range(1000, 1003):
        reports.append(run_seed(seed, profile))
        if profile in LONG and reports[-1].counted:
            break
    failed = [_explain(report) for report in reports if report.failure]
    assert not failed, "\n\n".join(failed)
    assert any(report.counted for report in reports), [report.weak for report in reports]


def test_every_fault_and_repair_happens_within_the_share() -> None:
    """Some seeds must cut logs, send images, change members and lose all power, or the share proves too little."""
    reports = [run_seed(seed) for seed in range(12)]
    caused = {fault for report in reports for fault in report.faults}
    assert {"power loss", "power loss of all", "crash in a turn", "membership", "split", "one-way", "storm"} <= caused
    assert sum(report.trims for report in reports) > 0
    assert sum(report.snapshots for report in reports) > 0
    assert sum(report.watched_events for report in reports) > 100
    assert sum(report.leases_expired for report in reports) > 0
    assert sum(report.hand_overs for report in reports) > 0
    assert sum(report.lease_turns for report in reports) > 0
    assert caused & {"sleep", "stall", "forget", "leap", "configure"}


def test_a_seed_is_the_same_run_everywhere() -> None:
    """Neither the order of hashes nor anything else outside the seed decides what happens."""
    code = (
        "from simulation.campaign import run_seed; r = run_seed(3); print(r.digest, r.operations, r.turns, r.failure)"
    )
    tests = Path(__file__).resolve().parents[1]
    outputs = set()
    for hash_seed in ("1", "2"):
        path = os.pathsep.join([str(tests), *(entry for entry in sys.path if entry)])
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        outputs.add(
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        )
    here = run_seed(3)
    outputs.add(f"{here.digest} {here.operations} {here.turns} {here.failure}\n".encode())
    assert len(outputs) == 1, outputs


@pytest.mark.parametrize("profile", ["functions", "shares"])
def test_when_garbage_is_collected_decides_nothing(profile: str) -> None:
    before, reports = thresholds(), []
    try:
        for threshold in (7, 7000):
            gc.set_threshold(threshold, 5, 5)
            reports.append(run_seed(3, profile))
    finally:
        gc.set_threshold(*before)
        while thresholds() != before:  # a thread of ours has read the others just before
            gc.set_threshold(*before)
    assert reports[0] == reports[1]


def test_a_campaign_goes_on_where_it_was_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = campaign(range(3), tmp_path, jobs=1)
    (state,) = tmp_path.iterdir()
    state.write_bytes(state.read_bytes()[:-20])  # the interruption fell into a line
    again = campaign(range(4), tmp_path, jobs=1)
    assert "2 of 4 seeds are done already" in capsys.readouterr().out
    assert [report.digest for report in again[:3]] == [report.digest for report in first]
    text, _ = summary(again)
    assert "seeds run              4" in text


def test_a_quiet_cluster_is_quiet() -> None:
    """The leader has a turn for each tick and each answer to its heartbeats, a follower one for each heartbeat."""
    world = World(1, Profile(clients=0, fault_pause=1e9))
    with world.observer.watching(), replaced(world):
        world._found()
        world._run_until(10.0)
        turns = world.turns
        world._run_until(40.0)
    heartbeats = 30.0 / world.timings.heartbeat_interval
    assert world.turns - turns <= (1 + 2 + 1 + 1 + 1) * heartbeats, "and one more, for clocks that run apart"
