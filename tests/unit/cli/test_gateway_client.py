"""The shell's client over a proxy: the same results as those of a handle, and its errors by type."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.patience import PATIENCE
from raykeeper import (
    END,
    CompactedError,
    FutureRevisionError,
    InvalidArgument,
    LeaseNotFound,
    RequestTimeout,
    RequestTooLarge,
    Unavailable,
)
from raykeeper.actors.client.results import KEEP
from raykeeper.actors.client.txn_parts import Compare, Op
from raykeeper.cli import gateway_client
from raykeeper.cli.etcd_gateway import Endpoint, EtcdGateway, endpoint_url
from raykeeper.cli.gateway_client import GatewayClient
from raykeeper.limits import Limits


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        yield port


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy waits as long as its client does, however busy the machine is."""
    for file in ("member_calls", "etcd_backend"):
        monkeypatch.setattr(f"raykeeper.actors.proxy.{file}.PROXY_TIMEOUT_S", 120.0)


@pytest.fixture
def both(port: EtcdPort) -> Iterator[tuple[GatewayClient, Any]]:
    """A client over the port, and a handle of the same cluster, which is empty."""
    port.proxy.kv.delete(prefix="")
    with GatewayClient(Endpoint(endpoint_url(port.endpoint)), 120) as client:
        yield client, port.proxy.kv


def fill(handle: Any) -> None:
    for n, (key, value) in enumerate([("a", "3"), ("b", "1"), ("b/x", "2"), (b"b\xff", b"\x00\xfe"), ("c", "")]):
        for _ in range(n + 1):
            handle.put(key, value)


RANGES: list[dict[str, Any]] = [
    {"key": b"a"},
    {"key": b"missing"},
    {"key": b"a", "end": b"b/"},
    {"key": b"", "end": b"b/"},
    {"key": b"b", "end": END},
    {"key": b"", "end": END},
    {"prefix": b"b"},
    {"prefix": b""},
    {"prefix": b"b\xff"},
    {"prefix": b"\xff"},
    {"prefix": b"", "limit": 2},
    {"prefix": b"", "limit": 4, "sort": "version", "order": "descend"},
    {"prefix": b"", "sort": "value"},
    {"prefix": b"", "sort": "create_revision", "order": "descend"},
    {"prefix": b"", "sort": "mod_revision"},
    {"prefix": b"", "order": "descend"},
    {"prefix": b"", "keys_only": True},
    {"prefix": b"b", "count_only": True},
    {"prefix": b"", "serializable": True},
]


