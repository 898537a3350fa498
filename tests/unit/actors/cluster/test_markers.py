"""Markers on a real disk: kept apart by cluster id, never lost to one that knows less, and gone with their cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raykeeper.actors.cluster import markers, node_storage
from raykeeper.actors.cluster.markers import MarkedMember, Marker, read_markers, write_marker
from raykeeper.store.data_dir import FirstMember, Identity

A, B = 0xA, 0xB
MEMBERS = (MarkedMember(1, "m1", "node:10.0.0.1", "/d/x", "10.0.0.1"),)


def write_data(base: str, cluster: int, member: int = 1) -> None:
    name = f"m{member}"
    identity = Identity(
        cluster_name="x", cluster=cluster, member=member, name=name, members=(FirstMember(member, name),)
    )
    node_storage.reserve_place(base, name, Marker("x", cluster))
    node_storage.create_member(base, identity)


def test_a_marker_says_what_was_written_also_after_one_that_knows_less(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    newest = Marker("x", A, MEMBERS, version=5)
    write_marker(base, newest)
    write_marker(base, Marker("x", A, version=4))
    write_marker(base, Marker("x", B))
    assert read_markers(base, "x") == (newest, Marker("x", B))


def test_nodes_that_share_a_folder_may_write_at_the_same_time(tmp_path: Path) -> None:
    base, marker = str(tmp_path / "x"), Marker("x", A, MEMBERS)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: write_marker(base, marker), range(40)))
    assert read_markers(base, "x") == (marker,)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["cluster-a.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"cluster_name": "x"}', b"[1]"])
def test_a_marker_that_cannot_be_read_still_tells_of_its_cluster(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cluster-a.json").write_bytes(content)
    assert read_markers(str(tmp_path), "x") == (Marker("x", A),)


def test_a_survey_and_a_mark_tell_of_all_markers(tmp_path: Path) -> None:
    write_marker(str(tmp_path / "x"), Marker("x", B))
    inventory = node_storage.leave_marker(str(tmp_path), Marker("x", A, MEMBERS))
    assert {marker.cluster for marker in inventory.markers} == {A, B}
    assert node_storage.survey(str(tmp_path), "x") == inventory
    assert inventory.ids() == {A, B}


def test_a_reservation_lists_all_places_of_its_bootstrap(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    node_storage.reserve_place(base, "m1", Marker("x", A, MEMBERS))
    [found] = node_storage.survey(str(tmp_path), "x").found
    assert (found.reserved, found.listed) == (A, MEMBERS)


def test_who_gives_a_cluster_up_takes_its_marker_along_and_nothing_of_another(tmp_path: Path) -> None:
    base = str(tmp_path / "x")
    write_data(base, A)
    write_data(base, B, member=2)
    node_storage.reserve_place(base, "m3", Marker("x", B))
    write_marker(base, Marker("x", A))
    write_marker(base, Marker("x", B))
    node_storage.delete_cluster(str(tmp_path), "x", A, 1.0)
    left = node_storage.survey(str(tmp_path), "x")
    assert left.ids() == {B}
    assert [found.name for found in left.found] == ["m2", "m3"]
    node_storage.delete_cluster(str(tmp_path), "x", B, 1.0)
    assert not (tmp_path / "x").exists()


def test_a_destroyed_cluster_stays_destroyed(tmp_path: Path) -> None:
    """A marker that comes late, from a supervisor that was just ending, does not undo it."""
    base, gone = str(tmp_path / "x"), Marker("x", A, destroyed=True)
    write_data(base, A)
    write_marker(base, Marker("x", A, MEMBERS, version=9))
    node_storage.delete_cluster(str(tmp_path), "x", A, 1.0, gone)
    node_storage.leave_marker(str(tmp_path), Marker("x", A, MEMBERS, version=10))
    assert read_markers(base, "x") == (gone,)


def test_the_memory_of_destroyed_clusters_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markers, "MAX_DESTROYED_MARKERS", 2)
    write_marker(str(tmp_path / "x"), Marker("x", 99))
    for cluster in range(1, 6):
        node_storage.delete_cluster(str(tmp_path), "x", cluster, 1.0, Marker("x", cluster, destroyed=True))
    assert sorted(marker.cluster for marker in read_markers(str(tmp_path / "x"), "x")) == [4, 5, 99]


@pytest.mark.parametrize(
    "name", ["cluster-0.json", "cluster-00a.json", "cluster-ffffffffffffffff.json", "cluster-a.json.1"]
)
def test_what_is_not_named_as_a_marker_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    assert read_markers(str(tmp_path), "x") == ()


def test_a_marker_that_was_copied_from_another_cluster_tells_of_its_id_alone(tmp_path: Path) -> None:
    write_marker(str(tmp_path / "y"), Marker("y", A, MEMBERS, version=9))
    (tmp_path / "y").rename(tmp_path / "x")
    assert read_markers(str(tmp_path / "x"), "x") == (Marker("x", A),)
