"""``Grpc-Timeout`` on the JSON gateway: the same requests to the ports of a real etcd and of a proxy, to the proxy
over both versions of HTTP."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import math
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lab.etcd import running_etcd
from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import request_by_http2
from lab.patience import PATIENCE, until
from raykeeper.actors.client.aio_timeout import within
from raykeeper.actors.proxy import etcd_http
from raykeeper.actors.proxy.etcd_http import _LineStream
from raykeeper.actors.proxy.etcdpb.message_pool import methods
from raykeeper.actors.proxy.gateway import timeout_of
from raykeeper.actors.proxy.rpc_status import RpcError

Answer = tuple[int, list[Any]]
"""The status, and the lines of the body."""
HTTP2 = "h2c://"
"""Before an endpoint: it is asked over HTTP/2."""
EXPIRED: Answer = 504, [{"error": "context deadline exceeded", "code": 4, "message": "context deadline exceeded"}]
LAST_LINE = {
    "error": {
        "grpc_code": 4,
        "http_code": 504,
        "message": "context deadline exceeded",
        "http_status": "Gateway Timeout",
    }
}


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as made:
        yield made


@pytest.fixture(scope="module")
def etcd() -> Iterator[str]:
    with running_etcd() as made:
        yield made.endpoint


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def both_ways(port: EtcdPort) -> tuple[str, str]:
    return port.endpoint, HTTP2 + port.endpoint


def ask(endpoint: str, path: str, content: dict[str, Any], timeout: str) -> Answer:
    headers = {"Grpc-Timeout": timeout, "Content-Type": "application/json"}
    if endpoint.startswith(HTTP2):
        endpoint = endpoint.removeprefix(HTTP2)
        answer = request_by_http2(endpoint, "POST", f"/v3/{path}", json.dumps(content).encode(), headers)
        return answer.status, [json.loads(line) for line in answer.body.splitlines()]
    request = urllib.request.Request(f"http://{endpoint}/v3/{path}", json.dumps(content).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return reply.status, [json.loads(line) for line in reply.read().splitlines()]
    except urllib.error.HTTPError as error:
        return error.code, [json.loads(line) for line in error.read().splitlines()]


def put(endpoint: str, timeout: str, key: bytes = b"k") -> Answer:
    status, lines = ask(endpoint, "kv/put", {"key": b64(key)}, timeout)
    return (status, []) if status == 200 else (status, lines)  # headers are each store's own


TIMEOUTS = [
    "",
    "60S",
    "+60S",
    "1H",
    "1M",
    "060000m",
    "60000000u",
    "60000000000n",
    f"{'0' * 5000}60S",
    "9223372036854775807n",
    "0S",
    "-0n",
    "-1S",
    "-9223372036854775808n",
    "-9223372036854775809n",
    "9223372036854775808n",
    "2562048H",  # in nanoseconds that is more than a number of Go's can hold
    "1" * 5000 + "n",
    "S",
    "60",
    "60s",
    "60 S",
    "1.5S",
    "1_0S",
    "0x1S",
    "1e1S",
    "S60",
    "--1S",
    "+-1S",
    "never",
]


@pytest.mark.parametrize("timeout", TIMEOUTS, ids=lambda timeout: timeout[:30])
def test_a_timeout_is_read_as_etcd_reads_it(port: EtcdPort, etcd: str, timeout: str) -> None:
    """One that is too short to do anything does nothing; one that is malformed refuses the call, of either kind."""
    theirs = put(etcd, timeout)
    assert theirs[0] in (200, 400, 504)
    watch = {"create_request": {"key": b64(b"k")}}
    for endpoint in both_ways(port):
        assert put(endpoint, timeout) == theirs
        if theirs[0] == 400:
            assert ask(endpoint, "watch", watch, timeout) == ask(etcd, "watch", watch, timeout) == theirs


def test_what_the_examples_come_to() -> None:
    found: dict[str, float | None] = {}
    for text in TIMEOUTS:
        try:
            found[text] = timeout_of({"grpc-timeout": text})
        except RpcError:
            found[text] = None
    assert timeout_of({}) == found[""] == found["0S"] == found["-0n"] == math.inf
    assert found["60S"] == found["060000m"] == found["60000000u"] == found["60000000000n"] == found["1M"] == 60.0
    assert found["-1S"] == -1.0
    assert found["2562048H"] is not None
    assert found["2562048H"] < 0
    assert sum(each is None for each in found.values()) == 15


def test_what_comes_after_its_time_has_no_effect(port: EtcdPort, etcd: str) -> None:
    for endpoint in (*both_ways(port), etcd):
        assert put(endpoint, "-1S", b"late") == EXPIRED
        status, lines = ask(endpoint, "kv/range", {"key": b64(b"late")}, "60S")
        assert (status, "kvs" in lines[0]) == (200, False)


def test_a_bad_request_is_one_whatever_time_it_has(port: EtcdPort, etcd: str) -> None:
    for endpoint in (*both_ways(port), etcd):
        status, lines = ask(endpoint, "kv/range", {"key": 7}, "-1S")
        assert (status, lines[0]["code"]) == (400, 3)


@pytest.mark.parametrize("path", ["lock/lock", "election/campaign", "election/observe"])
def test_a_call_that_waits_ends_with_its_time(port: EtcdPort, etcd: str, path: str) -> None:
    """A lock that another holds, an election that another has won, and one in which nobody stands."""
    for endpoint in (*both_ways(port), etcd):
        content = {"name": b64(f"{path} {endpoint}".encode()), "value": b64(b"v")}
        if path != "election/observe":
            assert ask(endpoint, path, content, "60S")[0] == 200
        # On a slow machine etcd's server may be the first to say so, in other words.
        until(lambda endpoint=endpoint, content=content: ask(endpoint, path, content, "200m") == EXPIRED)
        if endpoint != etcd:
            assert ask(endpoint, path, content, "20m") == EXPIRED


def test_a_stream_ends_with_its_time(port: EtcdPort, etcd: str) -> None:
    for endpoint in (*both_ways(port), etcd):
        watch = {"create_request": {"key": b64(b"k")}}

        def ends_so(endpoint: str = endpoint, watch: dict[str, Any] = watch) -> bool:
            """On a slow machine the time may be over before the first line."""
            status, lines = ask(endpoint, "watch", watch, "500m")
            if status != 200:
                return False
            return len(lines) == 2 and lines[0]["result"]["created"] is True and lines[1] == LAST_LINE

        until(ends_so)


@pytest.mark.parametrize("way", ["", HTTP2], ids=["HTTP/1.1", "HTTP/2"])
def test_what_was_given_up_leaves_nothing(port: EtcdPort, way: str) -> None:
    """The handler has ended as well: a lock's contender is gone, and a watch."""
    hub, endpoint, name = port.proxy.backend.hub, way + port.endpoint, b"given up by " + way.encode()
    lock = {"name": b64(name)}
    assert ask(endpoint, "lock/lock", lock, "60S")[0] == 200
    assert ask(endpoint, "lock/lock", lock, "100m") == EXPIRED
    contenders = {"key": b64(name + b"/"), "range_end": b64(name + b"0"), "count_only": True}
    until(lambda: ask(endpoint, "kv/range", contenders, "60S")[1][0]["count"] == "1")
    ask(endpoint, "watch", {"create_request": {"key": b64(b"k")}}, "100m")
    until(lambda: hub.figures().watches == 0)


