"""A member's lanes: who is let in, what is bounded, what an end of file does. Real sockets."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from lab.lanes import CLUSTER, PATIENCE, LaneEnd, LaneHost, is_closed, open_descriptors, until
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.transport import descriptors, lane_address, lane_listener, lane_readers, lane_server
from raykeeper.actors.transport import lane as lane_frames
from raykeeper.actors.transport.accept_rate import AcceptRate
from raykeeper.actors.transport.lane import (
    FrameKind,
    Hello,
    LaneBroken,
    LaneUnreachable,
    NoRoom,
    open_lane,
    pack,
    pack_hello,
)
from raykeeper.limits import (
    MAX_LANE_REQUESTS,
    MAX_UNAUTHENTICATED_LANES,
    MAX_UNAUTHENTICATED_LANES_OF_ONE,
    RESERVED_DESCRIPTORS,
)


@pytest.mark.parametrize("node", ["here", "there"])
def test_requests_are_answered_by_number_in_any_order(lane_host: LaneHost, node: str) -> None:
    client = lane_host.client(node)
    assert client.sock.family == (socket.AF_UNIX if node == "here" else socket.AF_INET)
    assert client.ask(1, b"a") == b"re a"
    client.send(2, b"later")
    assert client.ask(3, b"b") == b"re b"
    lane_host.open[0][1](lambda: b"at last")
    assert client.receive() == (FrameKind.REPLY, 2, b"at last")


def test_a_request_comes_with_who_has_connected_by_the_kernels_word(lane_host: LaneHost) -> None:
    near, far = lane_host.client("here"), lane_host.client("there")
    near.ask(1, b"a")
    far.ask(1, b"b")
    host, port = far.sock.getsockname()
    assert dict(zip(lane_host.asked, lane_host.sources, strict=True)) == {
        b"a": f"process {os.getpid()} of user {os.getuid()} on {socket.gethostname()}",
        b"b": f"{host} port {port}",
    }


def test_what_may_take_long_is_not_done_by_the_loop(lane_host: LaneHost) -> None:
    assert b"lane reader" in lane_host.client().ask(1, b"slow")


def test_a_request_that_fails_is_refused_and_the_lane_lives(lane_host: LaneHost) -> None:
    client = lane_host.client()
    assert client.ask(2, b"a") == b"re a"


def test_a_reply_that_is_too_large_is_asked_for_by_a_call(lane_host: LaneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_server, "MAX_LANE_FRAME_BYTES", 10)
    client = lane_host.client()
    client.send(1, b"x" * 20)
    assert client.receive() == (FrameKind.BY_CALL, 1, b"")


@pytest.mark.parametrize(
    "hello",
    [
        pack_hello(Hello(b"x" * 16, 0, CLUSTER)),
        b"GET / HTTP/1.1\r\nHost: somebody.example\r\n\r\n",
        b"\0" * lane_frames.HELLO_BYTES,
    ],
    ids=["a wrong token", "another protocol", "zeros"],
)
def test_a_port_answers_nobody_without_the_token(lane_host: LaneHost, hello: bytes) -> None:
    sock = lane_host.unauthenticated()
    sock.sendall(hello)
    assert is_closed(sock)
    assert len(lane_host.lanes) == 0


def test_a_token_opens_one_lane_and_only_of_its_cluster(lane_host: LaneHost) -> None:
    offer = lane_host.lanes.offer_lane("")
    other = msgspec.structs.replace(lane_host.lanes.offer_lane(""), cluster=CLUSTER + 1)
    open_lane(offer, "here", 0, PATIENCE).close()
    for used in (offer, other):
        with pytest.raises(LaneBroken):
            open_lane(used, "here", 0, PATIENCE)


def test_a_process_that_has_taken_the_address_of_a_dead_member_is_found_out(lane_host: LaneHost) -> None:
    offer = msgspec.structs.replace(lane_host.lanes.offer_lane(""), proof=b"of another one..")
    with pytest.raises(LaneBroken):
        open_lane(offer, "here", 0, PATIENCE)


def test_silent_connections_have_little_time(lane_host: LaneHost) -> None:
    sock = lane_host.unauthenticated()
    sock.sendall(b"RK")
    until(lambda: lane_host.lanes._listener._unauthenticated)
    assert lane_host.client().ask(1, b"a") == b"re a"
    lane_host.now += lane_listener.LANE_HELLO_TIMEOUT_S
    assert is_closed(sock)


def test_many_connections_without_a_token_keep_no_client_out(lane_host: LaneHost) -> None:
    socks = [lane_host.unauthenticated() for _ in range(2 * MAX_UNAUTHENTICATED_LANES)]
    assert lane_host.client("there").ask(1, b"a") == b"re a"
    assert is_closed(socks[0])
    assert len(lane_host.lanes._listener._unauthenticated) <= MAX_UNAUTHENTICATED_LANES_OF_ONE, "all of one address"
    for sock in socks:
        sock.close()


@pytest.mark.parametrize("kind", [FrameKind.MESSAGES, FrameKind.REPLY, 99])
def test_a_client_that_sends_what_is_not_its_own_to_send_is_closed(lane_host: LaneHost, kind: Any) -> None:
    client = lane_host.client()
    client.send(1, b"x", kind)
    assert is_closed(client.sock)
    until(lambda: len(lane_host.lanes) == 0)
    assert lane_host.heard == []


def test_a_member_has_a_bounded_number_of_lanes(lane_host: LaneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = lane_host.lanes.offer_lane("")
    monkeypatch.setattr(lane_server, "MAX_LANES", 1)
    first = lane_host.client()
    with pytest.raises(NoRoom):
        open_lane(offer, "here", 0, PATIENCE)
    assert lane_host.lanes.offer_lane("") is None
    assert first.ask(1, b"a") == b"re a"
    assert lane_host.client(peer=2) is not None, "peers are few, and always have room"


def test_lanes_leave_descriptors_to_the_disk_and_to_peers(lane_host: LaneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on numbers: what is free above it stays free, whatever else this process opens meanwhile."""
    gc.collect()  # what earlier tests have left open is closed before numbers are counted
    with contextlib.ExitStack() as opened:

        def take_one() -> int:
            number = os.dup(0)
            opened.callback(os.close, number)
            return number

        while take_one() < max(map(int, os.listdir("/proc/self/fd"))) - 1:
            pass  # nothing is free below what others have open
        leave_descriptors(lane_host, monkeypatch, take_one)


