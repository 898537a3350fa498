"""Locks and elections: what etcd answers and what the proxy's services do, and that waiting ends when it should."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab.etcd_twins import RELATIVE, Side, Twins, twins
from lab.patience import PATIENCE
from raykeeper.actors.proxy.etcdpb.election_pb2 import (
    CampaignRequest,
    LeaderRequest,
    ProclaimRequest,
    ResignRequest,
)
from raykeeper.actors.proxy.etcdpb.lock_pb2 import LockRequest, UnlockRequest
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
)

LOCK, UNLOCK = "/v3lockpb.Lock/Lock", "/v3lockpb.Lock/Unlock"
CAMPAIGN, PROCLAIM = "/v3electionpb.Election/Campaign", "/v3electionpb.Election/Proclaim"
RESIGN, LEADER = "/v3electionpb.Election/Resign", "/v3electionpb.Election/Leader"
OBSERVE = "/v3electionpb.Election/Observe"
PUT, RANGE, DELETE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/DeleteRange"
EVERYTHING = RangeRequest(key=b"\0", range_end=b"\0")


@pytest.fixture(scope="module")
def servers() -> Iterator[Twins]:
    with twins() as both:
        yield both


@pytest.fixture
def both(servers: Twins) -> Twins:
    """Both servers, with leases of three clients."""
    servers.begin()
    for id in (7, 8, -5):
        servers.ask("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest(ID=id, TTL=1000))
    return servers


class Waiting:
    """The same call to both servers, made in threads."""

    def __init__(self, both: Twins, path: str, request: Any) -> None:
        self._answers: queue.Queue[tuple[Side, Any]] = queue.Queue()
        self._both = both

        def call(side: Side) -> None:
            self._answers.put((side, side.relative(path, request)))

        for side in both.sides:
            threading.Thread(target=call, args=(side,), daemon=True).start()

    def waits(self) -> bool:
        """Whether neither has answered within a moment."""
        threading.Event().wait(0.3)
        return self._answers.empty()

    def answer(self) -> Any:
        """The answer that both give."""
        answers = dict(self._answers.get(timeout=PATIENCE) for _ in self._both.sides)
        theirs, ours = (answers[side] for side in self._both.sides)
        assert ours == theirs
        return ours


def test_a_free_lock_and_one_that_is_held_already(both: Twins) -> None:
    for request in (
        LockRequest(name=b"n", lease=7),
        LockRequest(name=b"n", lease=7),
        LockRequest(name=b"", lease=-5),
        LockRequest(name=b"other", lease=-5),
        LockRequest(name=b"n", lease=99),
    ):
        both.ask(LOCK, request)
    for key in (b"n/7", b"n/7", b"", b"other/-5"):
        both.ask(UNLOCK, UnlockRequest(key=key))
    both.ask(RANGE, EVERYTHING)


def test_without_a_lease_one_is_granted_for_a_minute(both: Twins) -> None:
    for side in both.sides:
        key = side.ask(LOCK, LockRequest(name=b"n")).key
        lease = int(key.removeprefix(b"n/"), 16)
        granted = side.ask("/etcdserverpb.Lease/LeaseTimeToLive", LeaseTimeToLiveRequest(ID=lease)).grantedTTL
        assert granted == 60


@pytest.mark.parametrize("how", ["unlock", "delete", "revoke"])
def test_a_lock_is_handed_over_in_turn(both: Twins, how: str) -> None:
    both.ask(LOCK, LockRequest(name=b"n", lease=7))
    second = Waiting(both, LOCK, LockRequest(name=b"n", lease=8))
    assert second.waits()
    third = Waiting(both, LOCK, LockRequest(name=b"n", lease=-5))
    assert third.waits()
    if how == "unlock":
        both.ask(UNLOCK, UnlockRequest(key=b"n/7"))
    elif how == "delete":
        both.ask(DELETE, DeleteRangeRequest(key=b"n/7"))
    else:
        both.ask("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest(ID=7))
    second.answer()
    assert third.waits()
    both.ask(UNLOCK, UnlockRequest(key=b"n/8"))
    third.answer()
    both.ask(RANGE, EVERYTHING)


def test_a_waiter_whose_key_is_gone_does_not_get_the_lock(both: Twins) -> None:
    both.ask(LOCK, LockRequest(name=b"n", lease=7))
    second = Waiting(both, LOCK, LockRequest(name=b"n", lease=8))
    assert second.waits()
    both.ask("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest(ID=8))
    both.ask(UNLOCK, UnlockRequest(key=b"n/7"))
    assert second.answer() == (2, "mutex: session is expired")


@pytest.mark.parametrize(
    ("path", "request_"),
    [(LOCK, LockRequest(name=b"n", lease=8)), (CAMPAIGN, CampaignRequest(name=b"n", lease=8, value=b"v"))],
)
def test_a_caller_that_gives_up_leaves_no_key_behind(both: Twins, path: str, request_: Any) -> None:
    both.ask(LOCK, LockRequest(name=b"n", lease=7))
    proxy = both.proxy
    waiter = Waiting(both, path, request_)
    assert waiter.waits()
    proxy.cancel_all()
    ours = both.sides[1]
    until = threading.Event()
    for _ in range(500):
        if ours.ask(RANGE, EVERYTHING).count == 1:
            break
        until.wait(0.01)
    assert [kv.key for kv in ours.ask(RANGE, EVERYTHING).kvs] == [b"n/7"]


def test_who_leads(both: Twins) -> None:
    def leader(**fields: Any) -> dict[str, Any]:
        return {"name": b"e", "key": b"e/7", "lease": 7, **fields}

    both.ask(LEADER, LeaderRequest(name=b"e"))
    for lease, value in ((7, b"v"), (7, b"v"), (7, b"v2"), (99, b"v")):
        both.ask(CAMPAIGN, CampaignRequest(name=b"e", lease=lease, value=value))
    created = int(both.ask(LEADER, LeaderRequest(name=b"e"))["kv"]["create_revision"])
    for change in (
        None,
        {},
        leader(rev=RELATIVE + created),
        leader(rev=RELATIVE + created, lease=99),
        leader(rev=RELATIVE + created, key=b""),
        leader(rev=RELATIVE + 99),
        leader(rev=-1),
    ):
        both.ask(PROCLAIM, ProclaimRequest(leader=change, value=b"x"))  # type: ignore[arg-type]
    for given_up in (
        None,
        {},
        leader(rev=RELATIVE + 99),
        leader(rev=RELATIVE + created),
        leader(rev=RELATIVE + created),
    ):
        both.ask(RESIGN, ResignRequest(leader=given_up))  # type: ignore[arg-type]
        both.ask(LEADER, LeaderRequest(name=b"e"))
    both.ask(RANGE, EVERYTHING)


def test_leadership_is_handed_over(both: Twins) -> None:
    first = both.ask(CAMPAIGN, CampaignRequest(name=b"e", lease=7, value=b"one"))
    second = Waiting(both, CAMPAIGN, CampaignRequest(name=b"e", lease=8, value=b"two"))
    assert second.waits()
    both.ask(LEADER, LeaderRequest(name=b"e"))
    rev = RELATIVE + int(first["leader"]["rev"])
    both.ask(RESIGN, ResignRequest(leader={"name": b"e", "key": b"e/7", "lease": 7, "rev": rev}))
    second.answer()
    both.ask(LEADER, LeaderRequest(name=b"e"))


@pytest.mark.parametrize("begun", [True, False])
def test_observers_see_each_leader_and_each_value(both: Twins, begun: bool) -> None:
    if begun:
        both.ask(CAMPAIGN, CampaignRequest(name=b"o", lease=7, value=b"one"))
    with both.stream(OBSERVE) as stream:
        stream.send(LeaderRequest(name=b"o"))
        if not begun:
            threading.Event().wait(0.3)
            both.ask(CAMPAIGN, CampaignRequest(name=b"o", lease=7, value=b"one"))
        stream.receive()
        both.ask(CAMPAIGN, CampaignRequest(name=b"o", lease=7, value=b"two"))
        stream.receive()
        both.ask(DELETE, DeleteRangeRequest(key=b"o/7"))
        threading.Event().wait(0.3)
        both.ask(PUT, PutRequest(key=b"o", value=b"is another key"))
        both.ask(CAMPAIGN, CampaignRequest(name=b"o", lease=8, value=b"three"))
        assert stream.receive()["kv"]["lease"] == "8"
