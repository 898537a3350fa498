"""Members, alarms, status and what else is asked of a whole cluster: a real etcd's answers and the proxy's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab.etcd_twins import RELATIVE, Twins, twins
from raykeeper.actors.proxy.etcdpb.auth_pb2 import AuthenticateRequest, AuthStatusRequest
from raykeeper.actors.proxy.etcdpb.cluster_pb2 import (
    AlarmRequest,
    DefragmentRequest,
    DowngradeRequest,
    HashKVRequest,
    HashRequest,
    MemberAddRequest,
    MemberListRequest,
    MemberPromoteRequest,
    MemberRemoveRequest,
    MemberUpdateRequest,
    MoveLeaderRequest,
    StatusRequest,
)
from raykeeper.actors.proxy.etcdpb.health_pb2 import HealthCheckRequest
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from raykeeper.actors.proxy.rpc_status import RpcError
from raykeeper.raft.messages import ChangeKind, MemberChange

CLUSTER, MAINTENANCE, KV = "/etcdserverpb.Cluster/", "/etcdserverpb.Maintenance/", "/etcdserverpb.KV/"


@pytest.fixture(scope="module")
def servers() -> Iterator[Twins]:
    with twins() as both:
        yield both


@pytest.fixture
def both(servers: Twins) -> Twins:
    servers.begin()
    servers.proxy.operations.asked.clear()
    return servers


def ids(both: Twins) -> list[int]:
    """The id of each one's only member."""
    return [side.ask(f"{CLUSTER}MemberList", MemberListRequest()).members[0].ID for side in both.sides]


def ask(both: Twins, path: str, request: Any, **own_id: str) -> Any:
    """What both answer to a request that names their own member, with the id as 1."""
    answers = []
    for side, id in zip(both.sides, ids(both), strict=True):
        each = type(request)()
        each.CopyFrom(request)
        for field in own_id.values():
            setattr(each, field, id)
        answer = side.relative(path, each)
        answers.append(json.loads(json.dumps(answer).replace(str(id), "1")))
    theirs, ours = answers
    assert ours == theirs
    return ours


def test_the_members(both: Twins) -> None:
    for linearizable in (False, True):
        theirs, ours = (
            side.relative(f"{CLUSTER}MemberList", MemberListRequest(linearizable=linearizable)) for side in both.sides
        )
        assert ours.keys() == theirs.keys()
        assert ours["header"] == theirs["header"]
        assert [each.keys() for each in ours["members"]] == [each.keys() for each in theirs["members"]]
        assert [each["clientURLs"] for each in ours["members"]] == [["http://127.0.0.1:2380"]]


def test_members_that_are_not_there(both: Twins) -> None:
    both.ask(f"{CLUSTER}MemberAdd", MemberAddRequest())
    ask(both, f"{CLUSTER}MemberPromote", MemberPromoteRequest(), id="ID")
    for request in (  # etcd's answers may take forever
        MemberRemoveRequest(ID=77),
        MemberPromoteRequest(ID=77),
        MemberUpdateRequest(ID=77, peerURLs=["http://127.0.0.1:77"]),
    ):
        path = CLUSTER + type(request).__name__.removesuffix("Request")
        assert both.sides[1].relative(path, request) == (5, "etcdserver: member not found")


def test_members_are_added_and_removed_by_the_cluster(both: Twins) -> None:
    ours = both.sides[1]
    added = ours.ask(f"{CLUSTER}MemberAdd", MemberAddRequest(peerURLs=["http://127.0.0.1:1"], isLearner=True))
    assert (added.member.ID, added.member.isLearner, added.header.revision) == (2, True, 0)
    change_ours(both, ChangeKind.ADD_LEARNER, 2)
    left = ours.ask(f"{CLUSTER}MemberRemove", MemberRemoveRequest(ID=2)).members
    assert [each.ID for each in left] == [1]
    assert both.proxy.operations.asked == [("add", True), ("remove", 2)]
    refused = ours.relative(f"{CLUSTER}MemberUpdate", MemberUpdateRequest(ID=1, peerURLs=["http://127.0.0.1:1"]))
    assert refused == (3, "etcdserver: given member URLs are invalid")


def test_the_last_voter_stays(both: Twins) -> None:
    refused = set()
    for side in both.sides:
        member = side.ask(f"{CLUSTER}MemberList", MemberListRequest()).members[0].ID
        refused.add(side.relative(f"{CLUSTER}MemberRemove", MemberRemoveRequest(ID=member)))
    assert refused == {(2, "etcdserver: re-configuration failed due to not enough started members")}
    assert both.proxy.operations.asked == []


def change_ours(both: Twins, kind: ChangeKind, member: int) -> None:
    both.proxy.run(both.proxy.services.calls.change_membership([MemberChange(kind, member)]))


