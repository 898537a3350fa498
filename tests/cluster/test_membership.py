"""Members that come, are promoted and go, on real processes: the cluster serves all the while."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import ray

import raykeeper
from lab.ray.tools import Made, kill, kill_actors, leader, remove, wait_until
from raykeeper.errors import InvalidArgument, Unavailable

pytestmark = pytest.mark.survival


class Writer:
    """Counts up in a key as fast as it can, and sees that nothing is lost or done twice."""

    def __init__(self, cluster: Any) -> None:
        self.kv = cluster.client(timeout=30)
        self.done = 0
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.kv.put("count", str(self.done + 1))
                self.done += 1
        except BaseException as error:
            self._error = error

    def end(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert self._error is None, self._error
        item = self.kv.get("count")
        assert item is not None
        assert (item.text, item.version) == (str(self.done), self.done)


def voters(cluster: Any) -> dict[str, str]:
    return {member.name: member.role for member in cluster.members()}


def test_every_founder_is_replaced_under_load_the_leader_too(clusters: Made) -> None:
    cluster = clusters.launch()
    writer = Writer(cluster)
    for _ in range(3):
        added = cluster.add_member()
        assert added.role == "follower"
        lead = leader(cluster)
        cluster.remove_member(lead.id)
        wait_until(lambda: cluster.status().leader not in (0, lead.id), what="a new leader")  # noqa: B023
        assert not clusters.folder(lead.id).exists()
    writer.end()
    assert sorted(member.id for member in cluster.members()) == [4, 5, 6]
    cluster.remove_member(1)  # again: nothing happens
    with pytest.raises(InvalidArgument):
        cluster.remove_member(99)

    # Everything of the beginning is gone; what was noted on the way leads to those who took over.
    kill_actors(cluster.name)
    again = clusters.launch()
    assert again.id == cluster.id
    assert sorted(member.id for member in again.members()) == [4, 5, 6]
    with again.client() as kv:
        assert kv.get("count").text == str(writer.done)


@pytest.mark.core
def test_a_learner_follows_without_a_vote_until_it_is_promoted(clusters: Made) -> None:
    cluster = clusters.launch(members=1)
    with cluster.client() as kv:
        kv.put("a", "1")
        learner = cluster.add_member(promote=False)
        assert learner.role == "learner"
        kill(learner.pid)
        kv.put("a", "2")  # its vote is not needed
        wait_until(lambda: voters(cluster).get("m2") == "learner", what="m2 back as a learner")
        wait_until(lambda: _promoted(cluster, 2), what="m2 promoted")
        assert sorted(voters(cluster).values()) == ["follower", "leader"]
        cluster.promote(2)  # again: nothing happens
        cluster.move_leader(2)
        kv.put("a", "3")
        cluster.remove_member(1)
        assert kv.get("a").text == "3"
        with pytest.raises(InvalidArgument):
            cluster.remove_member(2)  # no voter would be left
        assert voters(cluster) == {"m2": "leader"}


def _promoted(cluster: Any, member: int) -> bool:
    try:
        cluster.promote(member)
    except (raykeeper.NotCaughtUp, raykeeper.Unavailable):  # it has just started: the leader may not have heard it yet
        return False
    return True


def test_what_would_lose_the_quorum_is_refused(clusters: Made) -> None:
    cluster = clusters.launch()
    lead = leader(cluster)
    gone, left = [member for member in cluster.members() if member.id != lead.id]
    ray.kill(gone.actor, no_restart=True)

    def missed() -> bool:
        status = ray.get(lead.actor.status.remote(), timeout=10)
        return bool(status.silent[gone.id] > 1.0)

    wait_until(missed, what="the leader misses it")

    def refused() -> bool:
        try:
            cluster.remove_member(left.id)
        except Unavailable as error:
            return "too few voters would be left" in str(error)
        raise AssertionError("the last but one voter that lives was removed")

    assert refused()
    assert {member.id for member in cluster.members()} == {1, 2, 3}
    cluster.remove_member(gone.id)
    with cluster.client() as kv:
        kv.put("a", "1")
    assert {member.id for member in cluster.members()} == {lead.id, left.id}


@pytest.mark.core
def test_a_member_whose_data_is_gone_is_replaced_where_it_lived_if_there_is_but_one_node(clusters: Made) -> None:
    timings = {"replace_after": 2.0, "election_timeout": 0.6, "heartbeat_interval": 0.1}
    cluster = clusters.launch(timings=timings, supervised=True)
    with cluster.client(timeout=30) as kv:
        kv.put("a", "1")
        lead = leader(cluster)
        remove(clusters.folder(lead.id))
        whole = {1, 2, 3, 4} - {lead.id}

        def healed() -> bool:
            members = cluster.members()
            roles = sorted(member.role for member in members)
            return {member.id for member in members} == whole and roles == ["follower", "follower", "leader"]

        wait_until(healed, 60, "m4 in its place")
        assert kv.get("a").text == "1"
        assert not clusters.folder(lead.id).exists()
