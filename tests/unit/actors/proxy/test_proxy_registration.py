"""A proxy's entry in the directory while users are needed: the cluster itself vouches for it, and for nobody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from lab.onemember import OneMember, one_member
from lab.proxy_services import LabOperations
from raykeeper import Client, connect
from raykeeper.actors.client import hub_pool
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy import proxy_place, proxy_registry
from raykeeper.actors.proxy.etcd_proxy import EtcdProxy
from raykeeper.actors.proxy.etcdpb.auth_pb2 import AuthenticateRequest, AuthenticateResponse
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import RangeRequest
from raykeeper.actors.proxy.member_calls import MemberCalls
from raykeeper.actors.proxy.proxy_place import ProxyPlace
from raykeeper.actors.proxy.proxy_registry import PROXIES, ProxyEntry, read_entry
from raykeeper.actors.proxy.rpc_status import RpcCode, RpcError
from raykeeper.proxy_address import ListenAddress
from raykeeper.schema.member_record import MemberRecord
from raykeeper.schema.operator_frames import MemberStatus

ROOT = {"user": "root", "password": "first"}


@pytest.fixture
def member() -> Iterator[OneMember]:
    with one_member() as member:
        yield member
        hub_pool._close_all()


def enable(kv: Client) -> None:
    kv.users.add("root", "first")
    kv.users.grant_role("root", "root")
    kv.users.enable()


def proxy_of(member: OneMember, kv: Client, *pins: str) -> EtcdProxy:
    log = MemberLog("proxy", member.name, "proxy")
    place = ProxyPlace("n", "127.0.0.1", "p", pins=frozenset(pins))
    return EtcdProxy(kv.aio, LabOperations(), log, place, cluster_token=member.loop.handler.own_token)


def entries(kv: Client) -> list[ProxyEntry]:
    """The directory."""
    found = [read_entry(item.raw) for item in kv.reserved(PROXIES).range(prefix=b"")]
    return [entry for entry in found if entry is not None]


def registered(kv: Client) -> set[str]:
    """The URLs in the directory."""
    return {entry.url for entry in entries(kv)}


async def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := await asyncio.to_thread(what)):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    return found


def test_a_proxy_registers_while_users_are_needed_and_whatever_becomes_of_them(
    member: OneMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_registry, "PROXY_REGISTRY_CHECK_S", 0.05)
    anyone = connect(member.name, timeout=60)

    async def scenario() -> None:
        before = proxy_of(member, anyone)
        await before.start(ListenAddress("127.0.0.1", 0, 0))
        await until(lambda: registered(anyone) == {before.url})
        await asyncio.to_thread(enable, anyone)
        root = await asyncio.to_thread(lambda: connect(member.name, timeout=60, **ROOT))
        after = proxy_of(member, anyone)
        await after.start(ListenAddress("127.0.0.1", 0, 0))
        await until(lambda: registered(root) == {before.url, after.url})

        def forget() -> None:
            root.users.set_password("root", "second")  # all tokens of root end with it
            with connect(member.name, user="root", password="second", timeout=60) as again:
                again.reserved(PROXIES).delete(prefix=b"")

        await asyncio.to_thread(forget)
        with await asyncio.to_thread(lambda: connect(member.name, user="root", password="second", timeout=60)) as again:
            await until(lambda: registered(again) == {before.url, after.url})
            await before.close()
            await until(lambda: registered(again) == {after.url})
            await asyncio.to_thread(again.users.disable)
        await after.close()
        await until(lambda: not registered(anyone))

    asyncio.run(scenario())


def test_a_proxy_speaks_for_the_voter_that_belongs_on_its_node_though_it_is_not_there(
    member: OneMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that answers is member 1; member 2 is pinned by a resource that the proxy's node alone offers."""
    asked = MemberCalls.any_status

    async def any_status(self: MemberCalls, first: int) -> MemberStatus:
        table = (MemberRecord(1, "m1", "place-a"), MemberRecord(2, "m2", "place-b"))
        return msgspec.structs.replace(await asked(self, first), table=table, voters=(1, 2, 3))

    monkeypatch.setattr(MemberCalls, "any_status", any_status)
    kv = connect(member.name, timeout=60)

    async def scenario() -> None:
        for pins, spoken_for, near in ((("place-b", "other"), 2, True), (("place-c",), 1, False)):
            proxy = proxy_of(member, kv, *pins)
            await proxy.start(ListenAddress("127.0.0.1", 0, 0))
            await until(lambda proxy=proxy: registered(kv) == {proxy.url})  # type: ignore[misc]
            [entry] = await asyncio.to_thread(entries, kv)
            assert (proxy.member, entry.member, entry.near) == (spoken_for, spoken_for, near)
            await proxy.close()
            await until(lambda: not registered(kv))

    asyncio.run(scenario())


def test_what_a_node_alone_offers_pins_members_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(id: str, *resources: str, alive: bool = True) -> dict[str, Any]:
        return {"NodeID": id, "Alive": alive, "Resources": dict.fromkeys(resources, 1.0)}

    nodes = [
        node("a", "CPU", "node:10.0.0.1", "place-a", "shared"),
        node("b", "CPU", "node:10.0.0.2", "shared"),
        node("gone", "place-a", alive=False),
    ]
    monkeypatch.setattr(proxy_place.ray, "nodes", lambda: nodes)
    assert proxy_place._pins_of("a") == {"node:10.0.0.1", "place-a"}
    assert proxy_place._pins_of("b") == {"node:10.0.0.2"}
    assert proxy_place._pins_of("c") == set(), "Ray does not know it yet"


def test_a_token_that_has_ended_is_not_renewed_by_what_the_proxy_itself_can_prove(member: OneMember) -> None:
    """The proxy's own hub is root's, too. A client's token of root must end with root's password all the same."""
    enable(connect(member.name, timeout=60))
    kv = connect(member.name, timeout=60, **ROOT)

    async def scenario() -> None:
        proxy = proxy_of(member, kv)
        await proxy.start(ListenAddress("127.0.0.1", 0, 0))
        assert proxy._listener is not None
        methods = proxy._listener.context.heads._methods

        async def call(path: str, request: bytes, token: str = "") -> bytes:
            method = methods.find(path)
            assert method.unary is not None
            return await method.unary(request, _Call(token))

        login = AuthenticateRequest(name="root", password="first").SerializeToString()
        answer = await call("/etcdserverpb.Auth/Authenticate", login)
        token = AuthenticateResponse.FromString(answer).token
        read = RangeRequest(key=b"a").SerializeToString()
        await call("/etcdserverpb.KV/Range", read, token)
        await asyncio.to_thread(kv.users.set_password, "root", "second")
        with await asyncio.to_thread(lambda: connect(member.name, user="root", password="second", timeout=60)) as again:
            await asyncio.to_thread(again.revision)  # the process's own hub of root goes on with the new password
            for _ in range(2):
                with pytest.raises(RpcError) as refused:
                    await call("/etcdserverpb.KV/Range", read, token)
                assert refused.value.code is RpcCode.UNAUTHENTICATED
        await proxy.close()

    asyncio.run(scenario())


class _Call:
    def __init__(self, token: str) -> None:
        self.metadata = {"token": token} if token else {}
        self.client = "a test"

    def time_left(self) -> float:
        return 60.0
