"""TLS on lanes between nodes: real sockets, real certificates."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest

from lab.certificates import Certificates, replace
from lab.lanes import PATIENCE, LaneHost, until
from raykeeper.actors.transport.client_lanes import LaneTransport
from raykeeper.actors.transport.lane import LaneBroken, LaneOffer, LaneUnreachable, open_lane
from raykeeper.actors.transport.lane_tls import ServerTls, TlsFiles, TlsSocket, TlsUnusable, tls_files


def issue(certificates: Certificates, name: str) -> TlsFiles:
    return TlsFiles(*certificates.issue(name))


def environment(files: TlsFiles) -> dict[str, str]:
    return dict(zip(("RAYKEEPER_LANE_CERT", "RAYKEEPER_LANE_KEY", "RAYKEEPER_LANE_CA"), files, strict=True))


def all_of(sock: socket.socket) -> bytes:
    """All that arrives until the other side ends the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1000):
            received += data
    return received


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_host(certificates: Certificates) -> Iterator[LaneHost]:
    host = LaneHost(tls=ServerTls(issue(certificates, "member")))
    yield host
    host.close()


def test_rays_switch_and_files_are_used_and_own_ones_come_first() -> None:
    rays = {"RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": "c", "RAY_TLS_SERVER_KEY": "k", "RAY_TLS_CA_CERT": "a"}
    own = {"RAYKEEPER_LANE_CERT": "C", "RAYKEEPER_LANE_KEY": "K", "RAYKEEPER_LANE_CA": "A"}
    assert tls_files({}) is None
    assert tls_files({**rays, "RAY_USE_TLS": "0"}) is None
    assert tls_files(rays) == TlsFiles("c", "k", "a")
    assert tls_files({**rays, **own}) == tls_files(own) == TlsFiles("C", "K", "A")
    for name in rays:
        if name != "RAY_USE_TLS":
            with pytest.raises(TlsUnusable, match=name):
                tls_files({**rays, name: ""})
    with pytest.raises(TlsUnusable, match="RAYKEEPER_LANE_CA"):
        tls_files({**own, "RAYKEEPER_LANE_CA": ""})


