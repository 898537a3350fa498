"""The JSON gateway: the same HTTP bodies to a real etcd and to ours, statuses and JSON compared."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.etcd_twins import Twins, twins
from lab.patience import PATIENCE
from raykeeper.actors.proxy import gateway
from raykeeper.actors.proxy.etcdpb.message_pool import methods
from raykeeper.actors.proxy.gateway import (
    JsonRequests,
    error_json,
    error_line,
    find_method,
    request_of,
    response_json,
    stream_line,
)
from raykeeper.actors.proxy.rpc_status import RpcCode, RpcError


@pytest.fixture(scope="module")
def servers() -> Iterator[Twins]:
    with twins() as both:
        yield both


@pytest.fixture
def both(servers: Twins) -> Twins:
    servers.begin()
    return servers


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def etcd_answers(both: Twins, path: str, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://{both.etcd.endpoint}{path}", body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else None


def we_answer(both: Twins, path: str, body: bytes) -> tuple[int, Any]:
    method = find_method(path)
    if method is None:
        return 404, None
    try:
        answer = both.proxy.call(method.path, request_of(method, body))
        if isinstance(answer, tuple):
            raise RpcError(RpcCode(answer[0]), answer[1])
        return 200, json.loads(response_json(method, answer))
    except RpcError as error:
        status, text = error_json(error)
        return status, json.loads(text)


OWN = {"cluster_id", "member_id", "raft_term"}
MOVED = {"revision", "create_revision", "mod_revision"}


def plain(content: Any, base: int) -> Any:
    """JSON with relative revisions, and without what is each store's own."""
    if isinstance(content, list):
        return [plain(each, base) for each in content]
    if not isinstance(content, dict):
        return content
    return {
        name: "own" if name in OWN else int(value) - base if name in MOVED else plain(value, base)
        for name, value in content.items()
    }


