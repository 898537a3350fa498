"""What a proxy's port serves by plain HTTP: the JSON gateway with its streams, and the pages."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from lab.http2.etcd_port import etcd_port
from lab.patience import PATIENCE
from lab.proxy_services import LabProxy
from raykeeper import Unavailable
from raykeeper.cli.etcd_gateway import Endpoint, EtcdGateway
from raykeeper.limits import MAX_RPC_MESSAGE_BYTES


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


@pytest.mark.parametrize(
    ("room", "size", "status", "code", "text"),
    [(False, 11, 429, 8, "too many requests"), (True, MAX_RPC_MESSAGE_BYTES + 1, 400, 3, "request is too large")],
)
@pytest.mark.parametrize("path", ["/v3/kv/put", "/console/api/act/compact"])
def test_a_body_that_is_refused_is_an_error_of_etcd_s(
    path: str, room: bool, size: int, status: int, code: int, text: str
) -> None:
    with etcd_port(console="act") as port:

        async def take_room() -> None:  # as connections do that are closed while handlers work for them
            held = port.listener.context.held
            gone = held.open_share(lambda: None)
            gone.begin_work(held.limit + held.reserve)
            gone.close()

        if not room:
            port.proxy.run(take_room())
        headers = {"content-type": "application/json", "content-length": str(size)}
        request = urllib.request.Request(port.proxy.url + path, b'{"key": ""}', headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=PATIENCE)
        assert (refused.value.code, refused.value.headers["content-type"]) == (status, "application/json")
        said = json.loads(refused.value.read())
        assert said == {"error": f"etcdserver: {text}", "code": code, "message": f"etcdserver: {text}"}
        if not room:
            with pytest.raises(Unavailable, match=text) as error:
                EtcdGateway(Endpoint(port.proxy.url), PATIENCE).call("kv/put", {"key": "YQ=="}, writes=True)
            assert error.value.applied is False


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
