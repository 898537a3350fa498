"""Launching: from nothing, again, over old data, over what is left of it, and over what should not be there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

import raykeeper
from lab.ray.tools import Made, kill_actors, leader, not_serving, remove, serving, wait_until
from lab.segment_files import last_segment, written_ranges
from raykeeper.actors.cluster import launch, node_storage
from raykeeper.actors.cluster.markers import Marker
from raykeeper.actors.discovery import member_actors
from raykeeper.actors.naming import NAMESPACE


class Interrupted(BaseException):
    """Stands for the death of the launching process."""


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], None]]:
    """Have the next launch die after some function was run for this many members."""
    real = launch.run_on

    def plan(function: str, members: int) -> None:
        assert function == "nothing" or hasattr(node_storage, function)

        def run_on(nodes: Any, what: Any, arguments: Any, timeout: float) -> Any:
            if what.__name__ != function:
                return real(nodes, what, arguments, timeout)
            some = dict(list(nodes.items())[:members])
            real(some, what, arguments, timeout)
            raise Interrupted

        monkeypatch.setattr(launch, "run_on", run_on)

    yield plan
    monkeypatch.setattr(launch, "run_on", real)


def test_launch_is_idempotent(clusters: Made) -> None:
    first = clusters.launch()
    pids = [member.pid for member in first.members()]
    second = clusters.launch(members=5)  # what is there wins over the first size
    assert second.id == first.id
    assert [member.pid for member in second.members()] == pids


def test_launches_at_the_same_time_make_one_cluster(clusters: Made) -> None:
    with ThreadPoolExecutor(4) as threads:
        launched = list(threads.map(lambda _: clusters.launch(), range(4)))
    assert len({cluster.id for cluster in launched}) == 1
    assert len(member_actors(clusters.name)) == 3
    assert launched[0].client().put("a", "1").revision


def test_members_that_are_gone_are_started_again(clusters: Made) -> None:
    cluster = clusters.launch()
    cluster.client().put("a", "1")
    victim = next(member for member in cluster.members() if member.role != "leader")
    ray.kill(victim.actor, no_restart=True)
    wait_until(lambda: victim.id not in member_actors(cluster.name))
    assert not_serving(cluster)[victim.name] == "there is no actor for it"
    assert clusters.launch().id == cluster.id
    wait_until(lambda: serving(cluster))


def test_data_survives_shutdown_and_wins_over_the_spec(clusters: Made) -> None:
    cluster = clusters.launch()
    cluster.client().put("a", "1")
    cluster.shutdown()
    assert not member_actors(cluster.name)
    with pytest.raises(raykeeper.ClusterNotFound):
        raykeeper.connect(cluster.name)
    again = clusters.launch(members=1)
    assert (again.id, len(again.members())) == (cluster.id, 3)
    assert again.client().get("a").text == "1"


def test_destroy_leaves_nothing_and_the_name_is_free(clusters: Made) -> None:
    cluster = clusters.launch()
    cluster.client().put("a", "1")
    cluster.destroy()
    assert not (clusters.data_dir / cluster.name).exists()
    again = clusters.launch(members=1)
    assert again.id != cluster.id
    assert again.client().get("a") is None


def test_a_cluster_is_a_context_manager(clusters: Made) -> None:
    with clusters.launch(members=1) as cluster:
        cluster.client().put("a", "1")
    assert not member_actors(cluster.name)


# --- the Rule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reserved", [0, 2, 3])
def test_interrupted_while_it_reserves_nothing_counts(
    clusters: Made, interrupt: Callable[[str, int], None], reserved: int
) -> None:
    interrupt("reserve_place", reserved)
    with pytest.raises(Interrupted):
        clusters.launch()
    assert len(list((clusters.data_dir / clusters.name).glob("*.reserved"))) == reserved
    interrupt("nothing", 0)
    cluster = clusters.launch()
    wait_until(lambda: serving(cluster))
    assert not list((clusters.data_dir / clusters.name).glob("*.reserved"))


@pytest.mark.parametrize("written", [1, 2])
def test_interrupted_while_it_writes_it_is_redone_under_a_new_id(
    clusters: Made, interrupt: Callable[[str, int], None], written: int
) -> None:
    interrupt("create_member", written)
    with pytest.raises(Interrupted):
        clusters.launch()
    identity = json.loads((clusters.folder(1) / "identity.json").read_text())
    interrupt("nothing", 0)
    cluster = clusters.launch()
    assert cluster.id != identity["cluster"]
    wait_until(lambda: serving(cluster))
    cluster.client().put("a", "1")


def test_interrupted_after_all_is_written_it_goes_on(clusters: Made, interrupt: Callable[[str, int], None]) -> None:
    interrupt("create_member", 3)
    with pytest.raises(Interrupted):
        clusters.launch()
    identity = json.loads((clusters.folder(1) / "identity.json").read_text())
    assert not member_actors(clusters.name)
    interrupt("nothing", 0)
    assert clusters.launch().id == identity["cluster"]


def test_half_written_with_a_place_missing_is_not_redone(clusters: Made, interrupt: Callable[[str, int], None]) -> None:
    interrupt("create_member", 1)
    with pytest.raises(Interrupted):
        clusters.launch()
    (clusters.data_dir / clusters.name / "m3.reserved").unlink()
    interrupt("nothing", 0)
    with pytest.raises(raykeeper.Unavailable, match=r"m2 \(last at node:.*\), m3 \(last at node:"):
        clusters.launch()
    assert not member_actors(clusters.name)


def test_a_launcher_killed_half_way_holds_nobody_up(clusters: Made) -> None:
    program = f"""
