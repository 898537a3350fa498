"""Backups from one real member, and restores onto folders, without Ray: what Ray would carry is called directly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE, failure
from raykeeper import Client, ClusterMismatch, ClusterNotFound, DataCorrupted, SpecError, Unavailable
from raykeeper.actors.cluster import backup, launch, node_storage, restore
from raykeeper.actors.cluster.backup import take_backup
from raykeeper.actors.cluster.markers import MarkedMember, Marker, write_marker
from raykeeper.actors.member import backup_source
from raykeeper.actors.member.backup_source import BackupSource
from raykeeper.actors.member.events import BackgroundDone, InboxEvent, ReadAsked
from raykeeper.actors.ray_view import RayNode
from raykeeper.raft.messages import HardState
from raykeeper.spec import ClusterSpec
from raykeeper.store.backup_file import Header, verify
from raykeeper.store.data_dir import DataDir
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.content_hash import ContentHasher


@pytest.fixture
def member(tmp_path: Path) -> Iterator[OneMember]:
    with one_member(RocksDisk(), str(tmp_path / "member")) as made:
        yield made


@pytest.fixture
def kv(member: OneMember) -> Iterator[Client]:
    with member.client() as client:
        yield client


class Remote:
    """A method that answers at once, as if it were an actor's."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class Actor:
    """The calls of a member actor that a backup needs. What fails gives its error when it is asked for."""

    def __init__(self, member: OneMember) -> None:
        self.backups = BackupSource()
        self.begin_backup = Remote(
            lambda created, patience, token: self._do(
                self.backups.begin_backup, member.loop, member.name, created, patience
            )
        )
        self.backup_chunk = Remote(lambda *arguments: self._do(self.backups.read_chunk, *arguments))
        self.end_backup = Remote(lambda id: partial(self.backups.end_backup, id))
        self.begun = 0

    def _do(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            return error


def get(result: Any, timeout: float) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


def wait(calls: list[Callable[[], None]], timeout: float) -> None:
    """What is not waited for is not done."""
    assert 0 < timeout < math.inf
    for call in calls:
        call()


@pytest.fixture
def ray_free(monkeypatch: pytest.MonkeyPatch, member: OneMember) -> dict[int, Actor]:
    """The actors that a caller finds: one of the member, as often as a test likes."""
    actors = {1: Actor(member)}
    statuses = {"why_not_serving": "", "cluster": member.cluster, "applied_index": 9}
    roles: dict[int, str] = {}
    monkeypatch.setattr(backup.ray, "get", get)
    monkeypatch.setattr(backup.ray, "wait", wait)
    monkeypatch.setattr(backup, "member_actors", lambda name: actors)
    monkeypatch.setattr(
        backup,
        "ask_all",
        lambda asked, what: {n: SimpleNamespace(**statuses, member=n, role=roles.get(n, "follower")) for n in asked},
    )
    roles[1] = "leader"
    return actors


def take(member: OneMember, path: Path, seconds: float = PATIENCE) -> Header:
    deadline = time.monotonic() + seconds
    header, size = take_backup(member.name, member.cluster, lambda header: str(path), deadline)
    assert size == path.stat().st_size
    return header


def test_a_backup_is_of_what_was_there_when_it_began(
    member: OneMember, kv: Client, ray_free: dict[int, Actor], tmp_path: Path
) -> None:
    for n in range(300):
        kv.put(f"k{n % 40}", bytes([n % 256]) * 3000)
    revision = kv.revision()
    header = take(member, tmp_path / "b")
    kv.put("k0", "later")
    assert verify(RocksDisk(), str(tmp_path / "b")) == header
    assert (header.revision, header.cluster, header.member) == (revision, member.cluster, 1)
    assert list((tmp_path / "member" / "outgoing").iterdir()) == [], "the member keeps no snapshot"
    again = take(member, tmp_path / "b")
    assert again.revision == revision + 1


def test_one_backup_at_a_time_and_none_forever(member: OneMember, kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    backups = BackupSource()
    kv.put("k", "v")
    first = backups.begin_backup(member.loop, "c", 0.0)
    with pytest.raises(Unavailable, match="another backup"):
        backups.begin_backup(member.loop, "c", 0.0)
    backups.drop_idle()
    assert backups.read_chunk(first.image, 0, 10)
    monkeypatch.setattr(backup_source, "BACKUP_IDLE_S", 0.0)
    backups.drop_idle()
    with pytest.raises(Unavailable, match="gone"):
        backups.read_chunk(first.image, 0, 10)
    second = backups.begin_backup(member.loop, "c", 0.0)
    backups.end_backup("another")
    assert backups.read_chunk(second.image, 0, 10)
    backups.end_backup(second.image)
    with pytest.raises(Unavailable):
        backups.read_chunk(second.image, 0, 10)


def test_another_member_is_asked_where_one_fails(
    member: OneMember, kv: Client, ray_free: dict[int, Actor], tmp_path: Path
) -> None:
    kv.put("k", "v")

    def fail(*arguments: Any) -> Any:
        return backup.ray.exceptions.RayActorError()

    silent, breaking = Actor(member), Actor(member)
    silent.begin_backup = Remote(fail)
    breaking.backup_chunk = Remote(fail)
    ray_free[2], ray_free[3] = silent, breaking
    assert take(member, tmp_path / "b").revision == kv.revision()
    del ray_free[1]
    failure(lambda: take(member, tmp_path / "c", seconds=0.3), Unavailable, "no backup of cluster")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("c")]


class Behind:
    """A member's loop that has not applied everything yet: a linearizable read there waits."""

    def __init__(self, member: OneMember, *, comes: bool) -> None:
        self.replica = member.loop.replica
        self.inbox = self
        self.asked: list[InboxEvent] = []
        self._loop, self._comes = member.loop, comes

    def put_own(self, event: InboxEvent) -> None:
        self.asked.append(event)
        if self._comes or not isinstance(event, ReadAsked):
            self._loop.inbox.put_own(event)


def test_an_image_is_of_what_a_quorum_had_committed(member: OneMember, kv: Client) -> None:
    """A lease has no revision: only the log's index tells that it is in."""
    lease = kv.lease(60.0)
    loop: Any = Behind(member, comes=True)
    backups = BackupSource()
    before = member.loop.replica.state.applied_index
    header = backups.begin_backup(loop, "c", 0.0)
    assert [type(event) for event in loop.asked] == [ReadAsked, BackgroundDone], "first the read, then the snapshot"
    assert not loop.asked[0].serializable
    # Entries of the leader's own, the note of its election among them, come when they come.
    assert before <= header.index <= member.loop.replica.state.applied_index
    assert header.revision == 1
    assert lease.id in member.loop.replica.state.leases


def test_no_member_that_is_behind_gives_a_backup(
    member: OneMember, kv: Client, ray_free: dict[int, Actor], tmp_path: Path
) -> None:
    kv.put("k", "v")
    lagging, backups = Actor(member), BackupSource()
    loop: Any = Behind(member, comes=False)
    lagging.begin_backup = Remote(lambda *now: lagging._do(backups.begin_backup, loop, member.name, now[0], 0.1))
    ray_free[2] = lagging
    assert take(member, tmp_path / "b").revision == 2, "another one gives it"
    assert [type(event) for event in loop.asked] == [ReadAsked]
    del ray_free[1]
    failure(lambda: take(member, tmp_path / "c", seconds=0.3), Unavailable, "had committed")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("c")]


