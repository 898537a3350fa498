"""Long writes through a proxy: few bytes of them are under way at a time, and whose turn is next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest

from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import request
from lab.patience import PATIENCE, until
from raykeeper.actors.proxy.etcd_backend import UntimedContext
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest
from raykeeper.actors.proxy.long_writes import LongWrites
from raykeeper.actors.proxy.rpc_status import RpcCode, RpcError
from raykeeper.errors import Unavailable
from raykeeper.limits import MAX_PROXY_LONG_READS, PROXY_LONG_WRITE_BYTES, PROXY_LONG_WRITES_BYTES
from raykeeper.schema.answers import Reason


class Writes:
    """Writes that end when the test says so."""

    def __init__(self, room: int = 100, least: int = 10) -> None:
        self.turns = LongWrites(room, least)
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def _write(self, name: str) -> str:
        self.begun.append(name)
        await self._ends[name].wait()
        return name

    async def submit(self, name: str, size: int, client: str, patience: float = PATIENCE) -> asyncio.Task[str]:
        """One write, as far as it goes without others."""
        self._ends[name] = asyncio.Event()
        task = asyncio.create_task(self.turns.run(size, client, patience, self._write(name)))
        await settle()
        return task

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()


async def settle() -> None:
    """All that can go on without waiting has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), PATIENCE)

    asyncio.run(bounded())


def test_short_ones_pass_and_long_ones_share_their_room() -> None:
    async def test() -> None:
        writes = Writes()
        for number in range(3):
            await writes.submit(f"long{number}", 40, "10.0.0.1 port 1")
        await writes.submit("short", 10, "10.0.0.1 port 1")
        assert writes.begun == ["long0", "long1", "short"]
        await writes.end("long1")
        assert writes.begun[-1] == "long2"
        assert writes.turns.under_way == 80, "the short one does not count"
        for name in ("long0", "long2", "short"):
            await writes.end(name)
        assert writes.turns.under_way == 0

    run(test)


def test_one_that_is_longer_than_the_room_has_it_alone() -> None:
    async def test() -> None:
        writes = Writes()
        await writes.submit("longest", 1000, "10.0.0.1 port 1")
        await writes.submit("next", 20, "10.0.0.2 port 1")
        assert writes.begun == ["longest"]
        await writes.end("longest")
        assert writes.begun == ["longest", "next"]

    run(test)


def test_addresses_have_their_turns_and_connections_of_an_address() -> None:
    """A crowd on many connections, one that sends much on one connection, and a client from elsewhere."""

    async def test() -> None:
        writes = Writes(room=20)
        await writes.submit("first", 20, "10.0.0.1 port 1")
        for number in range(4):
            await writes.submit(f"crowd{number}", 20, f"10.0.0.1 port {number // 2}")
        await writes.submit("other", 20, "10.0.0.2 port 1")
        await writes.submit("quiet", 20, "10.0.0.1 port 9")
        while len(writes.begun) < 7:
            await writes.end(writes.begun[-1])
        assert writes.begun == ["first", "crowd0", "other", "crowd2", "quiet", "crowd1", "crowd3"]
        await writes.end("crowd3")
        assert writes.turns.under_way == 0
        assert not writes.turns._waiting

    run(test)


def test_who_gives_up_keeps_its_room_until_the_write_has_ended() -> None:
    """Or a client that resets what it has sent would have as much under way as it likes."""

    async def test() -> None:
        writes = Writes(room=20)
        given_up = await writes.submit("given up", 20, "10.0.0.1 port 1")
        waits = await writes.submit("waits", 20, "10.0.0.1 port 1")
        last = await writes.submit("last", 20, "10.0.0.1 port 1")
        given_up.cancel()
        waits.cancel()
        await settle()
        assert writes.begun == ["given up"]
        await writes.end("given up")
        assert writes.begun == ["given up", "last"], "who waits and gives up has no turn"
        await writes.end("last")
        assert await last == "last"
        assert writes.turns.under_way == 0

    run(test)


def test_who_is_cancelled_as_its_turn_comes_leaves_the_room() -> None:
    async def test() -> None:
        writes = Writes(room=20)
        await writes.submit("first", 20, "10.0.0.1 port 1")
        second = await writes.submit("second", 20, "10.0.0.1 port 1")
        await writes.submit("third", 20, "10.0.0.1 port 1")
        writes.turns._leave(20)  # as if the first had ended: the second has its turn, and does not know
        assert second.cancel()
        await settle()
        assert writes.begun == ["first", "third"]

    run(test)


