"""Settings that two callers change at once: each field has its last value, and no change is undone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raykeeper import errors
from raykeeper.actors.cluster import cluster_backup, cluster_operations
from raykeeper.actors.handles import Client
from raykeeper.limits import Settings, decode_settings, encode_settings
from raykeeper.schema.answers import Answer, Done, Failed, Reason
from raykeeper.schema.commands import Configure
from raykeeper.store.backup_file import Header


class Kept(cluster_operations.ClusterOperations, cluster_backup.ClusterBackup):
    name, id = "jobs", 7

    def client(self, *, timeout: float) -> Client:
        raise AssertionError("none is asked for")


class Settled:
    """The settings of a cluster, as its state machine keeps them."""

    def __init__(self) -> None:
        self.settings = encode_settings(Settings())
        self.between: list[Settings] = []
        """What another caller sets just before a change arrives."""
        self.asked = 0

    def statuses(self, name: str) -> Any:
        told = {"configuration_index": 1, "applied_index": 1, "settings": self.settings}
        return {1: SimpleNamespace(role="leader", term=1, voters=(1,), **told)}

    def administer(self, name: str, cluster: int, command: Configure, deadline: float) -> Answer:
        self.asked += 1
        if self.between:
            self.settings = encode_settings(self.between.pop())
        if command.based_on != self.settings:
            return Failed(Reason.CHANGED)
        self.settings = command.settings
        return Done(1)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Settled:
    settled = Settled()
    monkeypatch.setattr(cluster_operations, "member_statuses", settled.statuses)
    monkeypatch.setattr(cluster_operations, "administer", settled.administer)
    return settled


def test_what_another_caller_changes_meanwhile_stays(settled: Settled) -> None:
    theirs = Kept().configure(limits={"max_key_bytes": 512})
    settled.settings = encode_settings(Settings())
    settled.between = [theirs]
    now = Kept().configure(timings={"replace_after": 90.0})
    assert settled.asked == 3  # theirs, and ours twice
    assert now == decode_settings(settled.settings)
    assert (now.limits.max_key_bytes, now.timings.replace_after) == (512, 90.0)


def test_a_change_that_is_always_too_late_ends(settled: Settled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_operations, "DEFAULT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(
        cluster_operations, "administer", lambda *_: Failed(Reason.CHANGED, message="changed meanwhile")
    )
    with pytest.raises(errors.Unavailable, match="changed meanwhile"):
        Kept().configure(timings={"replace_after": 90.0})


# --- backups ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def backed_up(monkeypatch: pytest.MonkeyPatch) -> Header:
    """Backups write their header, and nothing else."""
    header = Header("jobs", 7, 1, 5, 0, 9, 2, "image", 0, "", 0.0)

    def take(name: str, cluster: int, place: Callable[[Header], str], deadline: float) -> tuple[Header, int]:
        Path(place(header)).write_text("a backup")
        return header, 8

    monkeypatch.setattr(cluster_backup, "take_backup", take)
    return header


def test_a_backup_takes_the_place_of_files_alone(backed_up: Header, tmp_path: Path) -> None:
    """Under root's rights, /dev/null would be gone, or whatever folder has the name of what is written first."""
    pipe, folder = tmp_path / "pipe", tmp_path / "there.partial"
    os.mkfifo(pipe)
    folder.mkdir()
    (folder / "kept").write_text("mine")
    (tmp_path / "link").symlink_to(pipe)
    (tmp_path / f"jobs-5{cluster_backup.SUFFIX}.partial").mkdir()
    for place in (pipe, tmp_path / "link", tmp_path / "there", tmp_path, Path("/dev/null"), Path("/dev/full")):
        with pytest.raises(errors.InvalidArgument, match="not a file"):
            Kept().backup(place)
    assert (folder / "kept").read_text() == "mine"


def test_a_backup_follows_links_to_files(backed_up: Header, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for _ in range(2):
        assert Kept().backup(tmp_path / "link").path == str((tmp_path / "file").resolve())
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "a backup"