def test_where_no_member_runs_nobody_waits(member: OneMember, ray_free: dict[int, Actor], tmp_path: Path) -> None:
    ray_free.clear()
    with pytest.raises(ClusterNotFound):
        take(member, tmp_path / "b", seconds=60.0)


# --- restoring -------------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[RayNode]:
    """Two nodes on this machine, on which functions run when they are called."""
    nodes = [RayNode(f"n{n}", f"10.0.0.{n}", frozenset({f"node:10.0.0.{n}"})) for n in (1, 2)]

    def where_possible(on: Mapping[Any, RayNode], function: Any, arguments: Mapping[Any, Any], timeout: float) -> Any:
        results = {}
        for key in on:
            try:
                results[key] = function(*arguments[key])
            except Exception as error:
                results[key] = error
        return results

    def run_on(*arguments: Any) -> Any:
        results = where_possible(*arguments)
        for result in results.values():
            if isinstance(result, Exception):
                raise result
        return results

    monkeypatch.setattr(restore, "alive_nodes", lambda: nodes)
    monkeypatch.setattr(restore, "run_on", run_on)
    monkeypatch.setattr(launch, "run_on", run_on)
    monkeypatch.setattr(restore, "run_where_possible", where_possible)
    monkeypatch.setattr(restore, "listed_actors", lambda name: [])
    monkeypatch.setattr(restore.ray, "put", lambda data: data)
    monkeypatch.setattr(restore, "BACKUP_CHUNK_BYTES", 10_000)
    return nodes