class Client:
    """A process with an environment, and a lane of its own."""

    def __init__(self, host: LaneHost, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.host, self.variables = host, variables
        self.replies: dict[bytes, bytes | Exception] = {}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        self.transport = LaneTransport(self)

    node = "there"

    def members(self) -> dict[int, str]:
        return {1: "m1"}

    def refresh(self) -> None:
        pass

    def valid(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def send(self, member: int, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
        done(b"by call")

    poll = send

    def ask_for_lane(self, member: int) -> Future[LaneOffer | None]:
        future: Future[LaneOffer | None] = Future()
        future.set_result(self.host.lanes.offer_lane("there"))
        return future

    def ask(self, frame: bytes) -> bytes | Exception:
        self.transport.send(1, frame, lambda reply: self.replies.update({frame: reply}))
        until(lambda: frame in self.replies)
        return self.replies.pop(frame)


def test_frames_of_all_sizes_go_both_ways_under_tls(
    tls_host: LaneHost, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(tls_host, environment(issue(certificates, "client")), monkeypatch)
    until(lambda: client.ask(b"x") != b"by call", "a lane is open")
    (lane,) = client.transport._by_fd.values()
    assert isinstance(lane.connection._sock, TlsSocket)
    for size in (1, 100, 16_384 - 13, 16_384, 16_385, 70_000, 5_000_000):
        frame = os.urandom(size)
        assert client.ask(frame) == b"re " + frame
    # Many threads at once: OpenSSL's object is not for two of them.
    failed: list[bytes] = []

    def ask_often(number: int) -> None:
        for turn in range(30):
            frame = b"%d %d " % (number, turn) + bytes(turn * 997)
            if client.ask(frame) != b"re " + frame:
                failed.append(frame)

    threads = [threading.Thread(target=ask_often, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    client.transport.close()
    until(lambda: len(tls_host.lanes) == 0)


def test_nothing_goes_in_the_clear_if_either_side_wants_tls(tls_host: LaneHost, certificates: Certificates) -> None:
    offer = tls_host.lanes.offer_lane("there")
    with pytest.raises(LaneUnreachable, match="no certificate"):
        open_lane(offer, "there", 0, PATIENCE, {})
    plain = LaneHost(2)
    try:
        with pytest.raises(LaneUnreachable, match="wants TLS"):
            open_lane(plain.lanes.offer_lane("there"), "there", 0, PATIENCE, environment(issue(certificates, "client")))
    finally:
        plain.close()
    with socket.create_connection((offer.host, offer.port), PATIENCE) as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(b"a hello without TLS" * 10)
        assert b"RK" not in all_of(sock)
    sock = open_lane(tls_host.lanes.offer_lane("here"), "here", 0, PATIENCE, {})
    assert isinstance(sock, socket.socket), "a Unix socket needs none"
    sock.close()


def test_a_certificate_of_another_authority_or_another_process_is_refused(
    tls_host: LaneHost, certificates: Certificates, tmp_path: Path
) -> None:
    foreign = issue(Certificates(tmp_path / "other"), "client")
    known = issue(certificates, "client")
    offer = tls_host.lanes.offer_lane("there")
    for files in (foreign, TlsFiles(foreign.certificate, foreign.key, known.authority)):
        with pytest.raises(LaneBroken):
            open_lane(tls_host.lanes.offer_lane("there"), "there", 0, PATIENCE, environment(files))
    impostor = LaneHost(3, tls=ServerTls(issue(certificates, "impostor")))
    try:
        port = impostor.lanes.offer_lane("there").port
        with pytest.raises(LaneUnreachable, match="not that of the member"):
            open_lane(msgspec.structs.replace(offer, port=port), "there", 0, PATIENCE, environment(known))
    finally:
        impostor.close()
    assert len(tls_host.lanes) == 0


def test_new_files_are_used_without_a_restart_and_broken_ones_offer_nothing(certificates: Certificates) -> None:
    files = issue(certificates, "rotated")
    host = LaneHost(tls=ServerTls(files))
    try:
        client = environment(issue(certificates, "client"))
        before = host.lanes.offer_lane("there")
        open_lane(before, "there", 0, PATIENCE, client).close()
        issue(certificates, "rotated")
        after = host.lanes.offer_lane("there")
        assert after.certificate != before.certificate
        open_lane(after, "there", 0, PATIENCE, client).close()
        Path(files.key).write_text("rubbish")
        assert host.lanes.offer_lane("there").port == 0
        issue(certificates, "rotated")
        open_lane(host.lanes.offer_lane("there"), "there", 0, PATIENCE, client).close()
    finally:
        host.close()


@pytest.mark.parametrize("in_place", [True, False])
def test_an_authority_that_changes_alone(tmp_path: Path, in_place: bool) -> None:
    """Of the member: processes that trust it, and show a certificate of the new authority, are let in from then on."""
    before, after = Certificates(tmp_path / "before"), Certificates(tmp_path / "after")
    member = issue(before, "member")
    trust = str(tmp_path / "clients.pem")
    shutil.copyfile(member.authority, trust)
    old, new = (issue(each, "client") for each in (before, after))
    host = LaneHost(tls=ServerTls(member._replace(authority=trust)))
    try:
        for let_in, kept_out, then in ((old, new, new), (new, old, old), (old, new, new)):

            def of(files: TlsFiles) -> dict[str, str]:
                return environment(files._replace(authority=member.authority))

            open_lane(host.lanes.offer_lane("there"), "there", 0, PATIENCE, of(let_in)).close()
            with pytest.raises((LaneBroken, LaneUnreachable)):
                open_lane(host.lanes.offer_lane("there"), "there", 0, PATIENCE, of(kept_out))
            replace(trust, then.authority, in_place=in_place)
    finally:
        host.close()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_certificate_and_a_key_that_change_one_after_the_other(tmp_path: Path, in_place: bool) -> None:
    certificates = Certificates(tmp_path)
    used, other, client = (issue(certificates, name) for name in ("used", "other", "client"))
    host = LaneHost(tls=ServerTls(used))
    try:
        before = host.lanes.offer_lane("there")
        replace(used.certificate, other.certificate, in_place=in_place)
        assert host.lanes.offer_lane("there").port == 0, "they do not belong together"
        replace(used.key, other.key, in_place=in_place)
        after = host.lanes.offer_lane("there")
        assert after.certificate not in (b"", before.certificate)
        open_lane(after, "there", 0, PATIENCE, environment(client)).close()
    finally:
        host.close()


def test_an_expired_certificate_costs_the_lane_until_there_are_new_files(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runbook's entry: calls go by Ray meanwhile."""
    good, old = environment(issue(certificates, "client")), TlsFiles(*certificates.issue("old", expired=True))
    host = LaneHost(tls=ServerTls(issue(certificates, "expires")))
    try:
        with pytest.raises((LaneBroken, LaneUnreachable)):
            open_lane(host.lanes.offer_lane("there"), "there", 0, PATIENCE, environment(old))
        client = Client(host, environment(old), monkeypatch)
        assert client.ask(b"x") == b"by call"
        certificates.issue("old")
        open_lane(host.lanes.offer_lane("there"), "there", 0, PATIENCE, environment(old)).close()
        client.transport.close()
        certificates.issue("expires", expired=True)
        with pytest.raises((LaneBroken, LaneUnreachable)):
            open_lane(host.lanes.offer_lane("there"), "there", 0, PATIENCE, good)
        certificates.issue("expires")
        open_lane(host.lanes.offer_lane("there"), "there", 0, PATIENCE, good).close()
    finally:
        host.close()


def test_a_handshake_that_stops_halfway_holds_up_nobody(tls_host: LaneHost, certificates: Certificates) -> None:
    offer = tls_host.lanes.offer_lane("there")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    halfway = []
    for cut in (1, 5, 100):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        wrapped = context.wrap_bio(incoming, outgoing)
        with pytest.raises(ssl.SSLWantReadError):
            wrapped.do_handshake()
        sock = socket.create_connection((offer.host, offer.port), PATIENCE)
        sock.sendall(outgoing.read()[:cut])
        halfway.append(sock)
    client = environment(issue(certificates, "client"))
    open_lane(tls_host.lanes.offer_lane("there"), "there", 0, PATIENCE, client).close()
    tls_host.now += 60
    for sock in halfway:
        sock.settimeout(PATIENCE)
        assert all_of(sock) == b""
        sock.close()
