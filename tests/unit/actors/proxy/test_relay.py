"""A shell's handle by way of a proxy on its node: all calls, over lanes of its own, also after the proxy has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lab.onemember import OneMember, in_thread, one_member
from lab.patience import PATIENCE, until
from lab.relay import AROUND, LabRay, Served, SilentProxy
from raykeeper import Client, FutureRevisionError, ReentrantCall, Unavailable
from raykeeper.actors.client import hub_pool
from raykeeper.actors.deadline import covering, time_left
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy import relay_server as server_module
from raykeeper.actors.proxy.relay_server import relay_server
from raykeeper.actors.transport import relay
from raykeeper.actors.transport.client_lanes import LaneTransport
from raykeeper.actors.transport.relay import LENGTH, RelayCalls
from raykeeper.limits import CLIENT_LOOKUP_TIMEOUT_S

LOG = MemberLog("proxy", "c", "proxy")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is slow because the machine is has not ended."""
    for name in ("RELAY_TIMEOUT_S", "RELAY_SEND_TIMEOUT_S", "RELAY_RAY_VIEW_S", "RELAY_MOVE_LEADER_S"):
        monkeypatch.setattr(relay, name, PATIENCE)


@pytest.fixture
def member() -> Iterator[OneMember]:
    with one_member(by_lane=True) as member:
        member.wait_until_it_leads()
        yield member


@pytest.fixture
def served(member: OneMember, tmp_path: Path) -> Iterator[Served]:
    served = Served(member, str(tmp_path / "relay"))
    yield served
    served.end()


class ByRay:
    """A transport to the member, which is not closed with it."""

    def __init__(self, member: OneMember) -> None:
        self._member = member

    def __getattr__(self, name: str) -> Any:
        return getattr(self._member, name)

    def close(self) -> None:
        pass


@contextlib.contextmanager
def shell(served: Served, member: OneMember, by_ray: list[OneMember]) -> Iterator[tuple[Client, LaneTransport]]:
    """A handle by way of the relay; ``by_ray`` is filled when it attaches to Ray after all."""
    made: list[LaneTransport] = []

    def attach() -> Any:
        by_ray.append(member)
        return ByRay(member)

    def transport(name: str) -> LaneTransport:
        made.append(LaneTransport(RelayCalls(served.path, attach)))
        return made[-1]

    before, hub_pool.make_transport = hub_pool.make_transport, transport
    try:
        share = hub_pool.open_hub(member.name, PATIENCE, member.cluster)
        with Client(member.name, member.cluster, share=share, timeout=PATIENCE) as kv:
            yield kv, made[0]
    finally:
        hub_pool.make_transport = before


def test_all_calls_go_by_way_of_it(member: OneMember, served: Served) -> None:
    by_ray: list[OneMember] = []
    with shell(served, member, by_ray) as (kv, transport):
        with kv.watch(prefix="k") as watch:
            revision = kv.put("k", "v").revision
            batch = watch.next(timeout=PATIENCE)
            assert batch is not None
            assert batch.kv.mod_revision == revision
        with kv.lock("l", ttl=60) as lock:
            assert lock.token
            lock.guard().put("k", "w")
        with pytest.raises(FutureRevisionError):
            kv.get("k", revision=1 << 40)
        until(lambda: transport._by_fd or not kv.put("k", "x"), what="a lane of the shell's own")
        assert kv.get("k") is not None
    assert not by_ray


def test_a_proxy_that_ends_costs_the_shell_no_call(member: OneMember, served: Served) -> None:
    by_ray: list[OneMember] = []
    with shell(served, member, by_ray) as (kv, transport):
        kv.put("k", "1")
        served.end()
        for lane in list(transport._by_fd.values()):
            lane.connection.shut_down(abruptly=True)
        assert kv.put("k", "2").revision
        assert kv.get("k").text == "2"  # type: ignore[union-attr]


