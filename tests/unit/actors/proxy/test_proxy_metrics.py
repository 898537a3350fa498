"""``/metrics`` of a proxy: every form parses, figures are those of what was done, and names are etcd's."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from lab.etcd import running_etcd
from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import request
from lab.patience import PATIENCE, until
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import PutRequest, WatchCreateRequest, WatchRequest

DOCS = Path(__file__).parents[4] / "docs" / "metrics.md"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        yield port


def scrape(endpoint: str) -> Samples:
    reply = request(endpoint, "GET", "/metrics")
    assert (reply.status, reply.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(reply.body.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, /, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def calls(samples: Samples, name: str, path: str, kind: str = "unary", **labels: str) -> float:
    service, _, method = path.rpartition("/")
    return value(samples, name, grpc_type=kind, grpc_service=service, grpc_method=method, **labels)


def test_calls_by_code(port: EtcdPort) -> None:
    with grpc.insecure_channel(port.endpoint) as channel:
        put = channel.unary_unary("/etcdserverpb.KV/Put", PutRequest.SerializeToString)
        for _ in range(3):
            put(PutRequest(key=b"a"), timeout=PATIENCE)
        with pytest.raises(grpc.RpcError):
            put(PutRequest(), timeout=PATIENCE)
    assert request(port.endpoint, "POST", "/v3/kv/put", b'{"key": "YQ=="}').status == 200
    assert request(port.endpoint, "POST", "/v3/kv/put", b"{}").status == 400
    found = scrape(port.endpoint)
    path = "etcdserverpb.KV/Put"
    assert calls(found, "grpc_server_started_total", path) == 6
    assert calls(found, "grpc_server_handled_total", path, grpc_code="OK") == 4
    assert calls(found, "grpc_server_handled_total", path, grpc_code="InvalidArgument") == 2
    assert calls(found, "grpc_server_msg_received_total", path) == 6
    assert calls(found, "grpc_server_msg_sent_total", path) == 4
    assert calls(found, "grpc_server_started_total", "etcdserverpb.KV/Range") == 0


def test_streams(port: EtcdPort) -> None:
    path = "etcdserverpb.Watch/Watch"
    with grpc.insecure_channel(port.endpoint) as channel:
        watch = channel.stream_stream(f"/{path}", WatchRequest.SerializeToString)
        stream = watch(iter([WatchRequest(create_request=WatchCreateRequest(key=b"a"))]), timeout=PATIENCE)
        next(stream)
        port.proxy.kv.put("a", "1")
        next(stream)
        found = scrape(port.endpoint)
        assert calls(found, "grpc_server_started_total", path, "bidi_stream") == 1
        assert calls(found, "grpc_server_msg_received_total", path, "bidi_stream") == 1
        assert calls(found, "grpc_server_msg_sent_total", path, "bidi_stream") == 2
        assert value(found, "raykeeper_proxy_streams") == value(found, "raykeeper_proxy_handlers") == 1
        stream.cancel()
        until(lambda: value(scrape(port.endpoint), "raykeeper_proxy_streams") == 0)
    handled = "grpc_server_handled_total"
    until(lambda: calls(scrape(port.endpoint), handled, path, "bidi_stream", grpc_code="Canceled") == 1)


def test_a_call_that_a_client_gives_up_is_counted_once(port: EtcdPort) -> None:
    path = "v3lockpb.Lock/Lock"
    port.proxy.kv.put("unrelated", "")
    with grpc.insecure_channel(port.endpoint) as channel:
        lock = channel.unary_unary(f"/{path}")
        lock(b"\x0a\x01a", timeout=PATIENCE)  # the name

        def has_begun() -> bool:  # on a slow machine the time may be over before the call has come
            with pytest.raises(grpc.RpcError):
                lock(b"\x0a\x01a", timeout=0.3)
            return calls(scrape(port.endpoint), "grpc_server_started_total", path) >= 2

        until(has_begun)

    def ended() -> dict[str, float]:
        return {
            dict(key[1])["grpc_code"]: count
            for key, count in scrape(port.endpoint).items()
            if ("grpc_method", "Lock") in key[1] and key[0] == "grpc_server_handled_total"
        }

    until(lambda: port.listener.connection_count() == 0)  # so all that was sent has been read
    started = calls(scrape(port.endpoint), "grpc_server_started_total", path)
    until(lambda: sum(ended().values()) >= started)
    assert sum(ended().values()) == started
    assert ended()["OK"] == 1


def test_plain_http_and_health(port: EtcdPort) -> None:
    for target in ("/kv/a", "/kv/b", "/health", "/readyz", "/nothing", "/version"):
        request(port.endpoint, "GET", target)
    request(port.endpoint, "BREW", "/kv/a")
    found = scrape(port.endpoint)
    counted = {
        ("kv", "GET", "404"): 2,
        ("kv", "other", "405"): 1,
        ("health", "GET", "200"): 2,
        ("other", "GET", "404"): 1,
        ("version", "GET", "200"): 1,
    }
    for (handler, method, code), count in counted.items():
        labels = {"handler": handler, "method": method, "code": code}
        assert value(found, "raykeeper_proxy_http_requests_total", **labels) == count
    assert value(found, "etcd_server_health_success") == 1
    labels = {"type": "readyz", "name": "linearizable_read"}
    assert value(found, "etcd_server_healthcheck", **labels) == 1
    assert value(found, "etcd_server_healthchecks_total", **labels, status="success") == 1
    again = scrape(port.endpoint)
    assert value(again, "raykeeper_proxy_http_requests_total", handler="metrics", method="GET", code="200") == 1


def test_the_member(port: EtcdPort) -> None:
    port.proxy.kv.put("a", "1")
    found = scrape(port.endpoint)
    for name in ("etcd_server_has_leader", "etcd_server_is_leader", "etcd_server_leader_changes_seen_total"):
        assert value(found, name) == 1
    assert value(found, "etcd_debugging_mvcc_current_revision") == port.proxy.kv.revision()
    assert ("etcd_mvcc_db_total_size_in_bytes", frozenset()) in found
    assert value(found, "etcd_server_quota_backend_bytes") == port.proxy.backend.limits.quota_bytes
    assert value(found, "etcd_server_id", server_id="1") == 1
    assert value(found, "process_resident_memory_bytes") > 0


def test_members_have_labels(port: EtcdPort) -> None:
    port.proxy.kv.put("a", "1")
    text = request(port.endpoint, "GET", "/metrics?members").body.decode()
    families = {family.name: family for family in parse_text(text)}
    samples = {(sample.name, sample.labels["member"]) for each in families.values() for sample in each.samples}
    assert {member for _, member in samples} == {"m1"}
    assert ("etcd_mvcc_put_total", "m1") in samples
    assert ("raykeeper_member_up", "m1") in samples
    assert not [name for name in families if name.startswith(("grpc_", "raykeeper_proxy_", "raykeeper_client_"))]


def test_a_member_that_does_not_answer(port: EtcdPort) -> None:
    found = scrape(port.endpoint)
    assert value(found, "etcd_server_has_leader") == 1
    port.proxy.member.cut = True
    found = scrape(port.endpoint)
    assert ("etcd_mvcc_put_total", frozenset()) not in found
    assert ("etcd_server_has_leader", frozenset()) in found
    assert value(found, "etcd_server_has_leader") == 0
    assert value(found, "raykeeper_proxy_connections", protocol="http1") >= 1


def test_connections(port: EtcdPort) -> None:
    with grpc.insecure_channel(port.endpoint) as channel, socket.create_connection((port.host, port.port)):
        channel.unary_unary("/etcdserverpb.KV/Put")(b"\x0a\x01a", timeout=PATIENCE)
        found = scrape(port.endpoint)
    assert [value(found, "raykeeper_proxy_connections", protocol=each) for each in ("http2", "http1", "unknown")] == [
        1,
        1,
        1,
    ]
    assert value(found, "raykeeper_proxy_connections_accepted_total") == 3
    with socket.create_connection((port.host, port.port)) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(b"\x16\x03\x01")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert value(scrape(port.endpoint), "raykeeper_proxy_connections_ended_total", how="harmful") == 1


def test_openmetrics(port: EtcdPort) -> None:
    reply = request(port.endpoint, "GET", "/metrics", None, {"accept": "application/openmetrics-text"})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert any(family.name == "grpc_server_started" for family in parse_openmetrics(reply.body.decode()))


def test_names_are_etcds() -> None:
    """Of what we claim to have, a real etcd has the same names, types and labels; newer ones are named here.

    Two members of etcd, because only peers have round trips; it shows those once a prober has asked."""
    newer = {"etcd_server_healthcheck", "etcd_server_healthchecks"}  # 3.5.12
    with running_etcd(2) as etcd, etcd_port() as port:
        request(etcd.endpoint, "GET", "/health")
        until(lambda: "etcd_network_peer_round_trip_time_seconds_count{" in page(etcd.endpoint))
        theirs, ours = ({f.name: f for f in parse_text(text)} for text in map(page, (etcd.endpoint, port.endpoint)))
    claimed = {name for name in ours if name.startswith(("etcd_", "grpc_"))} - newer
    # Of a failure etcd shows nothing before the first, so its name is not in the scrape of a healthy one.
    assert claimed <= theirs.keys() | {"etcd_network_peer_sent_failures"}
    assert len(claimed) > 15
    claimed &= theirs.keys()
    for name in claimed - {"etcd_server_health_success", "etcd_server_health_failures"}:
        assert ours[name].type == theirs[name].type, name
        labels = [{frozenset(sample.labels) for sample in each[name].samples} for each in (ours, theirs)]
        assert not labels[0] or not labels[1] or labels[0] == labels[1], name


def test_what_a_real_etcd_shows_is_ours_or_is_named_with_the_reason(port: EtcdPort) -> None:
    reasons = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", DOCS.read_text().partition("not here")[2], re.MULTILINE))
    with running_etcd(2) as etcd:
        request(etcd.endpoint, "GET", "/health")
        theirs = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page(etcd.endpoint), re.MULTILINE))
    theirs = {name: kind for name, kind in theirs.items() if not name.startswith(("go_", "os_"))}
    ours = set(re.findall(r"^# TYPE (\w+) \w+$", page(port.endpoint), re.MULTILINE))
    assert theirs.keys() - ours <= reasons.keys()
    # These etcd shows from the first time on that they happen.
    sometimes = ("etcd_network_disconnected_", "etcd_network_peer_received_failures_", "etcd_network_snapshot_")
    assert not [name for name in reasons.keys() - theirs.keys() if not name.startswith(sometimes)]
    assert not reasons.keys() & ours


def test_the_docs_name_each_metric_and_its_type(port: EtcdPort) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \|", DOCS.read_text(), re.MULTILINE)
    text = page(port.endpoint) + request(port.endpoint, "GET", "/metrics?members").body.decode()
    assert set(rows) == set(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    assert len(rows) == len(set(rows))


def page(endpoint: str) -> str:
    return request(endpoint, "GET", "/metrics").body.decode()
