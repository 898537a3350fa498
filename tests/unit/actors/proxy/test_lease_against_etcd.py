"""Leases: keep-alives, remaining times and lists, from a real etcd and from the proxy's service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import pytest

from lab.etcd_twins import Twins, twins
from lab.proxy_services import Caller
from raykeeper.actors.proxy.etcd_backend import CallContext, KeptLeases
from raykeeper.actors.proxy.etcd_errors import TIMED_OUT
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
)
from raykeeper.actors.proxy.rpc_status import RpcError

GRANT, REVOKE = "/etcdserverpb.Lease/LeaseGrant", "/etcdserverpb.Lease/LeaseRevoke"
TTL, LEASES = "/etcdserverpb.Lease/LeaseTimeToLive", "/etcdserverpb.Lease/LeaseLeases"
KEEP = "/etcdserverpb.Lease/LeaseKeepAlive"


@pytest.fixture(scope="module")
def servers() -> Iterator[Twins]:
    with twins() as both:
        yield both


@pytest.fixture
def both(servers: Twins) -> Twins:
    servers.begin()
    return servers


def test_a_stream_of_keep_alives(both: Twins) -> None:
    """A lease that is gone is answered with a TTL of 0, and without an error."""
    for id, ttl in ((7, 100), (-5, 3), (8, 1)):
        both.ask(GRANT, LeaseGrantRequest(ID=id, TTL=ttl))
    with both.stream(KEEP) as stream:
        for id in (7, -5, 99, 8, 7, 0):
            stream.send(LeaseKeepAliveRequest(ID=id))
            stream.receive()
        both.ask(REVOKE, LeaseRevokeRequest(ID=7))
        both.ask("/etcdserverpb.KV/Put", PutRequest(key=b"a"))
        stream.send(LeaseKeepAliveRequest(ID=7))
        assert "TTL" not in stream.receive()
        stream.finish()
        assert stream.receive() is None


def test_many_leases_in_one_stream_share_frames(both: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client keeps all its leases alive by one stream: a round for each would take too long."""
    proxy = both.proxy
    both.ask(GRANT, LeaseGrantRequest(ID=7, TTL=100))
    questions: list[int] = []
    keep = proxy.backend.keep_leases

    async def counted(leases: Sequence[int], context: CallContext) -> KeptLeases:
        questions.append(len(leases))
        return await keep(leases, context)

    monkeypatch.setattr(proxy.backend, "keep_leases", counted)
    stream = proxy.stream(KEEP)
    ids = [7, 99] * 500
    for id in ids:
        stream.send(LeaseKeepAliveRequest(ID=id).SerializeToString())
    stream.finish()
    answers = []
    while (answer := stream.receive()) is not None:
        assert isinstance(answer, bytes)
        answers.append(LeaseKeepAliveResponse.FromString(answer))
    assert [each.ID for each in answers] == ids
    assert {each.TTL for each in answers if each.ID == 7} == {100}
    assert sum(questions) == 1000
    assert len(questions) < 100


def test_a_stream_of_keep_alives_ends_in_the_error_of_its_request(both: Twins) -> None:
    stream = both.proxy.stream(KEEP)
    stream.send(LeaseKeepAliveRequest(ID=99).SerializeToString())
    stream.send(b"\xff")
    assert isinstance(stream.receive(), bytes)
    assert isinstance(stream.receive(), tuple)


def test_the_time_that_is_left(both: Twins) -> None:
    began = time.monotonic()
    both.ask(GRANT, LeaseGrantRequest(ID=7, TTL=1000))
    for key in (b"b", b"a"):
        both.ask("/etcdserverpb.KV/Put", PutRequest(key=key, lease=7))
    for keys in (False, True):
        theirs, ours = (side.relative(TTL, LeaseTimeToLiveRequest(ID=7, keys=keys)) for side in both.sides)
        apart = abs(int(theirs.pop("TTL")) - int(ours.pop("TTL")))
        assert apart <= 1 + time.monotonic() - began  # one is asked after the other
        theirs["keys"] = sorted(theirs.get("keys", []))  # etcd's are in no order
        ours["keys"] = ours.get("keys", [])
        assert ours == theirs
        assert len(ours["keys"]) == 2 * keys
    for id in (99, 0):
        assert both.ask(TTL, LeaseTimeToLiveRequest(ID=id, keys=True))["TTL"] == "-1"


def test_all_leases_the_soonest_to_end_first(both: Twins) -> None:
    assert "leases" not in both.ask(LEASES, LeaseLeasesRequest())
    for id, ttl in ((7, 300), (-5, 100), (9, 200)):
        both.ask(GRANT, LeaseGrantRequest(ID=id, TTL=ttl))
    assert both.ask(LEASES, LeaseLeasesRequest())["leases"] == [{"ID": "-5"}, {"ID": "9"}, {"ID": "7"}]


def test_an_id_that_the_server_chooses_is_positive_and_new(both: Twins) -> None:
    for side in both.sides:
        granted = [side.ask(GRANT, LeaseGrantRequest(TTL=60)) for _ in range(20)]
        assert all(isinstance(each, LeaseGrantResponse) and each.ID > 0 and each.TTL == 60 for each in granted)
        assert len({each.ID for each in granted}) == 20


def test_a_lease_takes_its_keys_along(both: Twins) -> None:
    both.ask(GRANT, LeaseGrantRequest(ID=7, TTL=60))
    for key in (b"b", b"a", b"c"):
        both.ask("/etcdserverpb.KV/Put", PutRequest(key=key, lease=7))
    both.ask("/etcdserverpb.KV/Put", PutRequest(key=b"c"))
    both.ask(REVOKE, LeaseRevokeRequest(ID=7))
    both.ask(REVOKE, LeaseRevokeRequest(ID=7))
    left = both.ask("/etcdserverpb.KV/Range", RangeRequest(key=b"\0", range_end=b"\0"))
    assert left["count"] == "1"


def test_a_keep_alive_without_an_answer_is_no_promise(both: Twins) -> None:
    """The member is cut off: the outcome is unknown, and the call ends within its caller's time."""
    proxy = both.proxy
    both.ask(GRANT, LeaseGrantRequest(ID=7, TTL=60))
    proxy.member.cut = True
    try:
        with pytest.raises(RpcError) as caught:
            proxy.run(proxy.backend.keep_leases([7], Caller(0.2)))
        assert (caught.value.code, caught.value.text) == TIMED_OUT
        with pytest.raises((RpcError, asyncio.TimeoutError)):
            proxy.run(proxy.services.unary[GRANT](LeaseGrantRequest(TTL=5).SerializeToString(), Caller(0.2)))
    finally:
        proxy.member.cut = False