def test_a_learner_that_has_not_caught_up(both: Twins) -> None:
    """etcd's answers to its own learner, which nobody has started, and the proxy's."""
    etcd, ours = both.sides
    url = "http://127.0.0.1:1"
    added = etcd.ask(f"{CLUSTER}MemberAdd", MemberAddRequest(peerURLs=[url], isLearner=True)).member.ID
    change_ours(both, ChangeKind.ADD_LEARNER, 2)
    learners = {etcd: added, ours: 2}
    listed, promoted = f"{CLUSTER}MemberList", f"{CLUSTER}MemberPromote"
    for side, learner in learners.items():
        members = side.ask(listed, MemberListRequest(linearizable=True)).members
        assert [each.ID for each in members if each.isLearner] == [learner]
        refused = side.relative(promoted, MemberPromoteRequest(ID=learner))
        assert refused == (9, "etcdserver: can only promote a learner member which is in sync with leader")
    etcd.ask(f"{CLUSTER}MemberRemove", MemberRemoveRequest(ID=added))
    change_ours(both, ChangeKind.REMOVE, 2)
    assert ours.relative(promoted, MemberPromoteRequest(ID=2)) == (5, "etcdserver: member not found")
    with pytest.raises(RpcError, match="member not found"):  # it has left after it was looked up
        change_ours(both, ChangeKind.ADD_VOTER, 2)


def test_as_many_learners_as_fit(both: Twins) -> None:
    """etcd has one at a time, and says of another "too many learner members in cluster", sometimes late."""
    for learner in (2, 3):
        change_ours(both, ChangeKind.ADD_LEARNER, learner)
    listed = both.sides[1].ask(f"{CLUSTER}MemberList", MemberListRequest(linearizable=True)).members
    assert [each.ID for each in listed if each.isLearner] == [2, 3]
    for learner in (2, 3):
        change_ours(both, ChangeKind.REMOVE, learner)


def test_alarms(both: Twins) -> None:
    path = f"{MAINTENANCE}Alarm"
    for kind in (0, 1, 2):
        both.ask(path, AlarmRequest(alarm=kind))  # type: ignore[arg-type]
    for action in (1, 0, 2, 2, 0):
        for kind in (0, 2):
            ask(both, path, AlarmRequest(action=action, alarm=kind), id="memberID")  # type: ignore[arg-type]


