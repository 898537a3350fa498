"""What a call's metadata ask, apart from who calls: that there is a leader, and the version of the client's API."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.events
import pytest

from lab.etcd import running_etcd
from lab.http2 import http_client
from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.patience import PATIENCE
from lab.proxy_services import LabProxy
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    LeaseKeepAliveRequest,
    PutRequest,
    RangeRequest,
    WatchCreateRequest,
    WatchRequest,
)
from raykeeper.actors.proxy.rpc_messages import pack_message
from raykeeper.limits import Timings

RANGE, PUT, STATUS = "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put", "/etcdserverpb.Maintenance/Status"
WATCH, KEEP_ALIVE = "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"
OBSERVE = "/v3electionpb.Election/Observe"
NO_LEADER = (14, "etcdserver: no leader")
REQUIRED = {"hasleader": "true"}


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        yield port


@pytest.fixture
def proxy(port: EtcdPort) -> Iterator[LabProxy]:
    """With elections that are short."""
    port.proxy.backend.hub.timings = Timings(election_timeout=0.1)
    yield port.proxy
    port.proxy.backend.hub.timings = Timings()


class Leader:
    """Whether there is one."""

    def __init__(self) -> None:
        self.there = True

    async def has_leader(self) -> bool:
        return self.there


@pytest.fixture
def leader(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> Leader:
    leader = Leader()
    monkeypatch.setattr(proxy.services.calls, "has_leader", leader.has_leader)
    return leader


def test_a_call_that_needs_a_leader_is_served_if_there_is_one(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.proxy.member_calls.STATUS_TIMEOUT_S", PATIENCE)
    for required in (REQUIRED, {}):
        for path, request in ((PUT, PutRequest(key=b"a")), (RANGE, RangeRequest(key=b"a")), (STATUS, RangeRequest())):
            assert isinstance(proxy.call(path, request.SerializeToString(), metadata=required), bytes)


def test_a_member_that_does_not_answer_hears_no_leader(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = proxy.services.calls
    monkeypatch.setattr("raykeeper.actors.proxy.member_calls.STATUS_TIMEOUT_S", 0.1)
    proxy.member.cut = True
    try:
        assert not proxy.run(calls.has_leader())
    finally:
        proxy.member.cut = False


def test_without_a_leader_a_call_that_needs_one_fails_at_once(proxy: LabProxy, leader: Leader) -> None:
    leader.there = False
    for path, request in ((PUT, PutRequest(key=b"a")), (RANGE, RangeRequest(key=b"a")), (STATUS, RangeRequest())):
        said = request.SerializeToString()
        assert proxy.call(path, said, metadata=REQUIRED) == NO_LEADER
        for others in ({}, {"hasleader": "false"}):
            assert isinstance(proxy.call(path, said, metadata=others), bytes), "the member itself serves"
    for path in (WATCH, KEEP_ALIVE, OBSERVE):
        stream = proxy.stream(path, REQUIRED)
        assert stream.receive() == NO_LEADER
        stream.close()


def test_a_stream_that_needs_a_leader_ends_when_there_is_none_any_more(proxy: LabProxy, leader: Leader) -> None:
    watch = WatchRequest(create_request=WatchCreateRequest(key=b"a")).SerializeToString()
    keep = LeaseKeepAliveRequest(ID=7).SerializeToString()
    asked = [(WATCH, watch), (WATCH, watch), (KEEP_ALIVE, keep)]
    streams = [proxy.stream(path, metadata) for path, _ in asked for metadata in (REQUIRED, {})]
    try:
        for stream, request in zip(streams, [request for _, request in asked for _ in range(2)], strict=True):
            stream.send(request)
            assert isinstance(stream.receive(), bytes)
        leader.there = False
        for stream in streams[::2]:
            assert stream.receive() == NO_LEADER
        leader.there = True
        for stream, request in zip(streams[1::2], [request for _, request in asked], strict=True):
            stream.send(request)
            assert isinstance(stream.receive(), bytes), "it does not need one"
    finally:
        for stream in streams:
            stream.close()


def test_a_stream_that_needs_a_leader_ends_as_others_do(proxy: LabProxy, leader: Leader) -> None:
    stream = proxy.stream(KEEP_ALIVE, REQUIRED)
    stream.send(LeaseKeepAliveRequest(ID=7).SerializeToString())
    assert isinstance(stream.receive(), bytes)
    stream.finish()
    assert stream.receive() is None
    stream = proxy.stream(WATCH, REQUIRED)
    stream.send(b"\xff")
    answer = stream.receive()
    assert isinstance(answer, tuple)
    assert answer[0] == 13
    given_up = proxy.stream(WATCH, REQUIRED)
    given_up.send(WatchRequest(create_request=WatchCreateRequest(key=b"a")).SerializeToString())
    assert isinstance(given_up.receive(), bytes)
    given_up.close()

    async def nobody_looks() -> None:
        while proxy.services._conditions._look is not None:
            await asyncio.sleep(0.01)

    proxy.run(nobody_looks())


def ask(endpoint: str, path: str, *more: tuple[bytes, bytes]) -> tuple[str, str]:
    """Code and text of the answer to an empty message, with fields in the head that gRPC's libraries do not let out."""
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(header_encoding=None, validate_outbound_headers=False)
    )
    host, number = endpoint.split(":")
    with socket.create_connection((host, int(number)), timeout=PATIENCE) as line:
        connection.initiate_connection()
        head = {b":method": b"POST", b":scheme": b"http", b":path": path.encode(), b":authority": b"localhost"}
        fields = [*head.items(), (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]
        connection.send_headers(1, fields)
        connection.send_data(1, pack_message(b""), end_stream=True)
        line.sendall(connection.data_to_send())
        said: dict[bytes, bytes] = {}
        while b"grpc-status" not in said:
            data = line.recv(65536)
            assert data, "it has closed the connection"
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    said |= dict(event.headers)
        return said[b"grpc-status"].decode(), said.get(b"grpc-message", b"").decode()


@pytest.fixture(scope="module")
def etcd() -> Iterator[str]:
    with running_etcd() as etcd:
        yield etcd.endpoint


@pytest.mark.parametrize(("path", "code"), [("/etcdserverpb.KV/Range", "3"), ("/etcdserverpb.Cluster/MemberList", "0")])
@pytest.mark.parametrize("version", [b"3.5", b"", b"nothing at all", "größer".encode()])
def test_any_text_is_a_version(port: EtcdPort, etcd: str, path: str, code: str, version: bytes) -> None:
    theirs, ours = (ask(each, path, (b"client-api-version", version)) for each in (etcd, port.endpoint))
    assert ours == theirs
    assert ours[0] == code


@pytest.mark.parametrize("path", ["/etcdserverpb.KV/Range", "/etcdserverpb.Cluster/MemberList", WATCH, KEEP_ALIVE])
@pytest.mark.parametrize("version", [b"\xff", b"3\xe9"])
def test_what_is_not_text_is_refused(port: EtcdPort, path: str, version: bytes) -> None:
    """In the words of later etcds; 3.5.1, which the tests have, ends when it is asked that."""
    refused = ("3", "etcdserver: invalid client api version")
    assert ask(port.endpoint, path, (b"client-api-version", version)) == refused


def test_the_gateway_hands_on_what_is_meant_for_a_call(port: EtcdPort, proxy: LabProxy, leader: Leader) -> None:
    leader.there = False
    body = json.dumps({"key": "YQ=="}).encode()
    for name, status in (("Grpc-Metadata-Hasleader", 503), ("Hasleader", 200)):
        assert http_client.request(port.endpoint, "POST", "/v3/kv/range", body, {name: "true"}).status == status
