"""Backups of a cluster at work, and new clusters made of them, on real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

import raykeeper
from lab.ray.faults import Faults, rule
from lab.ray.tools import Made, kill_actors, leader, wait_until
from raykeeper import Cluster, ClusterMismatch, DataCorrupted, InvalidArgument, RequestTimeout, Unavailable
from raykeeper.actors.cluster.supervisor_handle import ask_supervisor
from raykeeper.actors.cluster.supervisor_spec import decode_supervisor_spec
from raykeeper.actors.discovery import member_actors, supervisor_actor
from raykeeper.store.backup_file import read_header
from raykeeper.store.engine.rocks import RocksDisk

pytestmark = pytest.mark.survival


def everything(cluster: Cluster, revision: int | None = None) -> dict[bytes, tuple[bytes, int, int]]:
    with cluster.client(timeout=30) as kv:
        found = kv.range(prefix="", revision=revision)
    return {item.key: (item.value, item.mod_revision, item.version) for item in found}


class Writing:
    """Somebody who writes on and on, each write acknowledged before the next."""

    def __init__(self, cluster: Cluster) -> None:
        self.acknowledged = 0
        self._kv = cluster.client(timeout=30)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._kv.put(f"w/{self.acknowledged % 50}", str(self.acknowledged))
            self.acknowledged += 1

    def end(self) -> None:
        self._stop.set()
        self._thread.join(60)


def left_over(made: Made, name: str) -> list[Path]:
    return [path for path in (made.data_dir / name).glob("**/*") if not path.name.endswith(".lock")]


@pytest.mark.core
def test_a_backup_under_load_makes_a_cluster_of_its_own(clusters: Made, tmp_path: Path) -> None:
    cluster = clusters.launch()
    with cluster.client() as kv:
        for n in range(200):
            kv.put(f"k/{n}", os.urandom(2000))
        lease = kv.lease(60.0)
        kv.put("leased", "v", lease=lease.id)
        writing = Writing(cluster)
        before = kv.put("mark", "last before").revision
        taken = cluster.backup(tmp_path / "b")
        kv.put("mark", "after")
        writing.end()
        assert taken.revision >= before
        assert taken.bytes == (tmp_path / "b").stat().st_size

        def by_a_follower() -> bool:  # under load, none may have come far enough in time
            return cluster.backup(tmp_path / "quiet").member != cluster.status().leader

        wait_until(by_a_follower, 30, "a follower gives it, if one can")
        expected = everything(cluster, taken.revision)
        assert expected[b"mark"][0] == b"last before"

        # Nothing is left of a backup that is damaged, and the old cluster is not touched by any of this.
        good = (tmp_path / "b").read_bytes()
        for name, damaged in (("cut", good[:-100]), ("bit", good[:-99] + bytes([good[-99] ^ 1]) + good[-98:])):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(DataCorrupted):
                raykeeper.restore(tmp_path / name, name="copy", data_dir=str(clusters.data_dir))
            assert not left_over(clusters, "copy")
        with pytest.raises(InvalidArgument):
            raykeeper.restore(tmp_path / "nothing", name="copy", data_dir=str(clusters.data_dir))
        with pytest.raises(ClusterMismatch, match="runs"):
            raykeeper.restore(tmp_path / "b", name=cluster.name, data_dir=str(clusters.data_dir))

        name = clusters.name + "-copy"
        clusters.also(name)
        copy = raykeeper.restore(tmp_path / "b", name=name, data_dir=str(clusters.data_dir), members=3)
        assert copy.id != cluster.id
        assert decode_supervisor_spec(ask_supervisor(name, "supervisor_spec")).cluster == copy.id, (
            "it is supervised, as its spec says"
        )
        assert everything(copy) == expected
        with copy.client() as other:
            assert [info.id for info in other.leases()] == [lease.id]
            assert other.put("mark", "new").revision == taken.revision + 1
        assert kv.get("mark").text == "after"
        compared = copy.check()
        assert compared.equal
        assert len(compared.hashes) == 3

    copy.shutdown()
    with pytest.raises(ClusterMismatch, match="there is data"):
        raykeeper.restore(tmp_path / "b", name=name, data_dir=str(clusters.data_dir))
    # A member of the old cluster is not a member of the new one, whatever its folder is called.
    cluster.shutdown()
    copied = clusters.folder(3, name)
    copied.rename(tmp_path / "aside")
    clusters.folder(3).rename(copied)
    with pytest.raises((ClusterMismatch, Unavailable)):
        raykeeper.launch(name=name, data_dir=str(clusters.data_dir), timeout=20)
    copied.rename(clusters.folder(3))
    (tmp_path / "aside").rename(copied)
    again = raykeeper.launch(name=name, data_dir=str(clusters.data_dir))
    assert everything(again)[b"mark"][0] == b"new"


@pytest.mark.core
def test_a_backup_from_a_follower_that_lags_holds_what_has_no_revision(
    clusters: Made, faults: Faults, tmp_path: Path
) -> None:
    """A follower that learns late what is committed has the same revisions as all others: leases, sessions and settings
    change without one."""
    cluster = clusters.launch(timings={"election_timeout": 6.0, "heartbeat_interval": 1.0})
    with cluster.client() as kv:
        kv.put("k", "v")
        lead = leader(cluster)
        faults.set(*[rule("delay", lead.id, m.id, seconds=[0.4, 0.5]) for m in cluster.members() if m.id != lead.id])
        by_followers = 0
        for n in range(3):
            kv.lease(60.0)
            known = leader(cluster).applied_index
            taken = cluster.backup(tmp_path / f"b{n}", timeout=60)
            index = read_header(RocksDisk(), taken.path)[0].index
            assert index >= known, "the lease that was granted before is in it"
            by_followers += taken.member != lead.id
        assert by_followers
        assert faults.counts()["delay"]


def test_what_a_killed_restore_has_left_is_cleared_by_the_next(clusters: Made, tmp_path: Path) -> None:
    cluster = clusters.launch(members=1)
    with cluster.client() as kv:
        kv.put("k", "v")
    taken = cluster.backup(tmp_path)
    assert Path(taken.path).parent == tmp_path
    name = clusters.name + "-copy"
    clusters.also(name)
    program = (
        "import os, sys, raykeeper, ray; from raykeeper.actors.cluster import launch; "
        "launch._Launch.run = lambda self: os._exit(9); "  # killed when all is in its place and nothing runs
        "ray.init(address=sys.argv[1], log_to_driver=False); "
        "raykeeper.restore(sys.argv[2], name=sys.argv[3], data_dir=sys.argv[4])"
    )
    address = ray.get_runtime_context().gcs_address
    arguments = [sys.executable, "-c", program, address, taken.path, name, str(clusters.data_dir)]
    assert subprocess.run(arguments, check=False, timeout=120, capture_output=True).returncode == 9
    assert left_over(clusters, name)
    copy = raykeeper.restore(taken.path, name=name, data_dir=str(clusters.data_dir), members=1, supervised=False)
    assert everything(copy)[b"k"][0] == b"v"
    assert supervisor_actor(name) is None


def test_the_command_line_restores_what_one_survivor_holds(clusters: Made, local_ray: Path, tmp_path: Path) -> None:
    def run(*arguments: str, status: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "raykeeper.cli.main", *arguments],
            capture_output=True,
            check=False,
            timeout=120,
            text=True,
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "XDG_STATE_HOME": str(tmp_path)},
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    cluster = clusters.launch()
    with cluster.client() as kv:
        for n in range(100):
            kv.put(f"k{n}", f"v{n}")
    checked: dict[str, Any] = json.loads(run("check", "--cluster", cluster.name, "-o", "json")[0])
    assert checked["equal"] is True
    assert checked["m1"] == checked["m2"] == checked["m3"]
    assert run("compact", "50", "--cluster", cluster.name)[0] == "compacted: 50\n"
    said = run("backup", str(tmp_path / "b"), "--cluster", cluster.name, "-o", "json")[0]
    assert json.loads(said)["revision"] == 101
    survivor = str(clusters.folder(2))
    assert "another process holds" in run("restore", "--from-data-dir", survivor, "--cluster", "x", status=1)[1]
    kill_actors(cluster.name)

    name = clusters.name + "-saved"
    clusters.also(name)
    (tmp_path / "c.yaml").write_text(f"name: {name}\ndata_dir: {clusters.data_dir}\n")
    said, warned = run("restore", "--from-data-dir", survivor, str(tmp_path / "c.yaml"), "-o", "json")
    assert "is lost" in warned
    assert json.loads(said)["leader"]
    assert member_actors(name)
    found = everything(raykeeper.attach(name))
    assert {key: value[0] for key, value in found.items()} == {b"k%d" % n: b"v%d" % n for n in range(100)}
    # The survivor's own data was not touched.
    old = clusters.launch()
    assert everything(old).keys() == found.keys()
    assert old.id != raykeeper.attach(name).id


def test_a_backup_fails_cleanly_where_nobody_can_give_it(clusters: Made, tmp_path: Path) -> None:
    cluster = clusters.launch(members=1)
    with pytest.raises(InvalidArgument):
        cluster.backup(tmp_path / "no" / "such" / "folder")
    cluster.shutdown()
    with pytest.raises((Unavailable, RequestTimeout, raykeeper.ClusterNotFound)):
        cluster.backup(tmp_path / "b", timeout=5)
    assert list(tmp_path.glob("b*")) == []
