"""`raykeeper down` stops the Ray that `up` has started if nothing of ours runs on it, and waits for what is ending."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import ray

from lab.patience import PATIENCE
from raykeeper.cli import ray_head
from raykeeper.cli.ray_head import RayHead


def named(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[tuple[str, str]]) -> list[int]:
    """Have Ray name these actors, by namespace and name, one answer after the other and then the last one."""
    asked: list[int] = []

    def list_named_actors(all_namespaces: bool) -> list[dict[str, str]]:
        assert all_namespaces
        asked.append(len(asked))
        answer = answers[min(len(asked), len(answers)) - 1]
        return [{"namespace": namespace, "name": name} for namespace, name in answer]

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_head, "HEAD_IDLE_TIMEOUT_S", PATIENCE)
    monkeypatch.setattr(ray.util, "list_named_actors", list_named_actors)
    return asked


ENDED = ("raykeeper", "raykeeper/a/m1")


@pytest.mark.parametrize("left", [[], [("mine", "raykeeper/b/m1")]])
def test_what_is_named_for_a_moment_more_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: list[tuple[str, str]]
) -> None:
    asked = named(monkeypatch, [ENDED, ("raykeeper", "raykeeper/a/supervisor"), *left], [ENDED, *left], left)
    assert RayHead(tmp_path).idle("a")
    assert len(asked) == 3


@pytest.mark.parametrize("other", ["raykeeper/b/m1", "raykeeper/ab/m1", "raykeeper/b/supervisor"])
def test_another_cluster_keeps_it_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: str
) -> None:
    asked = named(monkeypatch, [ENDED, ("raykeeper", other)])
    assert not RayHead(tmp_path).idle("a")
    assert len(asked) == 1


def test_what_does_not_end_keeps_it_too_and_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named(monkeypatch, [ENDED])
    monkeypatch.setattr(ray_head, "HEAD_IDLE_TIMEOUT_S", 0.1)
    assert not RayHead(tmp_path).idle("a")
    [line] = capsys.readouterr().err.splitlines()
    assert ENDED[1] in line
    assert "`raykeeper down --cluster a` again" in line


def test_a_process_that_joined_no_ray_finds_it_idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert RayHead(tmp_path).idle("a")