def test_a_shell_that_ends_ends_its_session(member: OneMember, served: Served) -> None:
    """What it sends last comes together with the end of its connection."""
    sent: list[bytes] = []
    real = member.send

    def send(number: int, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
        sent.append(frame)
        real(number, frame, done)

    member.send = send  # type: ignore[method-assign]
    for number in range(20):
        calls = RelayCalls(served.path, lambda: member)
        calls.send(1, b"last %d" % number, lambda reply: None)
        calls.close()
    until(lambda: len(sent) == 20, what="all of them")


def test_nobody_listens(member: OneMember, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        RelayCalls(str(tmp_path / "nobody"), lambda: member)


def test_what_is_no_request_ends_the_connection_alone(member: OneMember, served: Served) -> None:
    for sent in (LENGTH.pack(1 << 31), LENGTH.pack(3) + b"\xc1\xc1\xc1", LENGTH.pack(0)):
        with socket.socket(socket.AF_UNIX) as odd:
            odd.settimeout(PATIENCE)
            odd.connect(served.path)
            odd.sendall(sent)
            assert odd.recv(1) == b""
    calls = RelayCalls(served.path, lambda: member)
    assert calls.members() == {1: "m1"}
    failed: Future[bytes | Exception] = Future()
    calls.send(7, b"no member, and no frame", failed.set_result)
    assert isinstance(failed.result(PATIENCE), (bytes, Exception))
    calls.close()
    late: Future[bytes | Exception] = Future()
    calls.send(1, b"", late.set_result)
    assert isinstance(late.result(PATIENCE), ConnectionError)


def test_what_only_ray_knows_is_asked_of_the_proxy(served: Served) -> None:
    calls = RelayCalls(served.path, lambda: pytest.fail("it went by Ray"))
    assert calls.ray_view() == AROUND
    assert calls.move_leader(1, 1)
    assert not calls.move_leader(1, 2), "the proxy says that it does not"
    assert served.ray.moved == [(1, 1), (1, 2)]
    calls.close()


def test_once_the_proxy_has_ended_the_caller_is_told_to_ask_ray(member: OneMember, served: Served) -> None:
    calls = RelayCalls(served.path, lambda: ByRay(member))  # type: ignore[arg-type, return-value]
    served.end()
    until(lambda: calls._broken, what="the end of the connection")
    assert not calls.move_leader(1, 1)
    assert not calls.goes_by_ray
    assert calls.ray_view() is None
    assert calls.goes_by_ray
    calls.close()


def test_where_it_cannot_listen_shells_go_by_ray(
    member: OneMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYKEEPER_RUNTIME_DIR", str(tmp_path / ("x" * 120)))
    assert asyncio.run(relay_server(member, LabRay(), LOG)) is None
    monkeypatch.setenv("RAYKEEPER_RUNTIME_DIR", str(tmp_path / "run"))

    async def start_and_end() -> str:
        server = await relay_server(member, LabRay(), LOG)
        assert server is not None
        assert os.path.exists(server.path)
        await server.close()
        return server.path

    assert not os.path.exists(asyncio.run(start_and_end()))


# -- a proxy that hangs -----------------------------------------------------------------------------------------------


def test_a_proxy_that_does_not_answer_in_time_is_left_for_ray(
    member: OneMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = SilentProxy(str(tmp_path / "silent"))
    by_ray: list[OneMember] = []
    calls = RelayCalls(proxy.path, lambda: by_ray.append(member) or ByRay(member))  # type: ignore[arg-type, func-returns-value]
    failed: Future[bytes | Exception] = Future()
    calls.send(1, b"", failed.set_result)
    with pytest.raises(Unavailable), covering(0.01):  # a caller that has little time says nothing of the proxy
        calls.refresh()
    assert not by_ray
    assert len(calls._waiting) == 1
    monkeypatch.setattr(relay, "RELAY_TIMEOUT_S", 0.01)
    calls.refresh()
    assert by_ray == [member]
    assert isinstance(failed.result(0), ConnectionError)
    assert not calls._waiting
    proxy.wait_for_end()
    calls.refresh()
    assert by_ray == [member]
    calls.close()


def test_if_ray_is_not_there_either_it_is_tried_again(
    member: OneMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = SilentProxy(str(tmp_path / "silent"))
    tried: list[int] = []

    def attach() -> Any:
        tried.append(1)
        if len(tried) == 1:
            raise Unavailable("there is no Ray")
        return ByRay(member)

    calls = RelayCalls(proxy.path, attach)
    monkeypatch.setattr(relay, "RELAY_TIMEOUT_S", 0.01)
    with pytest.raises(Unavailable, match="no Ray"):
        calls.refresh()
    assert calls.members() == {1: "m1"}
    calls.refresh()
    assert len(tried) == 2
    calls.close()


def test_a_proxy_that_hangs_costs_the_shell_no_call(
    member: OneMember, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_ray: list[OneMember] = []
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        goes_on.wait()

    with shell(served, member, by_ray) as (kv, transport):
        until(lambda: transport._by_fd or not kv.put("k", "1"), what="a lane")
        served.loop.call_soon_threadsafe(hang)
        assert hangs.wait(PATIENCE)
        monkeypatch.setattr(relay, "RELAY_TIMEOUT_S", 0.1)
        for lane in list(transport._by_fd.values()):
            lane.connection.shut_down(abruptly=True)
        try:
            assert kv.put("k", "2").revision
            assert by_ray
        finally:
            goes_on.set()
        assert kv.get("k").text == "2"  # type: ignore[union-attr]


def test_a_proxy_whose_backlog_is_full_is_not_waited_for(member: OneMember, tmp_path: Path) -> None:
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX) as full, contextlib.ExitStack() as others:
        full.bind(path)
        full.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                other = others.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)
                other.connect(path)

        with pytest.raises(BlockingIOError):
            RelayCalls(path, lambda: member)


# -- Ray that hangs ---------------------------------------------------------------------------------------------------


def test_the_proxy_waits_for_ray_once_for_all_shells_and_on_no_thread_that_others_need(
    member: OneMember, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, left = threading.Event(), []

    def refresh() -> None:
        left.append(time_left())
        answers.wait(PATIENCE)

    member.refresh = refresh  # type: ignore[method-assign]
    monkeypatch.setattr(server_module, "RELAY_LOOK_S", 0.01)
    shells = [RelayCalls(served.path, lambda: pytest.fail("it went by Ray")) for _ in range(3)]
    try:
        for each in shells:
            each.refresh()
            assert each.members() == {1: "m1"}
        assert len(left) == 1
        assert left[0] <= CLIENT_LOOKUP_TIMEOUT_S
        assert served.loop._default_executor is None  # type: ignore[attr-defined]
        answers.set()
        monkeypatch.setattr(server_module, "RELAY_LOOK_S", PATIENCE)
        member.members = lambda: {1: "m1", 2: "m2"}  # type: ignore[method-assign]
        until(lambda: served.server._looking.done(), what="the end of the look")  # type: ignore[union-attr]
        shells[0].refresh()
        assert shells[0].members() == {1: "m1", 2: "m2"}
        assert len(left) == 2
    finally:
        answers.set()
        for each in shells:
            each.close()


def test_the_proxy_asks_for_few_lanes_at_a_time_and_not_for_ever(
    member: OneMember, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, real = threading.Event(), member.ask_for_lane

    def ask_for_lane(number: int) -> Any:
        answers.wait(2 * PATIENCE)
        return real(number)

    member.ask_for_lane = ask_for_lane  # type: ignore[method-assign]
    monkeypatch.setattr(server_module, "MAX_RELAY_OFFERS", 1)
    monkeypatch.setattr(server_module, "LANE_OPEN_TIMEOUT_S", 2 * PATIENCE)
    calls = RelayCalls(served.path, lambda: member)
    try:
        calls.ask_for_lane(1)
        assert calls.ask_for_lane(1).result(PATIENCE) is None
        monkeypatch.setattr(server_module, "MAX_RELAY_OFFERS", 2)
        monkeypatch.setattr(server_module, "LANE_OPEN_TIMEOUT_S", 0.01)
        assert isinstance(calls.ask_for_lane(1).exception(PATIENCE), ConnectionError)
        assert served.loop._default_executor is None  # type: ignore[attr-defined]
    finally:
        answers.set()
        calls.close()


# -- signals ----------------------------------------------------------------------------------------------------------


class Interrupted:
    """A socket which a signal interrupts in the middle of sending."""

    def __init__(self, calls: RelayCalls, handler: Callable[[], None]) -> None:
        self._calls, self._handler, self._socket = calls, handler, calls._socket
        calls._socket = self  # type: ignore[assignment]

    def sendall(self, data: bytes) -> None:
        self._calls._socket = self._socket
        self._socket.sendall(data[:5])
        self._handler()
        self._socket.sendall(data[5:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def test_a_handler_that_has_interrupted_a_send_is_refused(member: OneMember, served: Served) -> None:
    refused: list[str] = []
    with shell(served, member, []) as (kv, transport):
        calls: Any = transport._calls

        def handler() -> None:
            with pytest.raises(ReentrantCall):
                kv.put("k", "v", timeout=PATIENCE)
            calls.send(1, b"", lambda reply: refused.append(type(reply).__name__))

        def interrupted() -> bytes | Exception:
            Interrupted(calls, handler)
            got: Future[bytes | Exception] = Future()
            calls.send(1, b"no frame", got.set_result)
            return got.result(PATIENCE)

        in_thread(interrupted).result()
        assert refused == ["ReentrantCall"]
        assert kv.put("after", "v").revision
        assert not calls._broken


def test_an_interrupt_in_the_middle_of_sending_ends_the_connection(member: OneMember, tmp_path: Path) -> None:
    """Half a frame is on it."""
    proxy = SilentProxy(str(tmp_path / "silent"))
    calls = RelayCalls(proxy.path, lambda: ByRay(member))  # type: ignore[arg-type, return-value]
    failed: Future[bytes | Exception] = Future()
    calls.send(1, b"", failed.set_result)

    def interrupt() -> None:
        raise KeyboardInterrupt

    Interrupted(calls, interrupt)
    answered: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        calls.send(1, b"half of it", answered.append)
    assert not answered  # who called was told
    assert isinstance(failed.result(PATIENCE), ConnectionError)
    proxy.wait_for_end()
    assert b"half" not in proxy.taken
    calls.refresh()
    assert calls._by_ray is not None
    calls.close()


def test_a_kernel_that_does_not_say_who_connects(
    member: OneMember, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED")
    calls = RelayCalls(served.path, lambda: member)
    assert calls.members() == {1: "m1"}
    calls.close()
