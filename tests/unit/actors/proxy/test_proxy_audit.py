"""A proxy's audit lines: who, from which address, what, with which outcome; by gRPC, by JSON and at ``/kv/``."""

from __future__ import annotations

import http.client
import json
import logging
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.patience import PATIENCE
from raykeeper.actors.client import hub_pool
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    PutRequest,
    RangeRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)

PASSWORD = "never shown"


@pytest.fixture
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        users = port.proxy.kv.users
        for name in ("root", "ann"):
            users.add(name, PASSWORD)
        users.grant_role("root", "root")
        users.enable()
        yield port
        hub_pool._close_all()


class Lines:
    """The proxy's audit lines."""

    def __init__(self, port: EtcdPort, caplog: pytest.LogCaptureFixture) -> None:
        self._port = port
        self._caplog = caplog
        caplog.set_level(logging.INFO, "raykeeper.audit")

    def has(self, *parts: str) -> bool:
        """Whether one of them has all these parts."""
        who = f"cluster {self._port.proxy.member.name}, proxy: "
        said = [record.getMessage() for record in self._caplog.records if record.name == "raykeeper.audit"]
        assert not [line for line in said if PASSWORD in line or "hidden" in line]
        return any(all(part in line for part in (who, *parts)) for line in said)


def ask(port: EtcdPort, method: str, path: str, body: bytes, authorization: str = "") -> tuple[str, bytes]:
    """The address from which it was asked, as a line has it, and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port.port, timeout=PATIENCE)
    try:
        connection.connect()
        host, number = connection.sock.getsockname()
        connection.request(method, path, body, {"Authorization": authorization} if authorization else {})
        return f"from={host} port {number} ", connection.getresponse().read()
    finally:
        connection.close()


def token(port: EtcdPort, name: str) -> str:
    login = json.dumps({"name": name, "password": PASSWORD}).encode()
    found: str = json.loads(ask(port, "POST", "/v3/auth/authenticate", login)[1])["token"]
    return found


def test_who_was_denied_what_from_where(port: EtcdPort, caplog: pytest.LogCaptureFixture) -> None:
    lines = Lines(port, caplog)
    basic = "Basic " + b64encode(f"ann:{PASSWORD}".encode()).decode()
    where, _ = ask(port, "PUT", "/kv/other", b"hidden", basic)
    assert lines.has("denied: user='ann'", where, "what=PUT /kv/")
    where, _ = ask(port, "PUT", "/kv/other", b"hidden")
    assert lines.has("denied: user=''", where, "what=PUT /kv/")
    guess = json.dumps({"name": "ann", "password": "hidden"}).encode()
    where, _ = ask(port, "POST", "/v3/auth/authenticate", guess)
    assert lines.has("denied: user=''", where, "Authenticate name='ann'")
    anns = token(port, "ann")
    where, _ = ask(port, "POST", "/v3/kv/put", b'{"key": "YQ=="}', anns)
    assert lines.has("denied: user='ann'", where, "/etcdserverpb.KV/Put", "permission denied")
    where, _ = ask(port, "POST", "/v3/kv/put", b'{"key": "YQ=="}', "nonsense")
    assert lines.has("denied: user='?'", where, "/etcdserverpb.KV/Put", "invalid auth token")
    with grpc.insecure_channel(port.endpoint) as channel:
        put = channel.unary_unary("/etcdserverpb.KV/Put", PutRequest.SerializeToString)
        with pytest.raises(grpc.RpcError):
            put(PutRequest(key=b"a", value=b"hidden"), timeout=PATIENCE, metadata=(("token", anns),))
        watch = channel.stream_stream(
            "/etcdserverpb.Watch/Watch", WatchRequest.SerializeToString, WatchResponse.FromString
        )
        asked = WatchRequest(create_request=WatchCreateRequest(key=b"other"))
        refused = next(watch(iter([asked]), timeout=PATIENCE, metadata=(("token", anns),)))
        assert refused.canceled
        assert lines.has("denied: user='ann'", "from=127.0.0.1 port ", "what=Watch", "permission denied")
    assert not lines.has("change:")


@pytest.mark.parametrize("token", ["", "nonsense"])
@pytest.mark.parametrize(("method", "message"), [("Put", PutRequest(key=b"a")), ("Range", RangeRequest(key=b"a"))])
def test_a_call_of_nobody_by_grpc_is_denied_with_a_line(
    port: EtcdPort, caplog: pytest.LogCaptureFixture, method: str, message: Any, token: str
) -> None:
    """Most of such calls have no coroutine, and ended without a line."""
    lines = Lines(port, caplog)
    with grpc.insecure_channel(port.endpoint) as channel:
        call = channel.unary_unary(f"/etcdserverpb.KV/{method}")
        with pytest.raises(grpc.RpcError):
            call(message.SerializeToString(), timeout=PATIENCE, metadata=(("token", token),) if token else None)
    user = "?" if token else ""
    assert lines.has(f"denied: user='{user}'", "from=127.0.0.1 port ", f"what=/etcdserverpb.KV/{method}")


def test_who_changed_which_user_from_where(port: EtcdPort, caplog: pytest.LogCaptureFixture) -> None:
    lines = Lines(port, caplog)
    roots, anns = token(port, "root"), token(port, "ann")
    eve = json.dumps({"name": "eve", "password": "hidden"}).encode()
    where, _ = ask(port, "POST", "/v3/auth/user/add", eve, roots)
    assert lines.has("change: user='root'", where, "UserAdd name='eve'", "outcome=done")
    where, _ = ask(port, "POST", "/v3/auth/user/add", eve, roots)
    assert lines.has("change: user='root'", where, "UserAdd name='eve'", "user name already exists")
    where, _ = ask(port, "POST", "/v3/auth/user/delete", eve, anns)
    assert lines.has("denied: user='ann'", where, "UserDelete name='eve'", "permission denied")
    where, _ = ask(port, "POST", "/v3/cluster/member/remove", b'{"ID": "7"}', anns)
    assert lines.has("denied: user='ann'", where, "MemberRemove", "ID=7")
    assert not lines.has("Range")
