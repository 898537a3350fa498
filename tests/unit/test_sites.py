"""Making and deleting the data of a member that joins later, on a real disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raykeeper.actors import sites
from raykeeper.actors.markers import Marker
from raykeeper.errors import ClusterMismatch
from raykeeper.store import rocks
from raykeeper.store.folder import FirstMember, Identity


def identity(cluster: int = 7, member: int = 4) -> Identity:
    return Identity(
        cluster_name="x", cluster=cluster, member=member, name=f"m{member}", members=(FirstMember(1, "m1", "node:a"),)
    )


def test_data_is_made_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    assert sites.enroll(base, identity())
    made = (tmp_path / "x" / "m4" / "identity.json").stat().st_mtime_ns
    assert sites.enroll(base, identity())
    assert (tmp_path / "x" / "m4" / "identity.json").stat().st_mtime_ns == made
    [found] = sites.survey(str(tmp_path), "x").found
    assert found.identity == identity()


@pytest.mark.parametrize("how", ["reserve", "enroll", "mark"])
def test_folders_that_are_made_on_the_way_outlast_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A folder is there for good only once the one that it is in was synced: data and markers would go with it."""
    synced: list[str] = []
    sync = rocks._sync_folder
    monkeypatch.setattr(rocks, "_sync_folder", lambda folder: (synced.append(folder), sync(folder)))
    data_dir = tmp_path / "a" / "b"
    if how == "reserve":
        sites.reserve(str(data_dir / "x"), "m4", Marker("x", 7))
    elif how == "enroll":
        sites.enroll(str(data_dir / "x"), identity())
    else:
        sites.mark(str(data_dir), Marker("x", 7))
    assert synced[:3] == [str(tmp_path), str(tmp_path / "a"), str(data_dir)]


def test_data_that_was_there_and_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """Its votes are gone with it: only another id may take its place."""
    base = str(tmp_path / "x")
    sites.enroll(base, identity())
    shutil.rmtree(tmp_path / "x" / "m4")
    with pytest.raises(ClusterMismatch, match="it is gone"):
        sites.enroll(base, identity())
    assert sites.enroll(base, identity(member=5))
    assert sites.enroll(base, identity(cluster=8)), "a new cluster of that name has its own members"


def test_a_place_of_another_cluster_is_not_touched(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    sites.enroll(base, identity())
    with pytest.raises(ClusterMismatch, match="another member"):
        sites.enroll(base, identity(cluster=8))


def test_whoever_is_at_work_there_is_left_alone(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    sites.enroll(base, identity())
    with sites.locked(base, "m4"):
        assert not sites.enroll(base, identity())


def test_nothing_is_left_of_what_was_cleared(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    sites.enroll(base, identity())
    sites.clear(base, "m4", 8)
    assert (tmp_path / "x" / "m4").exists(), "another cluster's data"
    sites.clear(base, "m4", 7)
    assert not (tmp_path / "x").exists()
    sites.clear(base, "m4", 7)


def test_nodes_that_share_a_disk_clear_it_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(tmp_path / "x")
    sites.enroll(base, identity())
    try_lock, cleared = sites.try_lock, False

    def overtaken(base: str, member: str) -> int | None:
        nonlocal cleared
        if not cleared:
            cleared = True
            sites.clear(base, member, 7)
        return try_lock(base, member)

    monkeypatch.setattr(sites, "try_lock", overtaken)
    sites.clear_all(str(tmp_path), "x", 7, 1.0)
    assert cleared
    assert not (tmp_path / "x").exists()
