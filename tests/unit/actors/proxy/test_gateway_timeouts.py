"""``Grpc-Timeout`` on the JSON gateway: the same requests to the ports of a real etcd and of a proxy."""

from __future__ import annotations

import base64
import json
import math
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from lab.etcd import running_etcd
from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.patience import PATIENCE, until
from raykeeper.actors.proxy.gateway import timeout_of
from raykeeper.actors.proxy.rpc_status import RpcError

Answer = tuple[int, list[Any]]
"""The status, and the lines of the body."""
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


def ask(endpoint: str, path: str, content: dict[str, Any], timeout: str) -> Answer:
    headers = {"Grpc-Timeout": timeout, "Content-Type": "application/json"}
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
    ours, theirs = put(port.endpoint, timeout), put(etcd, timeout)
    assert ours == theirs
    assert ours[0] in (200, 400, 504)
    if ours[0] == 400:
        watch = {"create_request": {"key": b64(b"k")}}
        assert ask(port.endpoint, "watch", watch, timeout) == ask(etcd, "watch", watch, timeout) == ours


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
    for endpoint in (port.endpoint, etcd):
        assert put(endpoint, "-1S", b"late") == EXPIRED
        status, lines = ask(endpoint, "kv/range", {"key": b64(b"late")}, "60S")
        assert (status, "kvs" in lines[0]) == (200, False)


def test_a_bad_request_is_one_whatever_time_it_has(port: EtcdPort, etcd: str) -> None:
    for endpoint in (port.endpoint, etcd):
        status, lines = ask(endpoint, "kv/range", {"key": 7}, "-1S")
        assert (status, lines[0]["code"]) == (400, 3)


@pytest.mark.parametrize("path", ["lock/lock", "election/campaign", "election/observe"])
def test_a_call_that_waits_ends_with_its_time(port: EtcdPort, etcd: str, path: str) -> None:
    """A lock that another holds, an election that another has won, and one in which nobody stands."""
    for endpoint in (port.endpoint, etcd):
        content = {"name": b64(path.encode()), "value": b64(b"v")}
        if path != "election/observe":
            assert ask(endpoint, path, content, "60S")[0] == 200
        # On a slow machine etcd's server may be the first to say so, in other words.
        until(lambda endpoint=endpoint, content=content: ask(endpoint, path, content, "200m") == EXPIRED)
    assert ask(port.endpoint, path, content, "20m") == EXPIRED


def test_a_stream_ends_with_its_time(port: EtcdPort, etcd: str) -> None:
    for endpoint in (port.endpoint, etcd):
        watch = {"create_request": {"key": b64(b"k")}}

        def ends_so(endpoint: str = endpoint, watch: dict[str, Any] = watch) -> bool:
            """On a slow machine the time may be over before the first line."""
            status, lines = ask(endpoint, "watch", watch, "500m")
            if status != 200:
                return False
            return len(lines) == 2 and lines[0]["result"]["created"] is True and lines[1] == LAST_LINE

        until(ends_so)


def test_what_was_given_up_leaves_nothing(port: EtcdPort) -> None:
    """The handler has ended as well: a lock's contender is gone, and a watch."""
    hub = port.proxy.backend.hub
    name = {"name": b64(b"given up")}
    assert ask(port.endpoint, "lock/lock", name, "60S")[0] == 200
    assert ask(port.endpoint, "lock/lock", name, "100m") == EXPIRED
    contenders = {"key": b64(b"given up/"), "range_end": b64(b"given up0"), "count_only": True}
    until(lambda: ask(port.endpoint, "kv/range", contenders, "60S")[1][0]["count"] == "1")
    ask(port.endpoint, "watch", {"create_request": {"key": b64(b"k")}}, "100m")
    until(lambda: hub.figures().watches == 0)