def leave_descriptors(lane_host: LaneHost, monkeypatch: pytest.MonkeyPatch, take_one: Callable[[], int]) -> None:
    offer = lane_host.lanes.offer_lane("")
    number = descriptors.next_number(0)
    monkeypatch.setattr(descriptors, "limit", lambda: number + RESERVED_DESCRIPTORS + 20)
    clients = []
    refused = None
    while refused is None:
        assert len(clients) < 100
        try:
            clients.append(LaneEnd(open_lane(offer, "here", 0, PATIENCE)))
        except NoRoom as error:
            refused = error
        offer = lane_host.lanes._listener.offer_lane("")
    assert len(clients) >= 5
    until(lambda: lane_host.lanes._listener.waiting == 0)
    assert max(lane_host.lanes._lanes) < number + 20
    for _ in range(100):  # a client's end may have been the last number below the bound, or another thread closes some
        if lane_host.lanes.offer_lane("") is None:
            break
        take_one()
    else:
        pytest.fail("lanes are offered above the bound")
    peer_offer = lane_host.lanes.offer_lane("", peer=True)
    assert peer_offer is not None
    LaneEnd(open_lane(peer_offer, "here", 2, PATIENCE))
    until(lambda: ("peers_connected", 2) in lane_host.news)
    assert all(client.ask(1, b"a") == b"re a" for client in clients)
    for client in clients[:3]:
        client.sock.close()
    until(lambda: lane_host.lanes.offer_lane("") is not None, "room again")
    monkeypatch.setattr(descriptors, "limit", lambda: 100)
    assert lane_host.lanes.offer_lane("") is None
    assert lane_host.lanes.offer_lane("", peer=True) is None, "no room at all: members speak by calls, too"


