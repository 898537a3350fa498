"""Members that die, stop and come back while clients work: nothing acknowledged is lost, and nothing is done twice."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import ray
from ray.exceptions import RayActorError

import raykeeper
from lab.ray.tools import Made, is_alive, kill, leader, serving, wait_until
from raykeeper import Compare, KeeperError, Op
from raykeeper.schema.frames import Read, ReadReply, Reads, Refused, Reply
from raykeeper.schema.key_spaces import USER_SPACE
from raykeeper.schema.operations import KeyRange, Range

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@ray.remote(num_cpus=0, max_concurrency=2)
class Incrementer:
    """A process that increments without a pause, and remembers what became of each attempt.

    An increment is a transaction: the total one up, and a mark of its own. Beside it goes a blind write to a key of the
    process, whose version counts how often such writes took effect: it has no comparison that a repetition would fail.
    """

    def __init__(self, kv: Any, number: int) -> None:
        self.kv = kv
        self.number = number
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []
        self.blind_acknowledged = 0
        self.blind_unknown = 0
        self.longest_wait = 0.0
        self.stopping = False

    def run(self) -> None:
        for n in itertools.count():
            if self.stopping:
                return
            start = time.monotonic()
            self.increment(f"mark/{self.number}/{n}")
            self.write_blindly()
            self.longest_wait = max(self.longest_wait, time.monotonic() - start)

    def increment(self, mark: str) -> None:
        while not self.stopping:
            try:
                total = self.kv.get("total", timeout=20)
                value, revision = (int(total.value), total.mod_revision) if total else (0, 0)
            except KeeperError:
                continue
            try:
                done = self.kv.txn(
                    compare=[Compare.mod_revision("total") == revision],
                    success=[Op.put("total", str(value + 1)), Op.put(mark, "")],
                    timeout=20,
                )
            except KeeperError as error:
                if error.applied is None:
                    self.unknown.append(mark)
                    return
                continue
            if done.succeeded:
                self.acknowledged.append(mark)
                return

    def write_blindly(self) -> None:
        try:
            self.kv.put(f"blind/{self.number}", "", timeout=20)
            self.blind_acknowledged += 1
        except KeeperError as error:
            self.blind_unknown += error.applied is None

    def stop(self) -> None:
        self.stopping = True

    def progress(self) -> int:
        return len(self.acknowledged)

    def result(self) -> tuple[list[str], list[str], int, int, float]:
        return self.acknowledged, self.unknown, self.blind_acknowledged, self.blind_unknown, self.longest_wait


class Increments:
    """Four processes that increment, and the account of it."""

    def __init__(self, kv: Any) -> None:
        self.kv = kv
        self.workers = [Incrementer.remote(kv, number) for number in range(4)]
        self.runs = [worker.run.remote() for worker in self.workers]

    def progress(self) -> list[int]:
        return [int(n) for n in ray.get([worker.progress.remote() for worker in self.workers], timeout=60)]

    def stop(self) -> None:
        ray.get([worker.stop.remote() for worker in self.workers], timeout=60)
        ray.get(self.runs, timeout=60)

    def check(self) -> int:
        """Every acknowledged increment is there, once; none is there twice; nothing is there that nobody asked for."""
        results = ray.get([worker.result.remote() for worker in self.workers], timeout=60)
        acknowledged = {mark.encode() for result in results for mark in result[0]}
        unknown = {mark.encode() for result in results for mark in result[1]}
        marks = {item.key: item for item in self.kv.range(prefix="mark/", timeout=30)}
        assert acknowledged <= set(marks), "acknowledged and lost"
        assert set(marks) <= acknowledged | unknown, "there without anybody having been told so"
        assert {item.version for item in marks.values()} == {1}, "there twice"
        assert int(self.kv.get("total", timeout=30).value) == len(marks)
        for number, (_, _, blind, blind_unknown, _) in enumerate(results):
            item = self.kv.get(f"blind/{number}", timeout=30)
            assert blind <= item.version <= blind + blind_unknown, "a blind write was lost or done twice"
        return len(acknowledged)


def test_ten_leaders_killed_and_then_all_members(clusters: Made) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    work = Increments(kv)
    for _ in range(10):
        before = work.progress()
        wait_until(lambda before=before: all(a > b for a, b in zip(work.progress(), before, strict=True)), 60)
        kill(leader(cluster).pid)
        wait_until(lambda: serving(cluster), 60, "all members serve again")
    work_done = work.progress()
    assert min(work_done) >= 10
    pids = [member.pid for member in cluster.members()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    relaunched = clusters.launch()
    assert relaunched.id == cluster.id
    assert not set(pids) & {member.pid for member in relaunched.members()}
    before = work.progress()
    wait_until(lambda: all(a > b for a, b in zip(work.progress(), before, strict=True)), 60)
    work.stop()
    assert work.check() > sum(work_done)


def test_followers_killed_cost_nothing(clusters: Made) -> None:
    cluster = clusters.launch(timings={"election_timeout": 5.0})  # a leader that is starved of CPU may lose its place
    kv = cluster.client()
    kv.put("a", "0")
    for n in range(3):
        lead = leader(cluster)
        follower = next(member for member in cluster.members() if member.id != lead.id)
        kill(follower.pid)
        for m in range(20):
            kv.put("a", f"{n}.{m}", timeout=5)
        assert kv.get("a").text == f"{n}.19"
        wait_until(lambda: serving(cluster), 60)
        assert leader(cluster).id == lead.id


def read_directly(member: Any, cluster: Any, key: bytes, deadline: float) -> Any:
    """Send a linearizable read to one member's actor, past the hub; a reference to the reply."""
    command = Range(KeyRange(USER_SPACE + key))
    frame = msgspec.msgpack.encode(Reads(cluster.id, deadline, False, (Read(command),)))
    return member.actor.request.remote(frame)