def test_without_space_the_cluster_takes_deletes_alone(both: Twins) -> None:
    path = f"{MAINTENANCE}Alarm"
    ask(both, path, AlarmRequest(action=1, alarm=1), id="memberID")  # type: ignore[arg-type]
    try:
        theirs, ours = (side.ask(f"{MAINTENANCE}Status", StatusRequest()) for side in both.sides)
        etcd_id, our_id = ids(both)
        assert [each.replace(str(etcd_id), str(our_id)) for each in theirs.errors] == list(ours.errors)
        both.ask(f"{KV}Put", PutRequest(key=b"a"))
        both.ask(f"{KV}Txn", TxnRequest(success=[RequestOp(request_put=PutRequest(key=b"a"))]))
        both.ask(f"{KV}Range", RangeRequest(key=b"a"))
        both.ask(f"{KV}DeleteRange", DeleteRangeRequest(key=b"a"))
        both.ask("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest(TTL=5, ID=5))
    finally:
        ask(both, path, AlarmRequest(action=2, alarm=1), id="memberID")  # type: ignore[arg-type]
    both.ask(f"{KV}Put", PutRequest(key=b"a"))


def test_the_status_of_a_member(both: Twins) -> None:
    both.ask(f"{KV}Put", PutRequest(key=b"a"))
    theirs, ours = (side.ask(f"{MAINTENANCE}Status", StatusRequest()) for side in both.sides)
    for side, status in zip(both.sides, (theirs, ours), strict=True):
        assert status.header.revision == side.base + 1
        assert status.leader == status.header.member_id
        assert status.raftTerm == status.header.raft_term > 0
        assert status.raftIndex == status.raftAppliedIndex > 0
        assert not status.errors
        assert not status.isLearner
        assert 0 < status.dbSizeInUse <= status.dbSize
    assert ours.dbSize < ours.dbSizeQuota
    assert [theirs.version.split(".")[:2]] == [ours.version.split(".")[:2]]


def test_moving_the_leader(both: Twins) -> None:
    path = f"{MAINTENANCE}MoveLeader"
    for target in (77, 0):
        both.ask(path, MoveLeaderRequest(targetID=target))
    ask(both, path, MoveLeaderRequest(), id="targetID")
    assert both.proxy.operations.asked == []


def test_what_there_is_nothing_to_do_for(both: Twins) -> None:
    both.ask(f"{MAINTENANCE}Defragment", DefragmentRequest())
    both.ask(f"{MAINTENANCE}Downgrade", DowngradeRequest(action=2))  # type: ignore[arg-type]
    for version in ("", "3", "x.y", "9.9.9"):
        for action in (0, 1):
            both.ask(f"{MAINTENANCE}Downgrade", DowngradeRequest(action=action, version=version))  # type: ignore[arg-type]
    both.ask("/etcdserverpb.Auth/Authenticate", AuthenticateRequest(name="a", password="b"))


def test_authentication_is_off(both: Twins) -> None:
    """etcd's header has the revision of its store at the last change of users."""
    theirs, ours = (side.relative("/etcdserverpb.Auth/AuthStatus", AuthStatusRequest()) for side in both.sides)
    del theirs["header"], ours["header"]
    assert ours == theirs


def test_health(both: Twins) -> None:
    for service in ("", "etcd"):
        both.ask("/grpc.health.v1.Health/Check", HealthCheckRequest(service=service))
    for service in ("", "etcd"):
        with both.stream("/grpc.health.v1.Health/Watch") as stream:
            stream.send(HealthCheckRequest(service=service))
            stream.receive()


def test_a_member_that_does_not_answer_has_no_status(both: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.proxy.member_calls.STATUS_TIMEOUT_S", 0.1)
    monkeypatch.setattr("raykeeper.actors.proxy.member_calls.PROXY_TIMEOUT_S", 0.3)
    ours, member = both.sides[1], both.proxy.member
    member.cut = True
    try:
        assert ours.relative(f"{MAINTENANCE}Status", StatusRequest()) == (14, "etcdserver: no leader")
        assert ours.relative(f"{CLUSTER}MemberList", MemberListRequest()) == (14, "etcdserver: no leader")
    finally:
        member.cut = False
        threading.Event().wait(0.1)


def test_physical_compaction_and_defragmentation_end_when_they_are_done(
    both: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = both.proxy.member.loop.replica.state
    for number in range(200):
        both.ask(f"{KV}Put", PutRequest(key=b"k", value=bytes(2000) + b"%d" % number))
    newest = both.sides[1].ask(f"{KV}Range", RangeRequest(key=b"k")).header.revision
    answers = [
        side.ask(f"{KV}Compact", CompactionRequest(revision=side.base + 200, physical=True)) for side in both.sides
    ]
    assert [answer.header.revision - side.base for side, answer in zip(both.sides, answers, strict=True)] == [200, 200]
    assert state.is_removed(newest)
    assert next(key for key, _ in state._engine.iterate("history")) >= newest.to_bytes(8, "big")
    reclaimed: list[tuple[int, float]] = []
    monkeypatch.setattr(state._engine, "reclaim", lambda *asked: reclaimed.append(asked) or True)
    both.ask(f"{MAINTENANCE}Defragment", DefragmentRequest())
    assert [least for _, least in reclaimed] == [0.0]
    monkeypatch.setattr(state._engine, "reclaim", lambda *asked: False)
    full = (8, "etcdserver: mvcc: database space exceeded")
    assert both.sides[1].relative(f"{MAINTENANCE}Defragment", DefragmentRequest()) == full
    both.ask(f"{KV}Compact", CompactionRequest(revision=RELATIVE + 300, physical=True))
    assert both.sides[1].ask(f"{KV}Range", RangeRequest(key=b"k")).kvs[0].value.endswith(b"199")


def test_too_many_hashes_at_a_time_are_refused(both: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.member.operator_requests.MAX_OPERATOR_REQUESTS", 0)
    refused = (8, "etcdserver: too many requests")
    ours = both.sides[1]
    assert ours.relative(f"{MAINTENANCE}HashKV", HashKVRequest()) == refused
    assert ours.relative(f"{MAINTENANCE}Defragment", DefragmentRequest()) == refused


def test_a_hash_of_the_keys(both: Twins) -> None:
    """Its value is ours alone; what it may be asked for is etcd's."""
    ours, path = both.sides[1], f"{MAINTENANCE}HashKV"
    for start in range(0, 1200, 100):
        puts = [RequestOp(request_put=PutRequest(key=b"k%05d" % n, value=b"v")) for n in range(start, start + 100)]
        both.ask(f"{KV}Txn", TxnRequest(success=puts))
    first = ours.ask(path, HashKVRequest())
    assert first.hash_revision == first.header.revision == ours.base + 12
    assert first.compact_revision == ours.base
    assert ours.ask(f"{MAINTENANCE}Hash", HashRequest()).hash == first.hash
    seen = {first.hash}
    for change in (PutRequest(key=b"k01199", value=b"w"), PutRequest(key=b"k01199", value=b"v")):
        both.ask(f"{KV}Put", change)
        seen.add(ours.ask(path, HashKVRequest()).hash)
    both.ask(f"{KV}DeleteRange", DeleteRangeRequest(key=b"k00500"))
    seen.add(ours.ask(path, HashKVRequest()).hash)
    assert len(seen) == 4
    again = ours.ask(path, HashKVRequest(revision=first.hash_revision))
    assert (again.hash, again.hash_revision) == (first.hash, first.hash_revision)
    assert again.header.revision == ours.base + 15
    for revision in (RELATIVE - 1, RELATIVE + 99):
        both.ask(path, HashKVRequest(revision=revision))