import os, signal
from raykeeper.actors.cluster import launch, node_storage
real = launch.run_on
def run_on(nodes, what, arguments, timeout):
    if what is node_storage.create_member:
        real({{1: nodes[1]}}, what, arguments, timeout)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(nodes, what, arguments, timeout)
launch.run_on = run_on
import raykeeper
raykeeper.launch(name={clusters.name!r}, data_dir={str(clusters.data_dir)!r})
"""
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -9, done
    identity = json.loads((clusters.folder(1) / "identity.json").read_text())
    cluster = clusters.launch()
    assert cluster.id != identity["cluster"]
    wait_until(lambda: serving(cluster))


def test_a_launch_that_was_overtaken_writes_nothing(clusters: Made, interrupt: Callable[[str, int], None]) -> None:
    """It went to sleep after it had reserved; another launch has made the cluster meanwhile."""
    interrupt("reserve_place", 3)
    with pytest.raises(Interrupted):
        clusters.launch()
    base = str(clusters.data_dir / clusters.name)
    old = json.loads((clusters.data_dir / clusters.name / "m1.reserved").read_text())["cluster"]
    interrupt("nothing", 0)
    cluster = clusters.launch()
    kill_actors(cluster.name)
    identity = node_storage.survey(str(clusters.data_dir), clusters.name).found[0].identity
    assert identity is not None
    late = type(identity)(clusters.name, old, 1, "m1", identity.members)
    with pytest.raises(raykeeper.ClusterMismatch, match="not reserved"):
        node_storage.create_member(base, late)
    with pytest.raises(raykeeper.ClusterMismatch, match="already holds data"):
        node_storage.reserve_place(base, "m1", Marker(clusters.name, old))


def test_one_directory_missing(clusters: Made) -> None:
    cluster = clusters.launch()
    cluster.client().put("a", "1")
    cluster.shutdown()
    remove(clusters.folder(2))
    again = clusters.launch()
    assert again.id == cluster.id
    assert again.client().get("a").text == "1"
    again.client().put("b", "2")
    why = not_serving(again)
    assert list(why) == ["m2"]
    assert f"no data directory {clusters.folder(2)}" in why["m2"]
    assert set(again.status().alarms) == {f"m2 does not serve: {why['m2']}", "one more loss stops writes"}
    assert not clusters.folder(2).exists(), "it was not made again: its vote is gone with it"


def test_a_directory_that_comes_back_is_served_again(clusters: Made) -> None:
    cluster = clusters.launch()
    cluster.client().put("a", "1")
    cluster.shutdown()
    away = clusters.data_dir / "away"
    clusters.folder(2).rename(away)
    again = clusters.launch()
    assert list(not_serving(again)) == ["m2"]
    away.rename(clusters.folder(2))
    clusters.launch()
    wait_until(lambda: serving(again))


def test_two_directories_missing(clusters: Made) -> None:
    cluster = clusters.launch()
    cluster.client().put("a", "1")
    cluster.shutdown()
    for member in (1, 3):
        remove(clusters.folder(member))
    with pytest.raises(raykeeper.Unavailable) as caught:
        clusters.launch()
    said = str(caught.value)
    assert "m1 (last at node:" in said
    assert "m3 (last at node:" in said
    assert "m2" not in said
    assert f"{cluster.id:x}" in said
    assert not member_actors(cluster.name)
    assert not clusters.folder(1).exists(), "it has bootstrapped nothing"


def test_the_directories_of_a_cluster_of_another_name(clusters: Made) -> None:
    other = clusters.launch(name=f"{clusters.name}-other", members=1)
    other.shutdown()
    shutil.copytree(clusters.folder(1, other.name), clusters.folder(1))
    with pytest.raises(raykeeper.ClusterMismatch) as caught:
        clusters.launch()
    assert f"cluster {clusters.name}," in str(caught.value)
    assert f"cluster {other.name} (id {other.id:x})" in str(caught.value)
    assert not member_actors(clusters.name)


def test_the_directories_of_two_clusters_of_one_name(clusters: Made, tmp_path: Path) -> None:
    one = clusters.launch()
    one.shutdown()
    aside = tmp_path / "aside"
    shutil.move(clusters.data_dir / one.name, aside)
    two = clusters.launch()
    two.shutdown()
    remove(clusters.folder(2))
    shutil.copytree(aside / "m2", clusters.folder(2))
    with pytest.raises(raykeeper.ClusterMismatch) as caught:
        clusters.launch()
    assert f"id {one.id:x}" in str(caught.value)
    assert f"id {two.id:x}" in str(caught.value)


def test_a_foreign_directory_under_a_member_is_not_served(clusters: Made, tmp_path: Path) -> None:
    """The disks were exchanged while nobody looked: Ray restarts the actor, and it refuses."""
    one = clusters.launch()
    one.shutdown()
    aside = tmp_path / "aside"
    shutil.move(clusters.data_dir / one.name, aside)
    two = clusters.launch()
    victim = next(member for member in two.members() if member.role != "leader")
    ray.get(victim.actor.stop.remote(), timeout=30)
    remove(clusters.folder(victim.id))
    shutil.copytree(aside / victim.name, clusters.folder(victim.id))
    ray.kill(victim.actor, no_restart=False)

    def refuses() -> str:
        return not_serving(two).get(victim.name, "") if victim.actor else ""

    why = wait_until(lambda: why if "ClusterMismatch" in (why := refuses()) else "")
    assert f"{one.id:x}" in why
    assert f"{two.id:x}" in why
    two.client().put("a", "1")


def test_a_damaged_log_is_not_served_and_said(clusters: Made) -> None:
    cluster = clusters.launch()
    for n in range(50):
        cluster.client().put(f"k{n}", "x" * 100)
    kill_actors(cluster.name)
    segment = last_segment(clusters.folder(3) / "log")
    data = bytearray(segment.read_bytes())
    ranges = written_ranges(bytes(data))
    data[ranges[len(ranges) // 2][0] + 10] ^= 0xFF
    segment.write_bytes(data)
    again = clusters.launch()
    assert again.client().get("k49").text == "x" * 100
    why = wait_until(lambda: not_serving(again).get("m3", ""))
    assert "LogDamaged" in why


def test_another_data_dir_for_a_cluster_that_runs(clusters: Made, tmp_path: Path) -> None:
    cluster = clusters.launch(members=1)
    with pytest.raises(raykeeper.ClusterMismatch, match="has its data in"):
        clusters.launch(members=1, data_dir=str(tmp_path / "elsewhere"))
    wait_until(lambda: serving(cluster, 1))


# --- what it cannot do ----------------------------------------------------------------------------------------------


def test_an_unwritable_data_directory(clusters: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for data_dir in (str(tmp_path / "file"), str(tmp_path / "file" / "data"), "/proc/raykeeper"):
        with pytest.raises(raykeeper.KeeperError) as caught:
            clusters.launch(data_dir=data_dir)
        assert isinstance(caught.value, raykeeper.SpecError), caught.value
        assert caught.value.field == "data_dir"
        assert data_dir in str(caught.value)
    assert not member_actors(clusters.name)


def test_a_placement_that_no_node_offers(clusters: Made) -> None:
    with pytest.raises(raykeeper.SpecError, match="unobtainium") as caught:
        clusters.launch(placement=["unobtainium"])
    assert caught.value.field == "placement"


def test_ray_absent(tmp_path: Path) -> None:
    program = (
        "import raykeeper, sys\n"
        "for act in (raykeeper.launch, raykeeper.connect, raykeeper.attach):\n"
        "    try:\n        act('default') if act is not raykeeper.launch else act(name='default')\n"
        "    except raykeeper.ClusterNotFound as error:\n        print('typed:', error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    environment["RAY_ADDRESS"] = "127.0.0.1:1"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.count("typed: no Ray cluster can be reached at 127.0.0.1:1") == 3, done


# --- locks and leftovers --------------------------------------------------------------------------------------------


def test_a_member_waits_for_the_lock_on_its_data(clusters: Made) -> None:
    cluster = clusters.launch()
    victim = next(member for member in cluster.members() if member.role != "leader")
    ray.get(victim.actor.stop.remote(), timeout=30)
    lock = os.open(clusters.data_dir / cluster.name / f"{victim.name}.lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ray.kill(victim.actor, no_restart=False)
        why = wait_until(lambda: why if "lock" in (why := not_serving(cluster).get(victim.name, "")) else "")
        assert str(clusters.folder(victim.id)) in why
    finally:
        os.close(lock)
    wait_until(lambda: serving(cluster))


def test_a_launch_leaves_no_actor_but_the_members(clusters: Made) -> None:
    cluster = clusters.launch()
    names = {
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == NAMESPACE and cluster.name in actor["name"]
    }
    assert names == {f"raykeeper/{cluster.name}/m{n}" for n in (1, 2, 3)}
    assert leader(cluster).id in (1, 2, 3)