@pytest.mark.parametrize("lease_reads", [False, True], ids=["confirmed", "by lease"])
def test_a_stopped_leader_serves_no_stale_read(clusters: Made, stopped: list[int], lease_reads: bool) -> None:
    cluster = clusters.launch(lease_reads=lease_reads)
    kv = cluster.client()
    for n in range(3):
        kv.put("x", f"old {n}")
        old = leader(cluster)
        os.kill(old.pid, signal.SIGSTOP)
        stopped.append(old.pid)
        kv.put("x", f"new {n}", timeout=30)  # the others have elected another leader
        asked = [read_directly(old, cluster, b"x", 10.0) for _ in range(20)]
        os.kill(old.pid, signal.SIGCONT)
        asked += [read_directly(old, cluster, b"x", 10.0) for _ in range(20)]
        answers = 0
        for reply in ray.get(asked, timeout=60):
            answer = msgspec.msgpack.decode(reply, type=Reply)
            if isinstance(answer, Refused):
                continue
            assert isinstance(answer, ReadReply)
            assert [item.value for item in answer.answers[0].items] == [f"new {n}".encode()]  # type: ignore[union-attr]
            answers += 1
        assert answers, "the old leader came back as a follower and answered"
        wait_until(lambda: serving(cluster), 30)
        assert leader(cluster).id != old.id


def test_a_stopped_follower_catches_up(clusters: Made, stopped: list[int]) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    lead = leader(cluster)
    follower = next(member for member in cluster.members() if member.id != lead.id)
    os.kill(follower.pid, signal.SIGSTOP)
    stopped.append(follower.pid)
    for n in range(300):
        kv.put(f"k{n}", "x" * 1000)
    assert leader(cluster).id == lead.id
    os.kill(follower.pid, signal.SIGCONT)

    def caught_up() -> bool:
        indexes = {member.applied_index for member in cluster.members()}
        return len(indexes) == 1 and min(indexes) >= 300

    wait_until(caught_up, 30)


