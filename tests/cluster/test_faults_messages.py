"""Messages repeated, late, out of order, damaged, or nobody's: none of it changes what the cluster promises."""

from __future__ import annotations

import random
import sys
import zlib
from typing import Any

import msgspec
import pytest
import ray

from lab.ray.contents import content
from lab.ray.faults import Faults, rule
from lab.ray.load import Load
from lab.ray.tools import Made, is_alive, leader, serving, wait_until
from raykeeper.actors.transport.peer_frames import PeerFrame, encode_frame
from raykeeper.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    RequestVote,
    TimeoutNow,
)
from raykeeper.schema.commands import ClientWrites
from raykeeper.schema.frames import KeepAlive, Reads, Refusal, Refused, Reply, WatchPoll, Writes

pytestmark = pytest.mark.survival
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
METHODS = ("append_entries", "request_vote", "install_snapshot")

SHAPES: dict[str, list[dict[str, Any]]] = {
    "duplicated": [rule("duplicate", share=0.5, seconds=[0.0, 3.0])],
    "reordered": [rule("delay", share=0.5, seconds=[0.0, 0.4])],
    "delayed by seconds": [rule("delay", share=0.05, seconds=[1.0, 5.0])],
    "lost": [rule("drop", share=0.1, seconds=[0.05, 0.5])],
    "all at once": [
        rule("duplicate", share=0.3, seconds=[0.0, 2.0]),
        rule("delay", share=0.3, seconds=[0.0, 0.3]),
        rule("delay", share=0.02, seconds=[1.0, 4.0]),
        rule("drop", share=0.05, seconds=[0.05, 0.5]),
    ],
}


def whole(cluster: Any) -> None:
    """All serve, and hold the same."""

    def same() -> bool:
        return serving(cluster) and len({content(each) for each in cluster.members()}) == 1

    wait_until(same, 60, "all members hold the same")


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=[pytest.mark.core] * (shape == "all at once")) for shape in SHAPES]
)
def test_whatever_becomes_of_messages_on_their_way(clusters: Made, faults: Faults, shape: str) -> None:
    """Between members and to clients alike."""
    cluster = clusters.launch()
    load = Load(cluster.client(), timeout=30)
    load.wait(10)
    faults.set(*SHAPES[shape])
    load.wait(100, 120)
    faults.heal()
    assert load.check()
    whole(cluster)
    assert faults.counts()


@pytest.mark.parametrize("damage", ["truncate", "garble"])
def test_damaged_frames_between_members_are_dropped(clusters: Made, faults: Faults, damage: str) -> None:
    cluster = clusters.launch()
    load = Load(cluster.client(), timeout=30)
    ids = [member.id for member in cluster.members()]
    faults.set(rule(damage, a, b, share=0.2) for a in ids for b in ids if a != b)
    load.wait(100, 120)
    counted: dict[str, int] = {}
    for member in cluster.members():
        for name, count in ray.get(member.actor.counters.remote(), timeout=30).items():
            counted[name] = counted.get(name, 0) + count
    assert counted["dropped: undecodable"] > 0
    faults.heal()
    assert load.check()
    whole(cluster)


def before(cluster: Any) -> tuple[int, int, set[int]]:
    lead = leader(cluster)
    return lead.id, lead.term, {member.pid for member in cluster.members()}


def send(members: Any, frames: list[bytes], methods: tuple[str, ...] = METHODS) -> list[bytes]:
    references = [
        getattr(member.actor, method).remote(frame) for member in members for frame in frames for method in methods
    ]
    return list(ray.get(references, timeout=120))


def harmful(sender: int, to: int) -> list[Any]:
    """Messages that would do harm if they were taken."""
    term = 1 << 40
    return [
        Heartbeat(sender, to, term, 1 << 40, 0),
        RequestVote(sender, to, term, 1 << 40, term),
        TimeoutNow(sender, to, term),
        AppendEntries(sender, to, term, 0, 0, 1 << 40, (Entry(1, term, EntryKind.NORMAL, b"x"),)),
    ]


