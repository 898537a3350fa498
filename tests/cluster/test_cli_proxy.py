"""`raykeeper proxy` over a real cluster: etcd's API by JSON and by gRPC, members that die, and its end."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from lab.ray.tools import leader, serving, wait_until
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import PutRequest, PutResponse, RangeRequest, RangeResponse
from raykeeper.cli.json_forms import FORMS, misfit

Start = Callable[..., "tuple[subprocess.Popen[str], str]"]


@pytest.fixture
def start(clusters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Start]]:
    """A cluster, and what starts a proxy of it."""
    monkeypatch.setenv("RAYKEEPER_RUNTIME_DIR", str(tmp_path / "run"))
    cluster = clusters.launch()
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAYKEEPER_CLUSTER": cluster.name,
    }
    started: list[subprocess.Popen[str]] = []

    def go(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = (sys.executable, "-m", "raykeeper", "proxy", "-o", "json", *arguments)
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert not line or misfit(FORMS["proxy"], json.loads(line)) == ""
        return process, json.loads(line)["url"] if line else ""

    yield cluster, go
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def post(url: str, path: str, **fields: Any) -> Any:
    """The answer of etcd's JSON gateway."""
    request = urllib.request.Request(url + path, json.dumps(fields).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_clients_of_etcd_and_handles_see_the_same_keys_and_a_leader_may_die(start: tuple[Any, Start]) -> None:
    cluster, go = start
    process, url = go("--listen", "127.0.0.1:0")
    kv = cluster.client()
    kv.put("by/handle", b"1")
    found = post(url, "/v3/kv/range", key=b64("by/handle"))
    assert [base64.b64decode(each["value"]) for each in found["kvs"]] == [b"1"]
    post(url, "/v3/kv/put", key=b64("by/json"), value=b64("2"))
    assert kv.get("by/json").raw == b"2"
    with grpc.insecure_channel(url.removeprefix("http://")) as channel:
        put = channel.unary_unary("/etcdserverpb.KV/Put", PutRequest.SerializeToString, PutResponse.FromString)
        read = channel.unary_unary("/etcdserverpb.KV/Range", RangeRequest.SerializeToString, RangeResponse.FromString)
        put(PutRequest(key=b"by/grpc", value=b"3"), timeout=30)
        os.kill(leader(cluster).pid, signal.SIGKILL)
        written = put(PutRequest(key=b"by/grpc", value=b"4"), timeout=60)
        answer = read(RangeRequest(key=b"by/grpc"), timeout=60)
        assert [(each.value, each.version, each.mod_revision) for each in answer.kvs] == [
            (b"4", 2, written.header.revision)
        ]
    assert kv.get("by/grpc").raw == b"4"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "")


SHELL = """
import sys
from raykeeper import limits
for name in ("RELAY_TIMEOUT_S", "RELAY_SEND_TIMEOUT_S", "RELAY_RAY_VIEW_S", "STATUS_TIMEOUT_S"):
    setattr(limits, name, 60.0)  # before what copies them is loaded
from raykeeper.cli.main import cli
sys.argv[0] = "raykeeper"
try:
    cli()
finally:
    print("by Ray" if "ray" in sys.modules else "by a proxy", file=sys.stderr)
"""


def shell(cluster: Any, *words: str) -> tuple[str, str]:
    """What a command of the shell prints, and which way it went."""
    where = ("--cluster", cluster.name, "--address", ray.get_runtime_context().gcs_address, "--timeout", "60")
    done = subprocess.run(
        [sys.executable, "-c", SHELL, *words, *where], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout, done.stderr.strip()


def test_a_shell_on_the_node_asks_the_proxy_and_goes_by_ray_when_that_is_gone(start: tuple[Any, Start]) -> None:
    cluster, go = start
    process, url = go("--listen", "127.0.0.1:0")
    wait_until(lambda: serving(cluster), what="three members")
    assert shell(cluster, "put", "k", "1") == ("OK\n", "by a proxy")
    by_proxy = shell(cluster, "get", "k", "-o", "json")
    assert by_proxy[1] == "by a proxy"
    told, way = shell(cluster, "status", "-o", "json")
    assert way == "by a proxy"
    status, by_api = json.loads(told), cluster.status(timeout=60)
    known = [(each.name, each.node, each.address, each.pid) for each in by_api.members]
    assert [tuple(each[name] for name in ("name", "node", "address", "pid")) for each in status["members"]] == known
    assert [each["url"] for each in status["proxies"]] == [url]
    target = next(each.name for each in by_api.members if each.id != by_api.leader)
    assert shell(cluster, "move-leader", target) == (f"leader: {target}\n", "by a proxy")
    wait_until(lambda: serving(cluster), what="three members, after the hand-over")
    for words in (("health",), ("endpoint", "health"), ("alarm", "list"), ("config", "get"), ("events",)):
        assert shell(cluster, *words)[1] == "by a proxy"
    process.kill()
    process.wait(60)
    assert shell(cluster, "member", "list")[1] == "by Ray"
    by_ray = shell(cluster, "get", "k", "-o", "json")
    assert by_ray[1] == "by Ray"
    items = [json.loads(said)["items"] for said, _ in (by_proxy, by_ray)]
    assert items[0] == items[1]


def urls_told(url: str, linearizable: bool = True) -> list[str]:
    """The client URLs of all members, as a proxy tells them; no member has two."""
    members = post(url, "/v3/cluster/member/list", linearizable=linearizable)["members"]
    assert max(len(each.get("clientURLs", [])) for each in members) == 1
    return sorted(url for each in members for url in each.get("clientURLs", []))


def test_each_proxy_names_all_that_run(start: tuple[Any, Start]) -> None:
    _, go = start
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        first, one = go("--listen", f"127.0.0.1:{port}-{min(port + 50, 65535)}", "--advertise", "localhost")
    _, two = go("--listen", "127.0.0.1:0")
    _, silent = go("--listen", "127.0.0.1:0", "--no-register")
    assert one.startswith("http://localhost:")
    assert one != f"http://localhost:{port}", "which is taken"
    assert urls_told(two) == sorted([one, two])
    wait_until(lambda: urls_told(two, linearizable=False) == sorted([one, two]))
    assert silent in [
        url for each in post(silent, "/v3/cluster/member/list")["members"] for url in each.get("clientURLs", [])
    ], "it knows itself"
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert urls_told(two) == [two], "it has deregistered"


def test_an_address_that_cannot_be_had_is_one_line(start: tuple[Any, Start]) -> None:
    _, go = start
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process, url = go("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        _, said = process.communicate(timeout=60)
    assert (process.returncode, url, said.count("\n")) == (1, "", 1)
    assert "cannot listen on" in said


@pytest.mark.parametrize(
    "address", ["2379", "localhost", "127.0.0.1:0-9", ":2379", "127.0.0.1:65536", "127.0.0.1:-1", "::1:2379", "a:b"]
)
def test_what_is_no_address_is_wrong_usage(start: tuple[Any, Start], address: str) -> None:
    _, go = start
    process, _ = go("--listen", address)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "is not an address to listen on" in said
