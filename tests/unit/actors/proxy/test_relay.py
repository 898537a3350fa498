"""A shell's handle by way of a proxy on its node: all calls, over lanes of its own, also after the proxy has ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE, until
from lab.relay import Served
from raykeeper import Client, FutureRevisionError
from raykeeper.actors.client import hub_pool
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.relay_server import relay_server
from raykeeper.actors.transport.client_lanes import LaneTransport
from raykeeper.actors.transport.relay import LENGTH, RelayCalls

LOG = MemberLog("proxy", "c", "proxy")


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


def test_where_it_cannot_listen_shells_go_by_ray(
    member: OneMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYKEEPER_RUNTIME_DIR", str(tmp_path / ("x" * 120)))
    assert asyncio.run(relay_server(member, LOG)) is None
    monkeypatch.setenv("RAYKEEPER_RUNTIME_DIR", str(tmp_path / "run"))

    async def start_and_end() -> str:
        server = await relay_server(member, LOG)
        assert server is not None
        assert os.path.exists(server.path)
        await server.close()
        return server.path

    assert not os.path.exists(asyncio.run(start_and_end()))
