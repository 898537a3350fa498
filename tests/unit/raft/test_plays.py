"""Every rule of the Raft paper and of its thesis that the core follows, as a play under ``plays/``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.raft.play import Play, read_play, write_play

PLAYS = sorted((Path(__file__).parent / "plays").glob("*.txt"))


@pytest.mark.parametrize("path", PLAYS, ids=[path.stem for path in PLAYS])
def test_play(path: Path) -> None:
    play = Play()
    scenes = read_play(path)
    for scene in scenes:
        if not scene.command:
            continue
        seen = play.act(scene.command)
        if os.environ.get("RAFT_PLAYS") == "rewrite":
            scene.expected = seen
        assert seen == scene.expected, f"{path.name}: {scene.command}"
    write_play(path, scenes) if os.environ.get("RAFT_PLAYS") == "rewrite" else None


def test_there_is_a_play_for_each_leader_failure_and_each_figure() -> None:
    names = {path.stem for path in PLAYS}
    assert {f"leader_failure_{number}" for number in range(1, 8)} <= {name[:16] for name in names}
    assert {"figure_2", "figure_7", "figure_8"} <= {"_".join(name.split("_")[:2]) for name in names}