def test_two_members_stopped_leave_no_quorum_and_say_so(clusters: Made, stopped: list[int]) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("a", "1")
    wait_until(lambda: level(cluster), what="the third member has it too")  # a quorum had it, which it need not be in
    for member in cluster.members()[:2]:
        os.kill(member.pid, signal.SIGSTOP)
        stopped.append(member.pid)
    with pytest.raises((raykeeper.Unavailable, raykeeper.RequestTimeout)) as caught:
        kv.put("a", "2", timeout=2)
    assert caught.value.applied is None
    with pytest.raises((raykeeper.Unavailable, raykeeper.RequestTimeout)):
        kv.get("a", timeout=1)
    assert kv.get("a", serializable=True, timeout=10).text in ("1", "2")
    status = cluster.status()
    assert sum(member.role == "silent" for member in status.members) == 2
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert kv.put("a", "3", timeout=30).revision
    assert kv.get("a").text == "3"


def test_leadership_moves_on_demand(clusters: Made) -> None:
    cluster = clusters.launch()
    kv = cluster.client()
    for member in cluster.members():
        cluster.move_leader(member.id)
        assert leader(cluster).id == member.id
        kv.put("m", member.name)
    with pytest.raises(raykeeper.InvalidArgument):
        cluster.move_leader(17)


def level(cluster: Any) -> Any:
    """The cluster's status, if all its members stand at the same index."""
    status = cluster.status()
    same = len({(member.raft_index, member.applied_index) for member in status.members}) == 1
    return status if same and status.members[0].applied_index else None


def test_status_says_how_each_member_is(clusters: Made) -> None:
    cluster = clusters.launch()
    cluster.client().put("a", "1")

    status = wait_until(lambda: level(cluster))
    assert (status.name, status.id, status.alarms) == (cluster.name, cluster.id, ())
    assert [member.id for member in status.members] == [1, 2, 3]
    assert [member.name for member in status.members] == ["m1", "m2", "m3"]
    assert sorted(member.role for member in status.members) == ["follower", "follower", "leader"]
    assert status.term >= 1
    assert status.revision == 2
    node = ray.nodes()[0]["NodeID"]
    for member in status.members:
        assert member.node == member.node_id == node
        assert is_alive(member.pid)
        assert member.db_size > 0
        assert ray.get(member.actor.status.remote(), timeout=10).pid == member.pid


def test_a_crashed_loop_ends_its_process(clusters: Made) -> None:
    """A member whose data goes away under it must not live on as a zombie; Ray restarts it."""
    cluster = clusters.launch()
    kv = cluster.client()
    lead = leader(cluster)
    with suppress(RayActorError):  # the process may have ended before its answer was sent
        ray.get(lead.actor.__ray_call__.remote(break_loop), timeout=10)
    wait_until(lambda: not is_alive(lead.pid), 30)
    kv.put("a", "1", timeout=30)
    wait_until(lambda: serving(cluster), 60)


def break_loop(host: Any) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken by a test")

    host.member._loop.replica.turn = broken


def test_many_waiters_do_not_lock_out_the_peers(clusters: Made, stopped: list[int]) -> None:
    """More requests wait in a member than it has threads for them: peers and control calls still get through."""
    cluster = clusters.launch()
    lead = leader(cluster)
    followers = [member for member in cluster.members() if member.id != lead.id]
    for member in followers:
        os.kill(member.pid, signal.SIGSTOP)
        stopped.append(member.pid)
    asked = [read_directly(lead, cluster, b"x", 20.0) for _ in range(400)]
    start = threading.Event()
    start.wait(0.2)
    assert ray.get(lead.actor.status.remote(), timeout=5).member == lead.id
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    replies = ray.get(asked, timeout=60)
    assert len(replies) == 400
    wait_until(lambda: serving(cluster), 30)