@pytest.mark.parametrize("asked", RANGES, ids=str)
@pytest.mark.parametrize("page", [2, 1000])
def test_ranges_are_those_of_a_handle(
    both: tuple[GatewayClient, Any], asked: dict[str, Any], page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, handle = both
    fill(handle)
    monkeypatch.setattr(gateway_client, "GATEWAY_PAGE_ITEMS", page)
    assert client.range(**asked) == handle.range(**asked)


def test_pages_are_of_one_revision(both: tuple[GatewayClient, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    client, handle = both
    fill(handle)
    before = handle.range(prefix="")
    monkeypatch.setattr(gateway_client, "GATEWAY_PAGE_ITEMS", 2)
    call = client.gateway.call

    def call_then_write(*arguments: Any, **named: Any) -> Any:
        answer = call(*arguments, **named)
        handle.put("z", "late")
        return answer

    monkeypatch.setattr(client.gateway, "call", call_then_write)
    assert client.range(prefix=b"") == before


def test_reads_of_the_past_and_their_errors(both: tuple[GatewayClient, Any]) -> None:
    client, handle = both
    first = handle.put("k", "1").revision
    last = handle.put("k", "2").revision
    assert client.range(b"k", revision=first) == handle.range("k", revision=first)
    with pytest.raises(FutureRevisionError):
        client.range(b"k", revision=last + 5)
    client.compact(last)
    with pytest.raises(CompactedError) as gone:
        client.range(b"k", revision=first)
    assert gone.value.compact_revision == last
    assert client.revision() == handle.revision()


def test_writes_do_what_those_of_a_handle_do(both: tuple[GatewayClient, Any]) -> None:
    client, handle = both
    first = client.put(b"k", b"1")
    assert (first.prev, first.revision) == (None, handle.revision())
    lease, ttl = client.grant(60)
    assert ttl == 60
    second = client.put(b"k", b"\xff", lease=lease, prev=True)
    assert second.prev is not None
    assert second.prev.raw == b"1"
    assert handle.get("k").lease == lease
    client.put(b"k", KEEP, lease=0)
    assert (handle.get("k").raw, handle.get("k").lease) == (b"\xff", 0)
    client.put(b"k", b"w", lease=KEEP)
    client.put(b"k/2", b"x")
    before = handle.range(prefix="k").items
    gone = client.delete(prefix=b"k", prev=True)
    assert (gone.deleted, gone.prev, gone.revision) == (2, before, handle.revision())
    client.revoke(lease)
    with pytest.raises(LeaseNotFound):
        client.revoke(lease)
    with pytest.raises(LeaseNotFound):
        client.put(b"k", b"v", lease=lease)
    with pytest.raises(InvalidArgument):
        client.grant(0.5)
    with pytest.raises(InvalidArgument):
        client.put(b"k", b"v", request_id=b"r")
    with pytest.raises(RequestTooLarge):
        client.put(b"k", b"v" * (Limits().max_request_bytes + 1))


def test_transactions_compare_and_answer_as_those_of_a_handle(both: tuple[GatewayClient, Any]) -> None:
    client, handle = both
    fill(handle)
    revision = handle.get("a").mod_revision
    holds = [
        Compare.version("a") == 1,
        Compare.mod_revision("a") == revision,
        Compare.create_revision("a") < revision + 1,
        Compare.value("a") != "4",
        Compare.value("b") > "0",
        Compare.lease("a") == 0,
        Compare.version(prefix="b") > 0,
    ]
    reads = [Op.range(b"a"), Op.range(prefix=b"b", limit=2, sort="value", order="descend"), Op.range(b"no")]
    for compare in ([each] for each in holds):
        compare = [_with_bytes(each) for each in compare]
        answer = client.txn(compare, reads, [])
        expected = handle.txn(compare, reads, [])
        assert (answer, answer.succeeded) == (expected, True)
    no = client.txn([_with_bytes(Compare.version("a") == 9)], [], [Op.put(b"n", b"1", prev=True), Op.delete(b"a")])
    assert (no.succeeded, no.responses[1].deleted, no.revision) == (False, 1, handle.revision())  # type: ignore[union-attr]
    assert client.txn([], [], []).responses == ()


def _with_bytes(condition: Any) -> Any:
    """As the shell makes it."""
    for name in ("key", "end", "prefix", "operand"):
        value = getattr(condition, name)
        setattr(condition, name, value.encode() if isinstance(value, str) else value)
    return condition


def test_a_watch_gives_whole_revisions_from_its_start_on(both: tuple[GatewayClient, Any], port: EtcdPort) -> None:
    client, handle = both
    first = handle.put("w/1", "1").revision
    handle.txn([], [Op.put("w/2", "2"), Op.put("w/3", "3")], [])
    handle.delete("w/1")
    seen = []
    for batch in client.watch(prefix=b"w/", start_revision=first):
        seen += [batch] if batch.events else []
        if len(seen) == 3:
            break
    assert [batch.revision for batch in seen] == [first, first + 1, first + 2]
    assert [[(each.type, each.kv.key) for each in batch.events] for batch in seen] == [
        [("put", b"w/1")],
        [("put", b"w/2"), ("put", b"w/3")],
        [("delete", b"w/1")],
    ]
    handle.compact(first + 2)
    with pytest.raises(CompactedError), GatewayClient(Endpoint(f"http://{port.endpoint}"), 120) as other:
        next(iter(other.watch(prefix=b"w/", start_revision=first)))


def test_who_does_not_answer_and_who_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        place = f"127.0.0.1:{deaf.getsockname()[1]}"
        with GatewayClient(Endpoint(endpoint_url(place)), 0.2) as client, pytest.raises(RequestTimeout) as late:
            client.put(b"k", b"v")
        assert late.value.applied is None
        with GatewayClient(Endpoint(endpoint_url(place)), 0.2) as client, pytest.raises(RequestTimeout) as late:
            client.range(b"k")
        assert late.value.applied is False
    with pytest.raises(Unavailable, match=place):
        GatewayClient(Endpoint(endpoint_url(place)), 5).range(b"k")


@pytest.mark.parametrize(
    "said", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", b"HTTP/1.1 "]
)
def test_a_write_whose_answer_breaks_off_has_an_unknown_outcome(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                take_request(connection)
                connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        client = GatewayClient(Endpoint(f"http://127.0.0.1:{server.getsockname()[1]}"), 30)
        with client, pytest.raises(Unavailable) as lost:
            client.put(b"k", b"v")
        thread.join()
    assert lost.value.applied is None


def take_request(connection: socket.socket) -> None:
    """Read a request whole: what is not read when a socket is closed resets it, and the answer may be lost."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        part = connection.recv(1 << 16)
        assert part, data
        data += part
    size = re.search(rb"(?i)content-length: *(\d+)", data[:end])
    assert size is not None, data
    while len(data) < end + 4 + int(size[1]):
        part = connection.recv(1 << 16)
        assert part, data
        data += part


@contextmanager
def one_answer(said: bytes, status: bytes = b"200 OK") -> Iterator[str]:
    """A server that answers one request with that, and closes; where it is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                take_request(connection)
                connection.sendall(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\n\r\n" + said)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join(PATIENCE)


@pytest.mark.parametrize("line", [b"{", b"[]", b"7", b'{"result": 7}', b"[" * 100_000, b"\xff"])
def test_a_stream_that_is_none_is_a_typed_error(line: bytes) -> None:
    with (
        one_answer(line + b"\n") as place,
        pytest.raises(Unavailable, match=f"{place} sends is not a stream"),
    ):
        list(EtcdGateway(Endpoint(f"http://{place}", cluster=5), 120).stream("watch", {}))


ODD_NUMBERS = [b'"x"', b"[1]", b"1e999", b'{"a": 1}', b"NaN"]
ODD_HEADERS = [b"7", b"null", b'"x"', b"[]", *(b'{"cluster_id": %s}' % number for number in ODD_NUMBERS)]


@pytest.mark.parametrize(
    "line",
    [b'{"error": {"code": %s}}' % code for code in ODD_NUMBERS]
    + [b'{"error": {"grpc_code": %s}}' % code for code in ODD_NUMBERS]
    + [b'{"result": {"header": %s}}' % header for header in ODD_HEADERS],
)
def test_a_stream_of_odd_fields_is_a_typed_error(line: bytes) -> None:
    with one_answer(line + b"\n") as place, pytest.raises(Unavailable, match=f"{place} is not a gateway of etcd's"):
        list(EtcdGateway(Endpoint(f"http://{place}", cluster=5), 120).stream("watch", {}))


@pytest.mark.parametrize("status", [b"200 OK", b"503 Service Unavailable"])
@pytest.mark.parametrize("answer", [b'{"code": %s}' % code for code in ODD_NUMBERS])
@pytest.mark.parametrize("writes", [False, True])
def test_an_error_of_odd_fields_is_a_typed_error(answer: bytes, status: bytes, writes: bool) -> None:
    with one_answer(answer, status) as place, pytest.raises(Unavailable, match="is not a gateway of etcd's") as odd:
        EtcdGateway(Endpoint(f"http://{place}", cluster=5), 120).call("kv/put", {}, writes=writes)
    assert odd.value.applied is (None if writes else False)


@pytest.mark.parametrize(
    ("status", "error"), [(b"413 Too Large", RequestTooLarge), (b"429 Too Many Requests", Unavailable)]
)
def test_a_request_that_is_refused_before_it_is_read_had_no_effect(status: bytes, error: type[Exception]) -> None:
    with one_answer(b"in plain text", status) as place, pytest.raises(error, match=place) as refused:
        EtcdGateway(Endpoint(f"http://{place}"), 120).call("kv/put", {}, writes=True)
    assert getattr(refused.value, "applied", None) is False


@pytest.mark.parametrize("header", ODD_HEADERS)
@pytest.mark.parametrize("writes", [False, True])
def test_an_answer_of_odd_fields_is_a_typed_error(header: bytes, writes: bool) -> None:
    with (
        one_answer(b'{"header": %s}' % header) as place,
        pytest.raises(Unavailable, match="is not a gateway of etcd's") as odd,
    ):
        EtcdGateway(Endpoint(f"http://{place}", cluster=5), 120).call("kv/put", {}, writes=writes)
    assert odd.value.applied is (None if writes else False)


def test_another_cluster_at_the_endpoint_is_noticed(port: EtcdPort) -> None:
    id = port.proxy.kv.cluster_id
    EtcdGateway(Endpoint(f"http://{port.endpoint}", cluster=id), 120).call("kv/range", {"key": "YQ=="})
    with pytest.raises(Unavailable, match=f"{id + 1:x}"):
        EtcdGateway(Endpoint(f"http://{port.endpoint}", cluster=id + 1), 120).call("kv/range", {"key": "YQ=="})


@pytest.mark.parametrize(
    "text", ["", ":1", "host", "host:x", "ftp://h:1", "http://h:1/path", "http://u@h:1", "h:99999"]
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(InvalidArgument):
        endpoint_url(text)
