"""Plain HTTP on the proxy's port: HTTP/1.1 from Python's client, from curl and by hand, and HTTP/2 from curl."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest

from lab.http2.port import Port
from lab.patience import PATIENCE, until, until_still
from raykeeper.limits import (
    MAX_HEADER_LIST_BYTES,
    MAX_RPC_MESSAGE_BYTES,
    PROXY_DROPPED_BYTES,
    PROXY_READ_BYTES,
    PROXY_STREAM_WINDOW_BYTES,
)

CURL = shutil.which("curl")


@pytest.fixture
def client(port: Port) -> Iterator[http.client.HTTPConnection]:
    client = http.client.HTTPConnection(port.host, port.port, timeout=PATIENCE)
    yield client
    client.close()


def ask(client: http.client.HTTPConnection, *request: object) -> tuple[int, bytes]:
    client.request(*request)  # type: ignore[arg-type]
    answer = client.getresponse()
    return answer.status, answer.read()


def by_hand(port: Port, data: bytes) -> bytes:
    """All that the port answers to these bytes until it closes."""
    with socket.create_connection((port.host, port.port), timeout=PATIENCE) as sock:
        sock.sendall(data)
        answer = b""
        while part := sock.recv(1 << 16):
            answer += part
        return answer


def test_requests_on_one_connection(client: http.client.HTTPConnection, port: Port) -> None:
    for _ in range(3):
        assert ask(client, "GET", "/health") == (200, b'{"health":"true"}')
        assert ask(client, "POST", "/echo", b"body") == (200, b"body")
        assert ask(client, "GET", "/elsewhere") == (404, b"404 page not found\n")
    assert port.listener.connection_count() == 1


def test_what_a_handler_is_told(client: http.client.HTTPConnection, port: Port) -> None:
    client.request("PUT", "/echo?a=b?c", b"")
    answer = client.getresponse()
    assert (answer.getheader("x-method"), answer.getheader("x-query")) == ("PUT", "a=b?c")
    assert answer.getheader("x-host") == port.target


@pytest.mark.parametrize("size", [0, 1, 100_000, MAX_RPC_MESSAGE_BYTES])
def test_bodies(client: http.client.HTTPConnection, size: int) -> None:
    assert ask(client, "POST", "/echo", b"b" * size) == (200, b"b" * size)
    if size < MAX_RPC_MESSAGE_BYTES:
        assert ask(client, "POST", "/echo", iter([b"c" * size, b"d"])) == (200, b"c" * size + b"d")


def test_a_body_that_is_too_large(port: Port) -> None:
    for body in (bytes(MAX_RPC_MESSAGE_BYTES + 1), iter([bytes(MAX_RPC_MESSAGE_BYTES), b"x"])):
        client = http.client.HTTPConnection(port.host, port.port, timeout=PATIENCE)
        assert ask(client, "POST", "/echo", body) == (413, b"request is too large")
        client.close()


def test_an_answer_in_chunks(client: http.client.HTTPConnection) -> None:
    client.request("POST", "/lines?1000")
    answer = client.getresponse()
    assert answer.getheader("transfer-encoding") == "chunked"
    assert [json.loads(line)["result"] for line in answer] == list(range(1000))


def test_a_mistake_of_ours(client: http.client.HTTPConnection) -> None:
    assert ask(client, "GET", "/bug") == (500, b"internal error\n")
    assert ask(client, "GET", "/nothing") == (500, b"no answer\n")
    assert ask(client, "GET", "/health")[0] == 200
    client.request("GET", "/break")
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        client.getresponse().read()


def test_head(client: http.client.HTTPConnection) -> None:
    client.request("HEAD", "/health")
    answer = client.getresponse()
    assert (answer.status, answer.getheader("content-length"), answer.read()) == (200, "17", b"")
    assert ask(client, "GET", "/health")[0] == 200


def test_pipelined_requests(port: Port) -> None:
    one = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = by_hand(port, one * 20 + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 21


def test_a_body_that_the_answer_did_not_wait_for(port: Port) -> None:
    """A small one is dropped, and the connection goes on; a large one ends it."""
    with socket.create_connection((port.host, port.port), timeout=PATIENCE) as sock:
        for _ in range(3):
            sock.sendall(b"POST /elsewhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 404")
            sock.sendall(bytes(100_000))
        sock.sendall(b"POST /elsewhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 404")
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(1000):
                sock.sendall(bytes(100_000))
            pytest.fail("it takes all")


@pytest.mark.parametrize(("path", "status"), [("/echo", 413), ("/elsewhere", 404)])
def test_a_client_that_sends_far_too_much_before_it_reads_finds_the_answer(
    client: http.client.HTTPConnection, path: str, status: int
) -> None:
    assert ask(client, "POST", path, bytes(PROXY_DROPPED_BYTES - 100_000))[0] == status
    assert ask(client, "GET", "/health")[0] == 200


def test_http_1_0(port: Port) -> None:
    answer = by_hand(port, b"GET /lines?3 HTTP/1.0\r\n\r\n")
    assert b"chunked" not in answer
    assert answer.endswith(b'{"result":0}\n{"result":1}\n{"result":2}\n')


def test_a_client_that_asks_before_its_body(port: Port) -> None:
    with socket.create_connection((port.host, port.port), timeout=PATIENCE) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"body")
        assert sock.recv(1000).endswith(b"\r\n\r\nbody")


def test_a_client_that_sends_byte_by_byte(port: Port) -> None:
    with socket.create_connection((port.host, port.port), timeout=PATIENCE) as sock:
        for byte in b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody":
            sock.sendall(bytes([byte]))
        assert sock.recv(1000).endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"garbage\r\n\r\n", b"400"),
        (b"\0\1\2\3\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"PRI * HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nlong: " + b"x" * 2 * MAX_HEADER_LIST_BYTES, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * MAX_HEADER_LIST_BYTES, b"431"),
    ],
)
def test_bad_heads(port: Port, data: bytes, status: bytes) -> None:
    try:
        answer = by_hand(port, data)
    except ConnectionResetError:  # it was closed while there was more to read
        return
    assert answer[9:12] in (status, b"400")


def test_a_bad_chunk(port: Port) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    try:
        answer = by_hand(port, head + b"3\r\nabc\r\nnonsense\r\n")
    except ConnectionResetError:
        answer = b""
    assert b"200" not in answer[:12]
    until(lambda: port.listener.connection_count() == 0)


def test_a_lost_client_ends_its_handler(port: Port) -> None:
    with socket.create_connection((port.host, port.port), timeout=PATIENCE) as sock:
        sock.sendall(b"GET /sleep HTTP/1.1\r\nhost: x\r\n\r\n")
        until(lambda: port.begun == 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    until(lambda: port.ended == 1)


def test_a_client_that_does_not_read_makes_the_handler_wait(port: Port) -> None:
    with socket.create_connection((port.host, port.port), timeout=PATIENCE) as sock:
        sock.sendall(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        until(lambda: port.sent > 0)
        before = until_still(lambda: port.sent)
        assert before < 50_000_000, "it does not wait"
        read = 0
        while read < before + 1_000_000:
            read += len(sock.recv(1 << 20))
        assert port.sent > before
    until(lambda: port.ended == 1)


def test_a_body_that_nobody_takes_is_not_read(port: Port) -> None:
    """The handler sleeps; what the client can send is what sockets hold."""
    with socket.create_connection((port.host, port.port), timeout=1) as sock:
        sock.sendall(b"POST /sleep HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        sent = 0
        with suppress(TimeoutError):
            while sent < 20_000_000:
                sent += sock.send(bytes(100_000))
        assert sent < 20_000_000
        until(lambda: port.begun == 1)
        (connection,) = port.listener.context.connections()
        kept = connection._exchange.kept  # type: ignore[attr-defined]
        assert len(kept) <= PROXY_STREAM_WINDOW_BYTES + PROXY_READ_BYTES


def test_both_versions_at_once(port: Port, client: http.client.HTTPConnection) -> None:
    with grpc.insecure_channel(port.target) as channel:
        for _ in range(10):
            assert channel.unary_unary("/test.Test/Echo")(b"x", timeout=PATIENCE) == b"x"
            assert ask(client, "GET", "/health")[0] == 200


# --- curl ------------------------------------------------------------------------------------------------------------


def curl(*arguments: str) -> bytes:
    if CURL is None:
        pytest.skip("there is no curl")
    return subprocess.run([CURL, "-sS", "-m", f"{PATIENCE:.0f}", *arguments], capture_output=True, check=True).stdout


VERSIONS = pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge", "--http2"])


@VERSIONS
def test_curl(port: Port, version: str) -> None:
    url = f"http://{port.target}"
    assert curl(version, f"{url}/health") == b'{"health":"true"}'
    assert curl(version, "-d", "text", f"{url}/echo") == b"text"
    if version != "--http2-prior-knowledge":  # with which curl 7.88 fails at its second request, whatever the server
        assert curl(version, "-d", "text", f"{url}/echo", f"{url}/health") == b'text{"health":"true"}'
    assert curl(version, f"{url}/lines?100").count(b"\n") == 100
    assert curl(version, "-o", "/dev/null", "-w", "%{http_code}", f"{url}/elsewhere") == b"404"
    assert curl(version, "-I", f"{url}/health").lower().count(b"content-length: 17") == 1
    assert curl(version, "-D", "-", "-o", "/dev/null", f"{url}/echo?q").lower().count(b"x-host: 127.0.0.1") == 1


@VERSIONS
def test_curl_with_a_large_body(port: Port, version: str, tmp_path: object) -> None:
    body = f"{tmp_path}/body"
    with open(body, "wb") as file:
        file.write(bytes(range(256)) * 6000)
    with open(body, "rb") as file:
        assert curl(version, "--data-binary", f"@{body}", f"http://{port.target}/echo") == file.read()


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_curl_that_is_stopped(port: Port, version: str) -> None:
    if CURL is None:
        pytest.skip("there is no curl")
    process = subprocess.Popen([CURL, "-sS", version, "-o", "/dev/null", f"http://{port.target}/flood"])
    until(lambda: port.sent > 1_000_000)
    process.kill()
    process.wait()
    until(lambda: port.ended == 1)
    until(lambda: port.held.held == 0)


def test_a_grpc_call_by_curl(port: Port, tmp_path: object) -> None:
    """The message in, the message and its trailers out."""
    with open(f"{tmp_path}/request", "wb") as file:
        file.write(b"\0\0\0\0\4text")
    arguments = ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-H", "te: trailers"]
    arguments += [
        "--data-binary",
        f"@{tmp_path}/request",
        "-D",
        f"{tmp_path}/head",
        f"http://{port.target}/test.Test/Echo",
    ]
    assert curl(*arguments) == b"\0\0\0\0\4text"
    with open(f"{tmp_path}/head") as file:
        assert "grpc-status: 0" in file.read()
