"""Making and deleting the data of a member that joins later, on a real disk."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from raykeeper.actors.cluster import node_storage
from raykeeper.actors.cluster.markers import Marker, read_markers
from raykeeper.errors import ClusterMismatch
from raykeeper.store import data_lock
from raykeeper.store.data_dir import FirstMember, Identity
from raykeeper.store.engine import rocks


def identity(cluster: int = 7, member: int = 4) -> Identity:
    return Identity(
        cluster_name="x", cluster=cluster, member=member, name=f"m{member}", members=(FirstMember(1, "m1", "node:a"),)
    )


def test_data_is_made_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    assert node_storage.create_joining_member(base, identity())
    made = (tmp_path / "x" / "m4" / "identity.json").stat().st_mtime_ns
    assert node_storage.create_joining_member(base, identity())
    assert (tmp_path / "x" / "m4" / "identity.json").stat().st_mtime_ns == made
    [found] = node_storage.survey(str(tmp_path), "x").found
    assert found.identity == identity()


@pytest.mark.parametrize("how", ["reserve", "enroll", "mark"])
def test_folders_that_are_made_on_the_way_outlast_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A folder is there for good only once the one that it is in was synced: data and markers would go with it."""
    synced: list[str] = []
    sync = rocks.sync_folder
    monkeypatch.setattr(rocks, "sync_folder", lambda folder: (synced.append(folder), sync(folder)))
    data_dir = tmp_path / "a" / "b"
    if how == "reserve":
        node_storage.reserve_place(str(data_dir / "x"), "m4", Marker("x", 7))
    elif how == "enroll":
        node_storage.create_joining_member(str(data_dir / "x"), identity())
    else:
        node_storage.leave_marker(str(data_dir), Marker("x", 7))
    assert synced[:3] == [str(tmp_path), str(tmp_path / "a"), str(data_dir)]


def test_data_that_was_there_and_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """Its votes are gone with it: only another id may take its place."""
    base = str(tmp_path / "x")
    node_storage.create_joining_member(base, identity())
    shutil.rmtree(tmp_path / "x" / "m4")
    with pytest.raises(ClusterMismatch, match="it is gone"):
        node_storage.create_joining_member(base, identity())
    assert node_storage.create_joining_member(base, identity(member=5))
    assert node_storage.create_joining_member(base, identity(cluster=8)), (
        "a new cluster of that name has its own members"
    )