def ask(both: Twins, path: str, content: Any) -> tuple[int, Any]:
    """What both answer to a body."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    etcd, ours = both.sides
    status, answer = etcd_answers(both, path, body)
    theirs = status, plain(answer, etcd.base)
    status, answer = we_answer(both, path, body)
    mine = status, plain(answer, ours.base)
    assert mine == theirs
    return mine


def test_keys(both: Twins) -> None:
    ask(both, "/v3/kv/put", {"key": b64(b"a"), "value": b64(b"1")})
    ask(both, "/v3beta/kv/put", {"key": b64(b"b\xff\0"), "value": b64(bytes(range(256))), "prev_kv": True})
    ask(both, "/v3/kv/put", {"key": b64(b"a"), "value": b64(b"2"), "prevKv": True})
    everything = {"key": b64(b"\0"), "range_end": b64(b"\0")}
    for more in (
        {},
        {"sort_order": "DESCEND", "sort_target": "MOD", "limit": "1"},
        {"sort_order": 2, "sortTarget": 3, "limit": 1},
        {"keys_only": True, "count_only": False, "serializable": True},
        {"count_only": True, "no_such_field": [1, {"a": None}]},
        {"revision": None},
    ):
        ask(both, "/v3/kv/range", {**everything, **more})
    ask(both, "/v3/kv/deleterange", {**everything, "prev_kv": True})
    ask(both, "/v3/kv/range", everything)


def test_a_transaction(both: Twins) -> None:
    ask(both, "/v3/kv/put", {"key": b64(b"a"), "value": b64(b"1")})
    txn = {
        "compare": [{"key": b64(b"a"), "target": "VALUE", "result": "EQUAL", "value": b64(b"1")}],
        "success": [
            {"request_put": {"key": b64(b"b"), "value": b64(b"2")}},
            {"requestRange": {"key": b64(b"a"), "range_end": b64(b"z")}},
            {"request_txn": {"failure": [{"request_delete_range": {"key": b64(b"a")}}]}},
        ],
        "failure": [{"request_delete_range": {"key": b64(b"a")}}],
    }
    ask(both, "/v3/kv/txn", txn)
    txn["compare"] = [{"key": b64(b"a"), "target": 0, "version": "7"}]
    ask(both, "/v3/kv/txn", txn)


@pytest.mark.parametrize(
    "path",
    [
        "/v3/kv/range",
        "/v3/kv/put",
        "/v3/kv/txn",
        "/v3/lease/revoke",
        "/v3/kv/lease/revoke",
        "/v3/lease/timetolive",
        "/v3/kv/lease/timetolive",
        "/v3/lease/leases",
        "/v3/kv/lease/leases",
        "/v3/cluster/member/add",
        "/v3/cluster/member/remove",
        "/v3/cluster/member/promote",
        "/v3/maintenance/alarm",
        "/v3/maintenance/defragment",
        "/v3/maintenance/transfer-leadership",
        "/v3/auth/authenticate",
        "/v3/lock/unlock",
        "/v3/election/leader",
        "/v3/election/proclaim",
        "/v3/election/resign",
        "/v3alpha/kv/range",
        "/v3/kv/nothing",
        "/v3/kv/range/",
        "/v3/",
        "/",
    ],
)
@pytest.mark.parametrize("body", [b"", b"{}", b"null", b' {"ID": 77} {"a', b'\n{"key": "YQ==", "name": "YQ=="}'])
def test_a_request_with_little_in_it(both: Twins, path: str, body: bytes) -> None:
    ask(both, path, body)


def test_leases(both: Twins) -> None:
    ask(both, "/v3/lease/grant", {"ID": "-5", "TTL": 100})
    ask(both, "/v3/lease/grant", {"ID": -5, "TTL": "100"})
    ask(both, "/v3/lease/leases", {})
    ask(both, "/v3/lease/revoke", {"ID": "-5"})


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"7",
        b'"a"',
        b'{"key": "%%%"}',
        b'{"key": "YQ"}',
        b'{"key": 7}',
        b'{"limit": 1.5}',
        b'{"limit": "many"}',
        b'{"limit": "9223372036854775808"}',
        b'{"sort_order": "UP"}',
        b'{"key": "YQ==", "keys_only": "yes"}',
        b"\xff",
        b'{"key"',
    ],
)
def test_what_is_no_request(both: Twins, body: bytes) -> None:
    """The words differ: etcd's are those of Go's packages."""
    (their_status, theirs), (status, ours) = (
        answers(both, "/v3/kv/range", body) for answers in (etcd_answers, we_answer)
    )
    assert (status, ours["code"], ours.keys()) == (their_status, theirs["code"], theirs.keys())
    assert status == 400


def test_every_method_has_a_path() -> None:
    found = {find_method(f"/v3/{path}") for path in gateway._METHODS}
    assert {method.path for method in found if method} == {path for path in methods() if "grpc.health" not in path}


KEEP = methods()["/etcdserverpb.Lease/LeaseKeepAlive"]


def test_lines_of_a_stream(both: Twins) -> None:
    """Keep-alives end with their body, so that both can be read to the end."""
    ask(both, "/v3/lease/grant", {"ID": "-5", "TTL": 100})
    body = b'{"ID":-5} {"ID": "77"}\n{}'
    request = urllib.request.Request(f"http://{both.etcd.endpoint}/v3/lease/keepalive", body, method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        theirs = [json.loads(line) for line in reply.read().splitlines()]
    stream, ours = both.proxy.stream(KEEP.path), []
    for message in JsonRequests(KEEP).feed(body, last=True):
        stream.send(message)
    stream.finish()
    while (answer := stream.receive()) is not None:
        assert isinstance(answer, bytes)
        ours.append(json.loads(stream_line(KEEP, answer)))
    bases = [side.base for side in both.sides]
    assert [plain(each, bases[1]) for each in ours] == [plain(each, bases[0]) for each in theirs]


@given(st.lists(st.sampled_from(['{"ID":5}', "null", '{"ID":"\\u0041"}', "{}", " ", "\n", '{"x":"ä"}'])), st.data())
def test_a_body_may_arrive_in_any_parts(values: list[str], data: st.DataObject) -> None:
    body = "".join(values).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))

    def decoded(parts: list[bytes]) -> list[bytes] | str:
        requests, found = JsonRequests(KEEP), []
        try:
            for number, part in enumerate(parts):
                found += requests.feed(part, last=number == len(parts) - 1)
        except RpcError:
            return "refused"
        return found

    parts = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert decoded(parts) == decoded([body])


def test_a_body_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.proxy.gateway.MAX_GATEWAY_REQUEST_BYTES", 1000)
    requests = JsonRequests(KEEP)
    assert list(requests.feed(b'{"ID": "' + b"1" * 500)) == []
    with pytest.raises(RpcError):
        list(requests.feed(b"1" * 600))
    deep = b'{"a":' * 100_000
    monkeypatch.undo()
    with pytest.raises(RpcError):
        list(JsonRequests(KEEP).feed(deep, last=True))


def test_the_error_that_ends_a_stream() -> None:
    line = json.loads(error_line(RpcError(RpcCode.UNAVAILABLE, "etcdserver: no leader")))
    assert line == {
        "error": {
            "grpc_code": 14,
            "http_code": 503,
            "message": "etcdserver: no leader",
            "http_status": "Service Unavailable",
        }
    }
    assert all(error_json(RpcError(code, ""))[0] >= 200 for code in RpcCode)