def test_a_turn_that_does_not_come_in_time() -> None:
    async def test() -> None:
        writes = Writes(room=20)
        await writes.submit("first", 20, "10.0.0.1 port 1")
        late = await writes.submit("late", 20, "10.0.0.2 port 1", 0.001)
        with pytest.raises(Unavailable) as failed:
            await late
        assert (failed.value.applied, failed.value.reason) == (False, Reason.FULL)
        await writes.end("first")
        assert writes.begun == ["first"]
        assert (writes.turns.under_way, writes.turns._waiting) == (0, {})

    run(test)


def test_a_write_that_fails_gives_its_room_back() -> None:
    async def fail() -> None:
        raise Unavailable("there is no leader")

    async def test() -> None:
        turns = LongWrites(20, 10)
        for _ in range(3):
            with pytest.raises(Unavailable, match="no leader"):
                await turns.run(20, "10.0.0.1 port 1", PATIENCE, fail())
        assert turns.under_way == 0

    run(test)


LONG = bytes(PROXY_LONG_WRITE_BYTES + 1)


def put(port: EtcdPort, key: str, value: bytes) -> int:
    return request(port.endpoint, "PUT", f"/kv/{key}", value).status


def test_at_a_port_a_short_put_passes_those_that_wait() -> None:
    """By each way that a long value comes."""
    with etcd_port() as port:
        turns = port.proxy.backend.long_writes
        turns.under_way = PROXY_LONG_WRITES_BYTES  # others'
        in_txn = TxnRequest(success=[RequestOp(request_put=PutRequest(key=b"txn", value=LONG))])
        with grpc.insecure_channel(port.endpoint) as channel:
            calls = [
                channel.unary_unary(f"/etcdserverpb.KV/{name}").future(message.SerializeToString(), timeout=PATIENCE)
                for name, message in (("Put", PutRequest(key=b"put", value=LONG)), ("Txn", in_txn))
            ]

            def waiting() -> int:
                return sum(len(each) for of in list(turns._waiting.values()) for each in list(of.values()))

            until(lambda: waiting() == 2)
            assert put(port, "short", b"1") == 201
            assert [request(port.endpoint, "GET", f"/kv/{key}").status for key in ("put", "txn")] == [404, 404]

            async def make_room() -> None:
                turns._leave(PROXY_LONG_WRITES_BYTES)

            port.proxy.run(make_room())
            for call in calls:
                call.result(PATIENCE)
        assert put(port, "plain", LONG) == 201
        for key in ("put", "txn", "plain"):
            assert request(port.endpoint, "GET", f"/kv/{key}").body == LONG
        until(lambda: turns.under_way == 0)


def test_at_a_port_a_transaction_that_was_not_sent_takes_no_room() -> None:
    """It waits for a place to read, and its caller goes: nothing of it is done, and others' writes go on."""
    with etcd_port() as port, grpc.insecure_channel(port.endpoint) as channel:
        backend = port.proxy.backend

        async def take_all_places() -> None:
            for _ in range(MAX_PROXY_LONG_READS):
                await backend.long_reads._places.acquire()

        async def give_them_back() -> None:
            for _ in range(MAX_PROXY_LONG_READS):
                backend.long_reads._places.release()

        port.proxy.run(take_all_places())
        put = RequestOp(request_put=PutRequest(key=b"t", value=bytes(1_000_000)))
        look = RequestOp(request_range=RangeRequest(key=b"a", range_end=b"b"))
        txn = channel.unary_unary("/etcdserverpb.KV/Txn")
        calls = [txn.future(TxnRequest(success=[put, look]).SerializeToString()) for _ in range(12)]
        until(lambda: len(backend.long_reads._places._waiters or ()) == 12)
        assert backend.long_writes.under_way == 0
        for call in calls:
            call.cancel()
        until(lambda: not any(not each.done() for each in backend.long_reads._places._waiters or ()))
        write = channel.unary_unary("/etcdserverpb.KV/Put")
        write(PutRequest(key=b"h", value=bytes(20_000)).SerializeToString(), timeout=PATIENCE)
        port.proxy.run(give_them_back())
        found = channel.unary_unary("/etcdserverpb.KV/Range")(RangeRequest(key=b"t").SerializeToString())
        assert RangeResponse.FromString(found).count == 0


def test_at_a_port_one_whose_turn_does_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.proxy.long_writes.PROXY_TIMEOUT_S", 0.001)
    with etcd_port() as port:
        port.proxy.backend.long_writes.under_way = PROXY_LONG_WRITES_BYTES
        answer = request(port.endpoint, "PUT", "/kv/a", LONG)
        assert answer.status == 503
        assert b"nothing was written" in answer.body
        message = PutRequest(key=b"a", value=LONG).SerializeToString()
        with pytest.raises(RpcError) as failed:
            port.proxy.run(port.proxy.services.unary["/etcdserverpb.KV/Put"](message, UntimedContext()))
        assert failed.value.code is RpcCode.RESOURCE_EXHAUSTED
        assert put(port, "a", b"short") == 201