def test_a_place_of_another_cluster_is_not_touched(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    node_storage.create_joining_member(base, identity())
    with pytest.raises(ClusterMismatch, match="another member"):
        node_storage.create_joining_member(base, identity(cluster=8))


def test_whoever_is_at_work_there_is_left_alone(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    node_storage.create_joining_member(base, identity())
    with node_storage.locked(base, "m4"):
        assert not node_storage.create_joining_member(base, identity())


def test_nothing_is_left_of_what_was_cleared(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    node_storage.create_joining_member(base, identity())
    node_storage.delete_member(base, "m4", 8)
    assert (tmp_path / "x" / "m4").exists(), "another cluster's data"
    node_storage.delete_member(base, "m4", 7)
    assert not (tmp_path / "x").exists()
    node_storage.delete_member(base, "m4", 7)


def test_nodes_that_share_a_disk_clear_it_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = str(tmp_path / "x")
    node_storage.create_joining_member(base, identity())
    try_lock, cleared = data_lock.try_lock, False

    def overtaken(base: str, member: str) -> int | None:
        nonlocal cleared
        if not cleared:
            cleared = True
            node_storage.delete_member(base, member, 7)
        return try_lock(base, member)

    monkeypatch.setattr(data_lock, "try_lock", overtaken)
    node_storage.delete_cluster(str(tmp_path), "x", 7, 1.0)
    assert cleared
    assert not (tmp_path / "x").exists()


def refuse(path: Path) -> None:
    """Let the disk refuse to read this: a symbolic link to itself fails like a sector that is bad."""
    if path.exists():
        path.rename(path.with_name(f"kept-{path.name}"))
    path.symlink_to(path.name)


@pytest.mark.parametrize("what", ["m4", "m4/identity.json", "m4/membership.json", "m4/served.json", "m4.reserved"])
def test_what_the_disk_refuses_to_read_is_seen_and_never_taken_for_nothing(tmp_path: Path, what: str) -> None:
    base = str(tmp_path / "x")
    node_storage.create_joining_member(base, identity())
    node_storage.create_joining_member(base, identity(member=5))
    refuse(tmp_path / "x" / what)
    found = {each.name: each for each in node_storage.survey(str(tmp_path), "x").found}
    assert found["m4"].refused
    assert "it cannot be read" in found["m4"].damage
    assert (found["m4"].identity is not None) == (what in ("m4/membership.json", "m4/served.json"))
    assert (found["m5"].refused, found["m5"].damage, found["m5"].identity) == (False, "", identity(member=5))
    with pytest.raises(node_storage.UnusableFolder, match="cannot be read"):
        node_storage.create_joining_member(base, identity())
    with pytest.raises(node_storage.UnusableFolder, match="cannot be read"):
        node_storage.reserve_place(base, "m4", Marker("x", 7))


def test_what_may_be_the_data_of_another_cluster_is_not_deleted(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    node_storage.create_joining_member(base, identity())
    refuse(tmp_path / "x" / "m4" / "identity.json")
    with pytest.raises(node_storage.UnusableFolder, match="cannot be read"):
        node_storage.delete_member(base, "m4", 8)
    assert (tmp_path / "x" / "m4" / "log").exists()


def test_a_marker_that_the_disk_refuses_to_read_is_not_replaced_by_one_that_knows_less(tmp_path: Path) -> None:
    node_storage.leave_marker(str(tmp_path), Marker("x", 7, version=9))
    [marker] = (tmp_path / "x").iterdir()
    refuse(marker)
    with pytest.raises(node_storage.UnusableFolder, match="symbolic links"):
        node_storage.leave_marker(str(tmp_path), Marker("x", 7, version=3))
    assert marker.is_symlink()
    assert node_storage.survey(str(tmp_path), "x").markers == (Marker("x", 7),)


def listing_fails(monkeypatch: pytest.MonkeyPatch, base: str, once: int) -> None:
    """Of the listings of this folder from now on, one fails as on a disk with a bad sector."""
    listed: list[str] = []
    listdir = os.listdir

    def fails(path: str) -> list[str]:
        if path == base:
            listed.append(path)
            if len(listed) == once:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", fails)


@pytest.mark.parametrize("once", [1, 2])
@pytest.mark.parametrize("what", ["survey", "mark", "delete"])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, once: int
) -> None:
    base = str(tmp_path / "x")
    node_storage.create_joining_member(base, identity())
    node_storage.leave_marker(str(tmp_path), Marker("x", 7))
    with monkeypatch.context() as patch:
        listing_fails(patch, base, once)
        if what == "survey":
            assert node_storage.survey(str(tmp_path), "x").problem == f"{base}: {os.strerror(errno.EIO)}"
        elif what == "mark":
            with pytest.raises(node_storage.UnusableFolder, match=os.strerror(errno.EIO)):
                node_storage.leave_marker(str(tmp_path), Marker("x", 7))
        else:
            with pytest.raises(node_storage.UnusableFolder, match=os.strerror(errno.EIO)):
                node_storage.delete_cluster(str(tmp_path), "x", 7, 1.0)
    left = node_storage.survey(str(tmp_path), "x")
    assert left.ids() == {7}
    assert [place.identity for place in left.found] == [identity()]
    assert left.markers == (Marker("x", 7),)


def test_a_path_without_a_folder_holds_nothing(tmp_path: Path) -> None:
    assert read_markers(str(tmp_path / "missing"), "x") == ()
    (tmp_path / "file").touch()
    assert read_markers(str(tmp_path / "file" / "x"), "x") == ()
