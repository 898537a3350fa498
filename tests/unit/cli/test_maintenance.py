"""The commands that maintain data: what they ask for, what they print, and their exit status."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from raykeeper import BackupInfo, Comparison, DataCorrupted, InvalidArgument, MembersMissing, NoSpace
from raykeeper import cluster as cluster_module
from raykeeper.actors.cluster import restore as restore_module
from raykeeper.actors.cluster.status import ClusterStatus
from raykeeper.cli import check, main, maintenance, up_down
from raykeeper.spec import ClusterSpec
from raykeeper.store.backup_file import Header
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from raykeeper.store.engine.rocks import RocksDisk

TAKEN = BackupInfo("/b/jobs-7", "jobs", 0xABC, 2, 7, 3, 4711)


class FakeHead:
    """Ray's head of this user; none runs at first."""

    def __init__(self) -> None:
        self.running = False

    def start_if_none_runs(self) -> bool:
        started, self.running = not self.running, True
        return started

    def stop(self) -> None:
        self.running = False


class FakeCluster:
    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answer: Any = None
        self.head = FakeHead()

    def _do(self, *asked: Any) -> Any:
        self.asked.append(asked)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def backup(self, path: str, *, timeout: float) -> Any:
        return self._do("backup", path, timeout)

    def check(self, *, timeout: float) -> Any:
        return self._do("check", timeout)

    def compact(self, revision: int) -> Any:
        return self._do("compact", revision)

    def status(self) -> ClusterStatus:
        return ClusterStatus("copy", 5, 1, 1, 7, (), ())

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    for file in (check, maintenance):
        for name in ("open_cluster", "open_operations"):
            monkeypatch.setattr(file, name, lambda cluster, address: fake, raising=False)
    monkeypatch.setattr(maintenance, "open_client", lambda cluster, address, timeout: fake)
    monkeypatch.setattr(up_down, "join", lambda address: None)
    monkeypatch.setattr(up_down, "RayHead", lambda: fake.head)

    def restore(path: str | None, spec: ClusterSpec, *, timeout: float) -> Any:
        fake._do("restore", path, spec, timeout)
        return fake

    monkeypatch.setattr(cluster_module, "restore", restore)
    return fake


def run(*args: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main.cli, args)
    assert result.exit_code == status, result.output
    return result


def test_a_backup_tells_where_it_is(fake: FakeCluster) -> None:
    fake.answer = TAKEN
    said = json.loads(run("backup", "/b", "-o", "json").stdout)
    assert said["path"] == "/b/jobs-7"
    assert (said["revision"], said["bytes"], said["cluster"]) == (7, 4711, "abc")
    assert fake.asked == [("backup", "/b", 600.0)]


@pytest.mark.parametrize("error", [NoSpace("/b: full"), InvalidArgument("/b: No such file or directory")])
def test_a_backup_that_fails_says_why_in_one_line(fake: FakeCluster, error: Exception) -> None:
    fake.answer = error
    result = run("backup", "/b", status=1)
    assert result.stderr == f"raykeeper: {error}\n"


def comparison(**changes: Any) -> Comparison:
    equal = Comparison(9, 7, 3, {1: "aa", 2: "aa", 3: "aa"}, (), True, ())
    return msgspec.structs.replace(equal, **changes)


def test_equal_contents_are_success(fake: FakeCluster) -> None:
    fake.answer = comparison()
    lines = run("check", "--timeout", "5").stdout.splitlines()
    assert lines == ["equal: True", "revision: 7", "compact_revision: 3", "m1: aa", "m2: aa", "m3: aa"]
    assert fake.asked == [("check", 5.0)]


def test_the_odd_one_is_named(fake: FakeCluster) -> None:
    fake.answer = comparison(hashes={1: "aa", 2: "bb", 3: "aa"}, odd=(2,))
    result = run("check", status=1)
    assert "m2: bb" in result.stdout
    assert result.stderr == (
        "raykeeper: m2: its content differs from that of the majority at log index 9 (revision 7)\n"
    )