@pytest.mark.core
def test_frames_of_another_cluster_and_for_another_member_are_not_taken(clusters: Made) -> None:
    cluster = clusters.launch()
    was = before(cluster)
    for member in cluster.members():
        other = member.id % 3 + 1
        foreign = [
            encode_frame(PeerFrame(cluster.id + 1, other, member.id, 1, 1, (message,)))
            for message in harmful(other, member.id)
        ]
        misled = [
            encode_frame(PeerFrame(cluster.id, member.id, other, 1, 1, (message,)))
            for message in harmful(member.id, other)
        ]
        assert set(send([member], foreign + misled)) == {b""}
    cluster.client().put("a", "1")
    assert before(cluster) == was


@pytest.mark.core
def test_frames_of_a_removed_member_change_nothing(clusters: Made) -> None:
    """What it had said before it was gone, and what it would say if it still ran and missed its leader."""
    cluster = clusters.launch()
    kv = cluster.client()
    kv.put("a", "1")
    lead = leader(cluster)
    removed = next(member.id for member in cluster.members() if member.id != lead.id)
    cluster.remove_member(removed)
    was = before(cluster)
    for _ in range(3):
        for member in cluster.members():
            to, term = member.id, lead.term
            messages = [
                RequestVote(removed, to, term + 3, 1 << 40, term + 2),
                RequestVote(removed, to, term + 3, 1 << 40, term + 2, pre_vote=True),
                RequestVote(removed, to, term, 1 << 40, term),
                AppendEntriesResponse(removed, to, term, False, 1, 1, 1),
                AppendEntriesResponse(removed, to, term, True, 1 << 40),
                HeartbeatResponse(removed, to, term, 1),
                TimeoutNow(removed, to, term - 1),
            ]
            send(
                [member], [encode_frame(PeerFrame(cluster.id, removed, to, 1, n, (m,))) for n, m in enumerate(messages)]
            )
        kv.put("a", "2")
    assert before(cluster) == was
    assert kv.get("a").text == "2"


@pytest.mark.core
def test_garbage_and_a_newer_version_are_refused_and_kill_nobody(clusters: Made) -> None:
    cluster = clusters.launch()
    was = before(cluster)
    rng = random.Random(1)
    garbage = [b"", b"\x00", b"\xff" * 10, *(rng.randbytes(size) for size in (1, 5, 50, 5000, 500_000))]
    deep = b"\x91" * 100_000
    newer = msgspec.msgpack.encode((cluster.id, 2, 1, 1, 1, ((99, "a message of tomorrow"),)))
    frames = [*garbage, deep, zlib.crc32(newer).to_bytes(4, "big") + newer]
    assert set(send(cluster.members(), frames)) == {b""}
    tomorrow = msgspec.msgpack.encode((99, cluster.id, 1.0, "a request of tomorrow"))
    huge = msgspec.msgpack.encode(Writes(cluster.id, 1.0, ClientWrites(1, 1, ()))) + b"\x00" * 10
    for reply in send(cluster.members(), [*garbage, deep, tomorrow, huge], ("request", "watch")):
        answer = msgspec.msgpack.decode(reply, type=Reply)
        assert isinstance(answer, Refused)
        assert answer.refusal is Refusal.INVALID
    foreign = [
        msgspec.msgpack.encode(request)
        for request in (
            KeepAlive(cluster.id + 1, 1.0, 1),
            Reads(cluster.id + 1, 1.0, False, ()),
            Writes(cluster.id + 1, 1.0, ClientWrites(1, 1, ())),
            WatchPoll(cluster.id + 1, 1.0, b"s", True),
        )
    ]
    for reply in send(cluster.members(), foreign, ("request",)):
        answer = msgspec.msgpack.decode(reply, type=Reply)
        assert isinstance(answer, Refused)
        assert answer.refusal is Refusal.WRONG_CLUSTER
    cluster.client().put("a", "1")
    assert before(cluster) == was
    assert all(is_alive(pid) for pid in was[2])
