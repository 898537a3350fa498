"""TLS on a proxy's port: HTTP/1.1, HTTP/2 by ALPN, etcdctl; clients' certificates; floods of handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.certificates import Certificates, Issued, replace
from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.patience import PATIENCE, until
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy import proxy_acceptor
from raykeeper.actors.proxy.proxy_listener import Greeting, ProxyListener
from raykeeper.actors.proxy.proxy_tls import ProxyTlsContext, common_name
from raykeeper.actors.proxy.rpc_methods import RpcMethods
from raykeeper.limits import MAX_PROXY_HANDSHAKES, ProxyTls

ETCDCTL = shutil.which("etcdctl")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


def files(issued: Issued, *, clients: bool = False) -> ProxyTls:
    return ProxyTls(issued.certificate, issued.key, issued.authority if clients else "", clients)


def context(authority: str, client: Issued | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=authority)
    if client is not None:
        made.load_cert_chain(client.certificate, client.key)
    return made


def health(port: EtcdPort, trust: ssl.SSLContext) -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", port.port, timeout=PATIENCE, context=trust)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


def test_one_port_speaks_http1_and_http2_and_nothing_in_the_clear(certificates: Certificates) -> None:
    issued = certificates.issue("proxy")
    trust = context(issued.authority)
    with etcd_port(tls=files(issued)) as port:
        assert health(port, trust) == 200
        trust.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", port.port), PATIENCE) as plain,
            trust.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            assert secured.selected_alpn_protocol() == "h2"
        with socket.create_connection(("127.0.0.1", port.port), PATIENCE) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP" not in received(plain)
        with pytest.raises(ssl.SSLError):
            health(port, ssl.create_default_context())


def received(sock: socket.socket) -> bytes:
    """All until the end."""
    data = b""
    try:
        while part := sock.recv(1000):
            data += part
    except ConnectionResetError:
        pass
    return data


@pytest.mark.skipif(ETCDCTL is None, reason="needs etcdctl: apt-get install etcd-client")
def test_etcdctl_over_tls_with_a_certificate_and_without(certificates: Certificates) -> None:
    issued, client = certificates.issue("proxy"), certificates.issue("root")
    with etcd_port(tls=files(issued, clients=True)) as port:

        def etcdctl(*arguments: str) -> subprocess.CompletedProcess[str]:
            given = ["--endpoints", port.proxy.url, "--cacert", issued.authority]
            given += ["--command-timeout", "60s", *arguments]
            environment = {**os.environ, "ETCDCTL_API": "3"}
            assert ETCDCTL is not None
            return subprocess.run([ETCDCTL, *given], capture_output=True, text=True, env=environment, check=False)

        shown = ("--cert", client.certificate, "--key", client.key)
        assert etcdctl(*shown, "put", "a", "1").stdout == "OK\n"
        assert etcdctl(*shown, "get", "a").stdout == "a\n1\n"
        assert etcdctl("--command-timeout", "2s", "get", "a").returncode != 0


def test_the_common_name_of_a_client_is_known(certificates: Certificates) -> None:
    issued, client = certificates.issue("proxy"), certificates.issue("alice")
    with (
        etcd_port(tls=files(issued, clients=True)) as port,
        socket.create_connection(("127.0.0.1", port.port), PATIENCE) as plain,
        context(issued.authority, client).wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert secured.recv(100).startswith(b"HTTP/1.1 200")
        (connection,) = port.listener.context.connections()
        assert common_name(connection._transport) == "alice"  # type: ignore[attr-defined]


@pytest.mark.skipif(ETCDCTL is None, reason="needs etcdctl: apt-get install etcd-client")
def test_a_certificate_names_the_user_as_in_etcd(certificates: Certificates) -> None:
    issued = certificates.issue("proxy")
    people = {name: certificates.issue(name) for name in ("root", "ann", "nobody")}
    with etcd_port(tls=files(issued, clients=True)) as port:

        def etcdctl(who: str, *arguments: str) -> str:
            shown = people[who]
            given = ["--endpoints", port.proxy.url, "--cacert", issued.authority]
            given += ["--cert", shown.certificate, "--key", shown.key, "--command-timeout", "60s", *arguments]
            environment = {**os.environ, "ETCDCTL_API": "3"}
            assert ETCDCTL is not None
            done = subprocess.run([ETCDCTL, *given], capture_output=True, text=True, env=environment, check=False)
            return done.stdout + done.stderr

        assert etcdctl("nobody", "put", "x", "1") == "OK\n", "users are not needed yet"
        for line in (
            "user add root --no-password",
            "user add ann --no-password",
            "role add team",
            "role grant-permission team --prefix=true readwrite team/",
            "user grant-role ann team",
            "user grant-role root root",
            "auth enable",
        ):
            said = etcdctl("root", *line.split())
            assert "rror" not in said, said
        until(lambda: etcdctl("ann", "put", "team/a", "1") == "OK\n")  # once the proxy has looked again
        assert etcdctl("ann", "get", "team/a") == "team/a\n1\n"
        assert "permission denied" in etcdctl("ann", "put", "x", "2")
        assert "rror" in etcdctl("nobody", "get", "x")
        assert etcdctl("root", "get", "x") == "x\n1\n"
        assert "rror" not in etcdctl("root", "user", "revoke-role", "ann", "team")
        assert "permission denied" in etcdctl("ann", "get", "team/a")
        assert "rror" not in etcdctl("root", "user", "delete", "ann")
        assert "rror" in etcdctl("ann", "get", "team/a")
        assert "rror" not in etcdctl("root", "auth", "disable")
        assert etcdctl("nobody", "get", "x") == "x\n1\n"


def test_new_files_are_used_and_broken_ones_are_not(certificates: Certificates) -> None:
    issued = certificates.issue("rotated")
    with etcd_port(tls=files(issued)) as port:
        first = ssl.get_server_certificate(("127.0.0.1", port.port))
        certificates.issue("rotated")
        second = ssl.get_server_certificate(("127.0.0.1", port.port))
        assert second != first
        Path(issued.key).write_text("rubbish")
        assert ssl.get_server_certificate(("127.0.0.1", port.port)) == second
        assert health(port, context(issued.authority)) == 200


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("first", ["certificate", "key"])
def test_a_certificate_and_a_key_that_change_one_after_the_other(tmp_path: Path, first: str, in_place: bool) -> None:
    """Connections that come in between still get the old ones, and those that come after it the new ones, whatever
    tells that a file has changed."""
    certificates = Certificates(tmp_path)
    used, other = certificates.issue("used"), certificates.issue("other")
    replaced = ((used.certificate, other.certificate), (used.key, other.key))
    with etcd_port(tls=files(used)) as port:
        old = ssl.get_server_certificate(("127.0.0.1", port.port))
        for path, new in replaced if first == "certificate" else reversed(replaced):
            assert ssl.get_server_certificate(("127.0.0.1", port.port)) == old
            replace(path, new, in_place=in_place)
        shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port.port)))
        assert shown == ssl.PEM_cert_to_DER_cert(Path(other.certificate).read_text())
        assert health(port, context(other.authority)) == 200


@pytest.mark.parametrize("in_place", [True, False])
def test_an_authority_of_clients_that_changes_alone(tmp_path: Path, in_place: bool) -> None:
    before, after = Certificates(tmp_path / "before"), Certificates(tmp_path / "after")
    issued = before.issue("proxy")
    trust = str(tmp_path / "clients.pem")
    shutil.copyfile(issued.authority, trust)
    old, new = before.issue("ann"), after.issue("ann")
    with etcd_port(tls=ProxyTls(issued.certificate, issued.key, trust, True)) as port:
        for let_in, kept_out, then in ((old, new, new), (new, old, old), (old, new, new)):
            assert health(port, context(issued.authority, let_in)) == 200
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
                health(port, context(issued.authority, kept_out))
            replace(trust, then.authority, in_place=in_place)


def test_a_file_that_is_half_written_is_read_again(tmp_path: Path) -> None:
    """Though nothing but its content tells that it is whole by now: its time may be as coarse as the kernel's."""
    certificates = Certificates(tmp_path)
    used, other = certificates.issue("used"), certificates.issue("other")
    with etcd_port(tls=files(used)) as port:
        old = ssl.get_server_certificate(("127.0.0.1", port.port))
        replace(used.key, other.key, in_place=True)
        whole = Path(other.certificate).read_bytes()
        with open(used.certificate, "r+b") as file:
            file.write(whole[: len(whole) // 2])
            file.truncate(len(whole))
            file.flush()
            written = os.stat(used.certificate).st_mtime_ns
            assert ssl.get_server_certificate(("127.0.0.1", port.port)) == old
            file.write(whole[len(whole) // 2 :])
        os.utime(used.certificate, ns=(written, written))
        until(lambda: ssl.get_server_certificate(("127.0.0.1", port.port)) != old)
        assert health(port, context(other.authority)) == 200


def test_files_that_are_bad_are_not_read_for_each_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = Certificates(tmp_path).issue("used")
    context = ProxyTlsContext(files(used), MemberLog("proxy", "test", "proxy"))
    before, loads, clock = context.current(), 0, [0.0]
    load = context._load

    def counted() -> ssl.SSLContext:
        nonlocal loads
        loads += 1
        return load()

    monkeypatch.setattr(context, "_load", counted)
    monkeypatch.setattr("raykeeper.actors.proxy.proxy_tls.time", SimpleNamespace(monotonic=lambda: clock[0]))
    Path(used.key).write_text("no key")
    for clock[0] in (0.0, 0.0, 0.9, 1.0, 1.5, 2.0):
        assert context.current() is before
    assert loads == 3
    Path(used.key).write_text("no key either")
    assert context.current() is before
    assert loads == 4


def test_an_expired_certificate_is_refused_until_there_are_new_files(certificates: Certificates) -> None:
    """The runbook's entry: of the proxy, then of a client."""
    old = certificates.issue("old", expired=True)
    with etcd_port(tls=files(old)) as port:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            health(port, context(old.authority))
        new = certificates.issue("old")  # in its place: the proxy is not restarted
        assert health(port, context(new.authority)) == 200
    with etcd_port(tls=files(certificates.issue("proxy"), clients=True)) as port:
        late = certificates.issue("late", expired=True)
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            health(port, context(late.authority, late))
        assert health(port, context(late.authority, certificates.issue("late"))) == 200


def test_files_that_are_missing_or_wrong_are_named(certificates: Certificates, tmp_path: Path) -> None:
    issued, other = certificates.issue("proxy"), certificates.issue("other")
    log = MemberLog("proxy", "test", "proxy")
    for wrong in (ProxyTls(str(tmp_path / "no.pem"), issued.key), ProxyTls(issued.certificate, other.key)):
        with pytest.raises(OSError, match=wrong.cert_file):
            ProxyTlsContext(wrong, log)


def test_handshakes_that_never_end_keep_nobody_out(certificates: Certificates) -> None:
    issued = certificates.issue("proxy")
    with etcd_port(tls=files(issued)) as port:
        idle = [socket.create_connection(("127.0.0.1", port.port), PATIENCE) for _ in range(2 * MAX_PROXY_HANDSHAKES)]
        assert health(port, context(issued.authority)) == 200
        assert received(idle[0]) == b"", "the oldest made way"
        for sock in idle:
            sock.close()


def listener(issued: Issued) -> ProxyListener:
    log = MemberLog("proxy", "test", "proxy")
    return ProxyListener(RpcMethods(), log, tls=ProxyTlsContext(files(issued), log))


def watched(port: ProxyListener) -> set[int]:
    """The descriptors that the loop looks at."""
    return {key.fd for key in port._loop._selector.get_map().values()}  # type: ignore[attr-defined]


async def answered(address: tuple[str, int], trust: ssl.SSLContext) -> bool:
    reader, writer = await asyncio.open_connection(*address, ssl=trust, server_hostname="localhost")
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    status = await reader.readline()
    writer.close()
    return status.startswith(b"HTTP/1.1 404")


def test_a_crowd_of_handshakes_is_served(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is displaced by the others before it had its time."""
    monkeypatch.setattr(proxy_acceptor, "MAX_PROXY_HANDSHAKES", 2)
    monkeypatch.setattr(proxy_acceptor, "PROXY_HANDSHAKE_TURN_S", PATIENCE)
    issued = certificates.issue("proxy")

    async def test() -> None:
        port = listener(issued)
        address = await port.listen("127.0.0.1", 0)
        trust = context(issued.authority)
        assert all(await asyncio.gather(*[answered(address, trust) for _ in range(12)]))
        assert port.context.ends["displaced"] == 0
        await port.close(0.0)

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_handshakes_are_measured(certificates: Certificates) -> None:
    """... also under files that have come later: they are most of what it takes to let a connection in."""
    issued = certificates.issue("measured")

    async def test() -> None:
        port = listener(issued)
        address = await port.listen("127.0.0.1", 0)
        admissions, callers = port.context.admissions, set()
        spend = admissions.spend

        def count(began: float) -> None:
            callers.add(sys._getframe(1).f_code.co_name)
            spend(began)

        admissions.spend = count  # type: ignore[method-assign]
        for _ in range(2):
            callers.clear()
            assert await answered(address, context(issued.authority))
            assert {"do_handshake", "send", "connection_made", "data_received"} <= callers
            certificates.issue("measured")
        await port.close(0.0)

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_a_handshake_that_fails_is_of_no_use_and_one_that_is_done_is_judged_later(certificates: Certificates) -> None:
    issued = certificates.issue("judged")

    async def test() -> None:
        port = listener(issued)
        address = await port.listen("127.0.0.1", 0)
        useless, own = Counter[str](), "127.0.0.1"
        port.acceptor.useless.count = port.context.note_useless = (  # type: ignore[method-assign]
            lambda source: useless.update([source])
        )
        loop = asyncio.get_running_loop()
        assert await answered(address, context(issued.authority))
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection(*address, ssl=ssl.create_default_context(), server_hostname="localhost")
        while useless[own] < 1:
            await asyncio.sleep(0.001)
        _, writer = await asyncio.open_connection(*address, ssl=context(issued.authority))
        while len(port.context.connections()) != 1:
            await asyncio.sleep(0.001)
        assert useless == {own: 1}
        writer.close()
        while useless[own] < 2:
            await asyncio.sleep(0.001)
        with socket.create_connection(address, PATIENCE) as clear:
            clear.setblocking(False)
            await loop.sock_sendall(clear, b"GET / HTTP/1.1\r\n\r\n")
            while useless[own] < 3:
                await asyncio.sleep(0.001)
        await port.close(0.0)

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_a_handshake_that_makes_way_is_of_no_use_and_one_whose_time_is_over_is_not_counted(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_acceptor, "MAX_PROXY_HANDSHAKES", 1)
    monkeypatch.setattr(proxy_acceptor, "PROXY_HANDSHAKE_TURN_S", 0.0)
    monkeypatch.setattr(proxy_acceptor, "PROXY_GREETING_S", 2 * PATIENCE)  # none ends by itself...
    issued = certificates.issue("ended")

    async def test() -> None:
        port = listener(issued)
        address = await port.listen("127.0.0.1", 0)
        assert port._sweeper is not None
        port._sweeper.cancel()
        acceptor, let_in = port.acceptor, Counter[str]()
        begin = acceptor._begin

        def noted(source: str, sock: socket.socket) -> None:
            begin(source, sock)
            let_in[source] += 1

        monkeypatch.setattr(acceptor, "_begin", noted)
        readers, writers = [], []
        for count, own in enumerate(("127.0.0.2", "127.0.0.3", "127.0.0.4"), 1):
            if count == 3:
                monkeypatch.setattr(proxy_acceptor, "PROXY_GREETING_S", 0.001)  # ... but the last
            reader, writer = await asyncio.open_connection(*address, local_addr=(own, 0))
            writer.write(b"\x16")
            readers.append(reader)
            writers.append(writer)
            while let_in.total() < count:
                await asyncio.sleep(0.001)
        for reader in readers:
            with contextlib.suppress(ConnectionResetError):  # what it had said was not read yet
                assert await reader.read() == b""
        while acceptor._begun:
            await asyncio.sleep(0.001)
        assert port.context.ends["displaced"] == 2
        assert acceptor.useless._count == {"127.0.0.2": 1, "127.0.0.3": 1}
        for writer in writers:
            writer.close()
        await port.close(0.0)

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_a_handshake_that_is_displaced_leaves_nothing_and_one_that_is_done_stays(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = certificates.issue("proxy")
    under_way: list[int] = []
    made = Greeting.connection_made

    def noticed(self: Greeting, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        under_way.append(len(port.acceptor._begun))

    monkeypatch.setattr(Greeting, "connection_made", noticed)
    port: ProxyListener

    async def test() -> None:
        nonlocal port
        port = listener(issued)
        address = await port.listen("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"\x16")
        while not port.acceptor._begun:
            await asyncio.sleep(0.001)
        while len(descriptors := watched(port)) < 5:  # the loop's own, the listener, the acceptor's, both ends
            await asyncio.sleep(0.001)
        port.acceptor._begun.take_of_largest()[1].cancel()
        assert await reader.read() == b""
        assert len(descriptors - watched(port)) == 2, "the reader of its server went with it, as did that of the client"
        writer.close()
        assert await answered(address, context(issued.authority))
        assert under_way == [0], "as soon as it is a connection of the proxy's it may not be displaced any more"
        await port.close(0.0)

    asyncio.run(asyncio.wait_for(test(), PATIENCE))