def test_a_process_without_descriptors_neither_spins_nor_breaks() -> None:
    """In one of its own, which has none left: nobody is let in, the loop rests, and all goes on when some are free."""
    code = """
import os, resource, socket, time
from raykeeper.actors.transport.lane import open_lane, LaneBroken
from raykeeper.actors.transport.lane_server import LaneServer
from raykeeper.actors.transport.client_lanes import LaneTransport
now = [0.0]
lane_host = LaneServer(cluster=7, member=1, node="here", host="127.0.0.1", clock=lambda: now[0])
offer = lane_host._listener.offer_lane("")
caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
taken = [os.dup(0) for _ in range(5)]
resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
caller.connect(chr(0) + offer.local)
turns = 0
end = time.monotonic() + 0.3
while time.monotonic() < end:
    ready = lane_host.wait(0.1)
    lane_host.serve(ready, clients=True)
    turns += 1
assert turns < 20, turns
class Calls:
    node = "here"
transport = LaneTransport(Calls())
try:
    transport._connect(1, offer, time.monotonic() + 1)
    raise SystemExit("it was opened")
except LaneBroken:
    pass
os.close(taken[0])
try:
    transport._connect(1, offer, time.monotonic() + 0.2)
    raise SystemExit("it was opened")
except (LaneBroken, OSError):
    pass
assert transport._epoll is None
for each in taken[1:]:
    os.close(each)
now[0] += 2.0
until = time.monotonic() + 50
while not lane_host._listener._unauthenticated and time.monotonic() < until:
    lane_host.serve(lane_host.wait(0.01), clients=True)
assert lane_host._listener._unauthenticated
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_member_raises_its_own_limit_as_far_as_it_may() -> None:
    code = """
import resource
from raykeeper.actors.transport.descriptors import limit, raise_limit
hard = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
assert limit() == 256
raise_limit()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
raise_limit()
assert limit() == hard
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_client_has_a_bounded_number_of_requests_under_way(lane_host: LaneHost) -> None:
    client = lane_host.client()

    def send() -> None:  # as far as the member takes it
        for number in range(2 * MAX_LANE_REQUESTS):
            client.send(number, b"later")
        client.send(9999, b"a")

    threading.Thread(target=send, daemon=True).start()
    until(lambda: len(lane_host.asked) >= MAX_LANE_REQUESTS)
    assert lane_host.client().ask(1, b"b") == b"re b", "others are served"
    # What had been read with the last of them is taken; the rest stays with the sender.
    lane = max(lane_host.lanes._lanes.values(), key=lambda each: each.under_way)
    assert not lane.connection.is_reading()
    answered = 0
    while answered < 2 * MAX_LANE_REQUESTS:
        until(lambda: lane_host.open)
        lane_host.open.pop(0)[1](lambda: b"late")
        answered += 1
    replies = [client.receive() for _ in range(2 * MAX_LANE_REQUESTS + 1)]
    assert {number for _, number, _ in replies} == {*range(2 * MAX_LANE_REQUESTS), 9999}


def test_a_client_that_does_not_read_its_answers_is_held_up_and_then_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_server, "LANE_BACKLOG_BYTES", 100_000)
    monkeypatch.setattr(lane_server, "MAX_LANE_BACKLOG_BYTES", 3_000_000)
    waiting: list[Callable[[Any], None]] = []
    lane_host = LaneHost(submit=lambda frame, done: waiting.append(done))
    client = lane_host.client()
    for number in range(20):
        client.send(number, b"x")
    until(lambda: len(waiting) == 20)
    (lane,) = lane_host.lanes._lanes.values()
    for done in waiting[:4]:
        done(lambda: b"x" * 500_000)
    assert not lane.connection.is_reading()
    assert lane.connection.backlog <= 2_000_000
    for done in waiting[4:]:
        done(lambda: b"x" * 500_000)
    until(lambda: len(lane_host.lanes) == 0 and lane.connection.backlog == 0, "the lane is closed")
    lane_host.close()


def test_all_lanes_together_hold_a_bounded_number_of_bytes(
    lane_host: LaneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_server, "MAX_LANES_BYTES", 1_000_000)
    client = lane_host.client()
    with pytest.raises(OSError):
        client.sock.sendall(pack(FrameKind.REQUEST, 1, b"x" * 20_000_000))
    until(lambda: len(lane_host.lanes) == 0)
    assert lane_host.client().ask(1, b"a") == b"re a"


def test_hundreds_of_clients_come_and_go_without_a_trace(lane_host: LaneHost) -> None:
    assert lane_host.client().ask(1, b"slow")
    lane_host.lanes.offer_lane("there")  # it listens on a port from now on
    before, threads = open_descriptors(), threading.active_count()
    for _ in range(3):
        clients = [lane_host.client("here" if n % 2 else "there") for n in range(150)]
        for client in clients:
            client.send(1, b"a")
            client.send(2, b"later")
        for client in clients[::3]:
            client.receive()
        for client in clients:
            client.close()
    until(lambda: len(lane_host.lanes) == 0)
    for _, done in lane_host.open:
        done(lambda: b"to nobody")
    until(lambda: lane_host.lanes._under_way == 0)
    until(lambda: open_descriptors() <= before)
    until(lambda: threading.active_count() <= threads + lane_readers.LANE_READERS)