def test_a_member_that_does_not_say_is_no_success(fake: FakeCluster) -> None:
    fake.answer = comparison(hashes={1: "aa", 2: "aa"}, silent=(3,))
    result = run("check", "-o", "json", status=1)
    assert json.loads(result.stdout)["equal"] is False
    assert "m3 did not answer" in result.stderr


def test_compaction(fake: FakeCluster) -> None:
    assert run("compact", "12").stdout == "compacted: 12\n"
    assert fake.asked == [("compact", 12)]
    run("compact", "0", status=2)


def test_a_restore_takes_the_spec_and_a_name(fake: FakeCluster, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\nmembers: 5\n")
    run("restore", "/b/file", str(tmp_path / "c.yaml"), "--cluster", "copy")
    ((what, path, spec, _),) = fake.asked
    assert (what, path, spec.name, spec.members) == ("restore", "/b/file", "copy", 5)
    fake.answer = DataCorrupted("/b/file is not a backup of RayKeeper")
    assert run("restore", "/b/file", status=1).stderr == "raykeeper: /b/file is not a backup of RayKeeper\n"


@pytest.mark.parametrize(
    ("error", "runs_on"), [(None, True), (DataCorrupted("damaged"), False), (MembersMissing("m1 is away"), True)]
)
def test_a_restore_starts_ray_and_stops_it_again_if_it_fails(
    fake: FakeCluster, error: Exception | None, runs_on: bool
) -> None:
    fake.answer = error
    result = run("restore", "/b/file", status=int(error is not None))
    assert fake.head.running is runs_on
    assert ("keeps running" in result.stderr) is isinstance(error, MembersMissing)


@pytest.mark.parametrize(("address", "ran_before"), [((), True), (("--address", "10.0.0.1:6379"), False)])
def test_a_restore_leaves_a_ray_that_it_has_not_started_alone(
    fake: FakeCluster, address: tuple[str, ...], ran_before: bool
) -> None:
    fake.head.running = ran_before
    run("restore", "/b/file", *address)
    assert fake.head.running is ran_before
    fake.answer = DataCorrupted("damaged")
    run("restore", "/b/file", *address, status=1)
    assert fake.head.running is ran_before


def test_a_restore_of_a_survivor_says_what_it_risks(
    fake: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = Header("jobs", 0xABC, 2, 7, 3, 40, 2, "", 0, "", 0.0)

    @contextlib.contextmanager
    def backup_of(path: str) -> Iterator[Any]:
        assert path == "/data/m2"
        yield "/scratch/backup", header, 3

    monkeypatch.setattr(restore_module, "backup_of", backup_of)
    (tmp_path / "c.yaml").write_text("name: a\n")
    result = run("restore", "--from-data-dir", "/data/m2", str(tmp_path / "c.yaml"))
    ((_, path, spec, _),) = fake.asked
    assert (path, spec.name) == ("/scratch/backup", "a")
    assert "revision 7; 3 entries of its log" in result.stderr
    assert "is lost" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("--from-data-dir", "/d", "spec", "too many")])
def test_a_restore_of_nothing_or_of_two_things_is_bad_usage(fake: FakeCluster, arguments: tuple[str, ...]) -> None:
    run("restore", *arguments, status=2)
    assert fake.asked == []


def test_data_of_an_unknown_format_is_refused_with_a_clear_message(
    fake: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = Identity(cluster_name="c", cluster=1, member=1, name="m1", members=(FirstMember(1, "m1"),))
    folder = tmp_path / "c" / "m1"
    DataDir.create(RocksDisk(), str(folder), identity).close()
    stated = json.loads((folder / "identity.json").read_text())
    (folder / "identity.json").write_text(json.dumps({**stated, "format": 3}))
    result = run("restore", "--from-data-dir", str(folder), status=1)
    assert result.stderr.startswith(f"raykeeper: {folder} has format 3, and this version of RayKeeper knows 2: ")
