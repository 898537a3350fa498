"""What a proxy's port serves by plain HTTP: the JSON gateway with its streams, and the pages."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from lab.http2.etcd_port import etcd_port
from lab.proxy_services import LabProxy

PATIENCE = 30.0


@pytest.fixture(scope="module")
def proxy() -> Iterator[LabProxy]:
    with etcd_port() as port:
        yield port.proxy


def http(proxy: LabProxy, path: str, body: bytes | None = None) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(proxy.url + path, body), timeout=PATIENCE) as reply:
            return reply.status, reply.headers["content-type"], reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], error.read()


def test_pages(proxy: LabProxy) -> None:
    text, as_json = "text/plain; charset=utf-8", "application/json"
    assert http(proxy, "/health") == (200, text, b'{"health":"true","reason":""}')
    assert http(proxy, "/livez") == http(proxy, "/readyz") == (200, text, b"ok\n")
    assert b"[+]linearizable_read ok\n" in http(proxy, "/readyz?verbose")[2]
    status, kind, body = http(proxy, "/version")
    assert (status, kind, json.loads(body).keys()) == (200, as_json, {"etcdserver", "etcdcluster"})
    assert http(proxy, "/nothing")[0] == 404
    for path in ("/health", "/version"):
        assert http(proxy, path, b"{}") == (405, text, b"Method Not Allowed\n")


def test_pages_with_an_alarm(proxy: LabProxy) -> None:
    alarm = b'{"action": "%s", "memberID": 1, "alarm": "%s"}'
    for kind, ready in ((b"NOSPACE", 200), (b"CORRUPT", 503)):
        assert http(proxy, "/v3/maintenance/alarm", alarm % (b"ACTIVATE", kind))[0] == 200
        try:
            status, _, body = http(proxy, "/health")
            assert (status, json.loads(body)) == (503, {"health": "false", "reason": f"ALARM {kind.decode()}"})
            assert http(proxy, f"/health?exclude={kind.decode()}")[0] == 200
            assert http(proxy, "/livez")[0] == 200
            assert http(proxy, "/readyz")[0] == ready
        finally:
            http(proxy, "/v3/maintenance/alarm", alarm % (b"DEACTIVATE", kind))
    assert http(proxy, "/health")[0] == 200


def test_the_gateway(proxy: LabProxy) -> None:
    assert http(proxy, "/v3/kv/put", b'{"key": "YQ==", "value": "MQ=="}')[0] == 200
    status, kind, body = http(proxy, "/v3/kv/range", b'{"key": "YQ=="}')
    assert (status, kind, json.loads(body)["kvs"][0]["value"]) == (200, "application/json", "MQ==")
    assert http(proxy, "/v3/kv/range", b"{}")[0] == 400
    assert http(proxy, "/v3/kv/range") == (405, "text/plain; charset=utf-8", b"Method Not Allowed\n")
    assert http(proxy, "/v3/kv/nothing", b"{}") == (404, "text/plain; charset=utf-8", b"Not Found\n")
    assert http(proxy, "/v3/auth/enable", b"{}")[0] == 400, "there is no user root"
    assert http(proxy, "/v3/maintenance/snapshot", b"{}")[0] == 200


def test_streams_of_the_gateway(proxy: LabProxy) -> None:
    proxy.kv.put("a", "1")
    request = urllib.request.Request(f"{proxy.url}/v3/watch", b'{"create_request": {"key": "YQ=="}}')
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        assert json.loads(reply.readline())["result"]["created"]
        proxy.kv.put("a", "2")
        assert json.loads(reply.readline())["result"]["events"][0]["kv"]["value"] == "Mg=="
    body = b'{"ID": 77} {"ID": "78"} {"I'
    status, _, lines = http(proxy, "/v3/lease/keepalive", body)
    answers = [json.loads(line) for line in lines.splitlines()]
    assert (status, [each.get("result", {}).get("ID") for each in answers]) == (200, ["77", "78", None])
    assert answers[-1]["error"]["grpc_code"] == 3
    assert http(proxy, "/v3/watch", b"nothing")[0] == 400