def test_no_port_is_opened_before_somebody_elsewhere_asks(lane_host: LaneHost) -> None:
    assert lane_host.lanes.offer_lane("here").port == 0
    offer = lane_host.lanes.offer_lane("elsewhere")
    assert offer.port
    assert lane_host.lanes.offer_lane("here").port == lane_host.lanes.offer_lane("").port == offer.port, "one is enough"
    LaneEnd(open_lane(offer, "elsewhere", 0, PATIENCE)).close()


def test_lanes_use_only_the_ports_that_are_given(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        ports = range(busy, min(busy + 30, 1 << 16))
        first, second = LaneHost(1, ports=ports), LaneHost(2, ports=ports)
        only_busy = LaneHost(3, ports=range(busy, busy + 1))
        try:
            found = [host.lanes.offer_lane("elsewhere").port for host in (first, second)]
            assert busy not in found
            assert len(set(found)) == 2
            assert set(found) <= set(ports)
            caplog.clear()
            assert [only_busy.lanes.offer_lane("elsewhere").port for _ in range(3)] == [0, 0, 0]
            assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"
            with pytest.raises(LaneUnreachable):  # which clients and peers say once, and seldom try again
                open_lane(only_busy.lanes.offer_lane("elsewhere"), "elsewhere", 0, PATIENCE)
            LaneEnd(open_lane(only_busy.lanes.offer_lane("here"), "here", 0, PATIENCE)).close()
        finally:
            for host in (first, second, only_busy):
                host.close()


def test_the_port_is_at_the_address_of_the_interface_and_at_no_other() -> None:
    log = MemberLog("transport", "test", "m1")
    host = LaneHost(host=lane_address.lane_host("lo", "192.0.2.1", log))
    try:
        offer = host.lanes.offer_lane("elsewhere")
        assert offer.host == "127.0.0.1"
        LaneEnd(open_lane(offer, "elsewhere", 0, PATIENCE)).close()
        with pytest.raises(ConnectionRefusedError):  # which is an address of this interface as well
            socket.create_connection(("127.0.0.2", offer.port), PATIENCE)
    finally:
        host.close()


def test_an_interface_that_is_not_there_opens_no_port(caplog: pytest.LogCaptureFixture) -> None:
    host = LaneHost(host=lane_address.lane_host("nosuch0", "127.0.0.1", MemberLog("transport", "test", "m1")))
    try:
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert [host.lanes.offer_lane("elsewhere").port for _ in range(3)] == [0, 0, 0]
        LaneEnd(open_lane(host.lanes.offer_lane("here"), "here", 0, PATIENCE)).close()
        assert len(caplog.records) == 1, "said once"
    finally:
        host.close()
    assert lane_address.lane_host("", "192.0.2.1", MemberLog("transport", "test", "m1")) == "192.0.2.1"


def test_connections_are_accepted_at_a_limited_rate() -> None:
    now = [100.0]
    rate = AcceptRate(lambda: now[0], 250, 500)
    assert sum(rate.take() for _ in range(2000)) == 500
    taken = 0
    for _ in range(1000):  # ten seconds of a flood
        now[0] += 0.01
        taken += sum(rate.take() for _ in range(20))
    assert abs(taken - 10 * 250) <= 1
    now[0] += 1000
    assert sum(rate.take() for _ in range(2000)) == 500


def test_a_flood_from_elsewhere_keeps_no_process_of_this_node_out(
    lane_host: LaneHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_listener, "LANE_ACCEPTS_PER_S", 0)
    monkeypatch.setattr(lane_listener, "LANE_ACCEPTS_AT_ONCE", 20)
    host = LaneHost(2)
    try:
        socks = [host.unauthenticated() for _ in range(100)]
        until(lambda: host.lanes._listener._paused != set())
        assert len(host.lanes._listener._unauthenticated) <= 20
        assert host.client("here").ask(1, b"a") == b"re a"
        for sock in socks:
            sock.close()
    finally:
        host.close()