def test_a_body_that_does_not_come_ends_with_the_time(port: EtcdPort) -> None:
    """It would be waited for far longer, and then the connection would be closed without an answer."""
    head = b"POST /v3/kv/put HTTP/1.1\r\nhost: x\r\ngrpc-timeout: 200m\r\ncontent-length: 100\r\n\r\n"
    with socket.create_connection((port.host, port.port), 2 * PATIENCE) as sock:
        sock.sendall(head + b'{"key"')
        assert sock.recv(1000).startswith(b"HTTP/1.1 504 ")
    until(lambda: not port.listener.context.connections())


class PlayedExchange:
    """An exchange that takes all and gives nothing."""

    def __init__(self, timeout: str) -> None:
        self.headers = {"grpc-timeout": timeout}
        self.client = ""
        self.started = False
        self.sent: list[bytes] = []
        self.asked = 0

    async def start(self, status: int, headers: Any) -> None:
        self.started = True

    async def send(self, data: bytes) -> None:
        self.sent.append(data)

    async def receive(self) -> bytes:
        self.asked += 1
        return b""


def line_stream(exchange: Any) -> _LineStream:
    counted: Any = SimpleNamespace(sent=0, received=0)
    return _LineStream(exchange, methods()["/etcdserverpb.Watch/Watch"], counted)


def test_a_handler_has_ended_before_its_call_is_answered_and_its_error_is_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(etcd_http, "GATEWAY_END_S", 10 * PATIENCE)  # what is seen does not come from its end
    reported: list[Any] = []
    ended: list[str] = []

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
            ended.append("ended")
            raise ValueError("a handler's own mistake")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        stream = line_stream(PlayedExchange("60S"))
        stream._deadline = time.monotonic() + 0.5
        with pytest.raises(RpcError, match="deadline exceeded"):
            await stream.while_time_is_left(handler)
        assert ended == ["ended"]
        gc.collect()
        await asyncio.sleep(0)
        assert not reported

    asyncio.run(main())


def test_a_handler_that_does_not_end_keeps_nobody_waiting_and_sends_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_http, "GATEWAY_END_S", 0.01)

    async def main() -> None:
        exchange, go_on = PlayedExchange("60S"), asyncio.Event()
        stream, refused = line_stream(exchange), []

        async def handler() -> None:
            await stream.send(b"")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await go_on.wait()
            for use in (stream.send(b""), stream.receive()):
                try:
                    await use
                except RpcError as error:
                    refused.append(error.text)

        before = asyncio.all_tasks()
        stream._deadline = time.monotonic() + 0.5
        with pytest.raises(RpcError, match="deadline exceeded"):
            await stream.while_time_is_left(handler)
        (left,) = asyncio.all_tasks() - before
        go_on.set()
        assert await within(PATIENCE, left)
        assert refused == ["context deadline exceeded"] * 2
        assert (len(exchange.sent), exchange.asked) == (1, 0)

    asyncio.run(main())