@pytest.fixture
def file(member: OneMember, kv: Client, ray_free: dict[int, Actor], tmp_path: Path) -> str:
    """A backup of 20 keys, in several chunks."""
    for n in range(20):
        kv.put(f"k{n}", bytes([n]) * 3000)
    take(member, tmp_path / "b")
    return str(tmp_path / "b")


def spec(tmp_path: Path, **fields: Any) -> ClusterSpec:
    return ClusterSpec.load(**{"name": "new", "data_dir": str(tmp_path / "data"), **fields})


def left(tmp_path: Path) -> list[str]:
    return sorted(str(path) for path in (tmp_path / "data").glob("**/*") if path.suffix != ".lock")


def test_all_members_begin_with_the_same_and_serve_nothing_yet(nodes: list[RayNode], file: str, tmp_path: Path) -> None:
    cluster = restore.place_backup(spec(tmp_path, limits={"max_leases": 5}), file)
    hashes = set()
    for number in (1, 2, 3):
        folder = DataDir.open(RocksDisk(), str(tmp_path / "data" / "new" / f"m{number}"))
        assert folder.never_served
        assert (folder.identity.cluster, folder.identity.member) == (cluster, number)
        assert [first.pin for first in folder.identity.members] == ["node:10.0.0.1", "node:10.0.0.2", "node:10.0.0.1"]
        assert folder.state.limits.max_leases == 5
        hashes.add(folder.state.content_hash())
        folder.close()
    assert len(hashes) == 1
    assert not list((tmp_path / "data").glob("**/*.reserved"))
    assert not list((tmp_path / "data").glob("**/backup"))


def test_a_damaged_backup_leaves_nothing(nodes: list[RayNode], file: str, tmp_path: Path) -> None:
    good = Path(file).read_bytes()
    for damaged in (good[:-1], good[:-500] + bytes([good[-500] ^ 4]) + good[-499:], b"something else"):
        Path(file).write_bytes(damaged)
        with pytest.raises(DataCorrupted):
            restore.place_backup(spec(tmp_path), file)
        assert left(tmp_path) == []


@pytest.mark.parametrize("broken", ["receive", "unpack"])
def test_what_fails_on_one_node_is_cleared_on_all(
    nodes: list[RayNode], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    works, calls = getattr(restore, broken), []

    def fails_late(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise node_storage.UnusableFolder("no room")
        works(*arguments)

    monkeypatch.setattr(restore, broken, fails_late)
    with pytest.raises(SpecError, match="no room"):
        restore.place_backup(spec(tmp_path), file)
    assert left(tmp_path) == []


def test_what_a_killed_restore_has_left_is_cleared(
    nodes: list[RayNode], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    works, calls = restore.unpack, []

    def killed(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise Killed
        works(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(restore, "unpack", killed)
        patch.setattr(restore, "discard", lambda *arguments: None)  # it clears nothing any more
        with pytest.raises(Killed):
            restore.place_backup(spec(tmp_path), file)
    assert left(tmp_path)
    first = restore.place_backup(spec(tmp_path), file)
    second = restore.place_backup(spec(tmp_path), file)  # and the one before never served either
    assert first != second


def test_data_that_has_served_is_never_cleared(nodes: list[RayNode], file: str, tmp_path: Path) -> None:
    restore.place_backup(spec(tmp_path, members=1), file)
    path = str(tmp_path / "data" / "new" / "m1")
    folder = DataDir.open(RocksDisk(), path)
    hard = folder.log.hard_state
    folder.log.append([], HardState(hard.term + 1, 1, hard.commit), sync=True)
    folder.close()
    with pytest.raises(ClusterMismatch, match="there is data of a cluster new already"):
        restore.place_backup(spec(tmp_path), file)
    folder = DataDir.open(RocksDisk(), path)
    assert folder.log.hard_state.vote == 1
    folder.close()


def test_what_is_not_all_there_is_never_cleared(nodes: list[RayNode], file: str, tmp_path: Path) -> None:
    restore.place_backup(spec(tmp_path), file)
    (tmp_path / "data" / "new" / "m3").rename(tmp_path / "elsewhere")  # it may serve there
    with pytest.raises(ClusterMismatch):
        restore.place_backup(spec(tmp_path), file)


def test_a_running_cluster_is_not_restored_over(
    nodes: list[RayNode], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "listed_actors", lambda name: ["m1"])
    with pytest.raises(ClusterMismatch, match="runs"):
        restore.place_backup(spec(tmp_path), file)
    assert left(tmp_path) == []


def test_a_cluster_whose_nodes_are_away_is_not_restored_over(nodes: list[RayNode], file: str, tmp_path: Path) -> None:
    base = str(tmp_path / "data" / "new")
    write_marker(base, Marker("new", 7, (MarkedMember(1, "m1", "node:10.0.0.9"),)))
    with pytest.raises(ClusterMismatch, match=r"m1 \(last at node:10\.0\.0\.9\).*--id 7 .*another name"):
        restore.place_backup(spec(tmp_path), file)
    assert [path.name for path in (tmp_path / "data" / "new").iterdir()] == ["cluster-7.json"]


def test_what_is_left_of_a_destroyed_cluster_is_no_hindrance(nodes: list[RayNode], file: str, tmp_path: Path) -> None:
    """It came back with a node that was away then, and lies where the new one is to live."""
    base = str(tmp_path / "data" / "new")
    old = restore.place_backup(spec(tmp_path), file)
    folder = DataDir.open(RocksDisk(), f"{base}/m1")
    folder.log.append([], HardState(folder.log.hard_state.term + 1, 1, folder.log.hard_state.commit), sync=True)
    folder.close()
    write_marker(base, Marker("new", old, destroyed=True))
    new = restore.place_backup(spec(tmp_path), file)
    found = node_storage.survey(str(tmp_path / "data"), "new").found
    assert {place.identity.cluster for place in found if place.identity is not None} == {new}


def test_a_survivors_data_is_copied_and_not_touched(file: str, tmp_path: Path, member: OneMember) -> None:
    survivor = tmp_path / "member"
    with node_storage.locked(str(tmp_path), "member"), pytest.raises(Unavailable), restore.backup_of(str(survivor)):
        pass
    member.loop.stop("lost")
    before = {path: path.read_bytes() for path in survivor.glob("**/*") if path.is_file() and path.name != "LOCK"}
    with restore.backup_of(str(survivor)) as (path, header, taken):
        assert verify(RocksDisk(), path) == header
        assert header.cluster == member.cluster
        assert taken == 0
        assert header.revision == 21
    assert not Path(path).exists()
    assert {p: p.read_bytes() for p in survivor.glob("**/*") if p.is_file() and p.name != "LOCK"} == before
    with pytest.raises(DataCorrupted, match="no member's data"), restore.backup_of(str(tmp_path)):
        pass


def test_a_state_that_is_damaged_gives_no_backup(
    member: OneMember, kv: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def rotten(content: ContentHasher, throttle: object) -> str:
        raise DataCorrupted("a value is missing")

    kv.put("k", "v")
    monkeypatch.setattr(ContentHasher, "digest", rotten)
    with pytest.raises(DataCorrupted):
        BackupSource().begin_backup(member.loop, "c", 0.0)
    assert not list((tmp_path / "member" / "outgoing").iterdir())
