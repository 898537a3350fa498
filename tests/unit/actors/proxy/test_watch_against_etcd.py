"""Watches: the same streams of requests to a real etcd and to the proxy's service, and what arrives compared."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from lab.etcd_requests import PROGRESS, cancel, create
from lab.etcd_twins import RELATIVE, Twins, twins
from lab.etcd_watching import MARK, WATCH, Watching
from lab.patience import PATIENCE
from lab.proxy_services import LabProxy
from raykeeper.actors.proxy import watch_service
from raykeeper.actors.proxy.etcdpb.kv_pb2 import Event, KeyValue
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    PutRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from raykeeper.actors.proxy.watch_service import fragments
from raykeeper.limits import WATCH_BUFFER_EVENTS


@pytest.fixture(scope="module")
def both() -> Iterator[Twins]:
    with twins() as both:
        yield both


@pytest.fixture
def watching(both: Twins) -> Iterator[Watching]:
    both.begin()
    with both.stream(WATCH) as stream:
        watching = Watching(both, stream.streams)
        watching.ask(create(key=b"mark", watch_id=MARK))
        yield watching


def change(both: Twins, *requests: Any) -> None:
    names = {PutRequest: "Put", DeleteRangeRequest: "DeleteRange", TxnRequest: "Txn", CompactionRequest: "Compact"}
    for request in requests:
        both.ask(f"/etcdserverpb.KV/{names[type(request)]}", request)


A, A2, B = PutRequest(key=b"a", value=b"1"), PutRequest(key=b"a", value=b"2"), PutRequest(key=b"b", value=b"1")
GONE = DeleteRangeRequest(key=b"a", range_end=b"c")
TOGETHER = TxnRequest(success=[RequestOp(request_put=A2), RequestOp(request_put=B)])


def test_a_range_from_now_on(both: Twins, watching: Watching) -> None:
    watching.ask(create(key=b"a", range_end=b"b"))
    change(both, A, B, A2, TOGETHER, GONE, GONE)
    watching.settle()


def test_the_past_with_previous_values(both: Twins, watching: Watching) -> None:
    change(both, A, B, A2, TOGETHER, GONE, A)
    watching.ask(create(key=b"a", range_end=b"\0", start_revision=RELATIVE + 1, prev_kv=True))
    watching.ask(create(key=b"a", start_revision=RELATIVE + 3))
    change(both, A2)
    watching.settle()


def test_from_a_future_revision(both: Twins, watching: Watching) -> None:
    watching.ask(create(key=b"a", start_revision=RELATIVE + 4))
    change(both, A, A2, A, A2, A)
    watching.settle()


def test_from_below_the_compaction_mark(both: Twins, watching: Watching) -> None:
    """The watch is created, then ends; its id is taken until it is canceled."""
    change(both, A, B, A2, CompactionRequest(revision=RELATIVE + 3))
    watching.ask(create(key=b"a", start_revision=RELATIVE + 2, watch_id=7))
    watching.ask(create(key=b"a", start_revision=RELATIVE + 3))
    watching.ask(create(key=b"a", start_revision=-1))
    watching.settle()
    assert watching.ask(create(key=b"a", watch_id=7))["canceled"]
    assert watching.ask(cancel(7))["watch_id"] == "7"
    assert "canceled" not in watching.ask(create(key=b"a", watch_id=7))


def test_ids(watching: Watching) -> None:
    for id in (0, 5, 0, 1, 0, 5, -3, -1, 2, 0):
        watching.ask(create(key=b"a", watch_id=id))
    for id in (5, 0, -1):
        watching.ask(cancel(id))
    for id in (5, 0):
        watching.ask(create(key=b"a", watch_id=id))


def test_an_unknown_watch_is_canceled_without_an_answer(watching: Watching) -> None:
    for seen in watching.seen:
        seen.stream.send(cancel(77))
        seen.stream.send(WatchRequest())
    watching.ask(create(key=b"a"))


def test_odd_ranges(both: Twins, watching: Watching) -> None:
    for key, end in ((b"", b""), (b"", b"\0"), (b"b", b"a"), (b"a", b"a"), (b"b", b"\0"), (b"a", b"\0\0")):
        watching.ask(create(key=key, range_end=end))
    change(both, A, B, PutRequest(key=b"\0", value=b"first"), GONE)
    watching.settle()


def test_filters(both: Twins, watching: Watching) -> None:
    no_put, no_delete = WatchCreateRequest.NOPUT, WatchCreateRequest.NODELETE
    for filters in ((no_put,), (no_delete,), (no_put, no_delete)):
        watching.ask(create(key=b"a", range_end=b"c", filters=filters))
    change(both, A, B, GONE, TOGETHER, GONE)
    watching.settle()


def test_progress(both: Twins, watching: Watching) -> None:
    watching.ask(create(key=b"a"))
    assert watching.ask(PROGRESS)["watch_id"] == "-1"
    change(both, A, B, B)
    watching.ask(PROGRESS)
    watching.settle()


def test_a_stream_without_watches_progresses_too(both: Twins) -> None:
    both.begin()
    with both.stream(WATCH) as stream:
        stream.send(PROGRESS)
        assert stream.receive()["watch_id"] == "-1"


def test_progress_comes_by_itself_to_those_who_asked_for_it(both: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ten minutes, which are short here."""
    both.begin()
    monkeypatch.setattr(watch_service, "PROXY_PROGRESS_NOTIFY_S", 0.2)
    stream = both.proxy.stream(WATCH)
    try:
        for request in (create(key=b"a", watch_id=5, progress_notify=True), create(key=b"a", watch_id=6)):
            stream.send(request.SerializeToString())
            created = stream.receive()
            assert isinstance(created, bytes)
            assert WatchResponse.FromString(created).created
        for _ in range(3):
            notice = stream.receive()
            assert isinstance(notice, bytes)
            found = WatchResponse.FromString(notice)
            assert (found.watch_id, list(found.events), found.canceled) == (5, [], False)
            assert found.header.revision == both.sides[1].base
    finally:
        stream.close()


def test_a_long_revision_comes_in_fragments(both: Twins) -> None:
    """As etcd cuts it, for the watch that has asked for that; as a whole for the other one."""
    both.begin()
    for key in (b"a", b"a1", b"a2", b"a3"):
        change(both, PutRequest(key=key, value=bytes(900_000)))
    with both.stream(WATCH) as stream:
        for id, fragment in ((1, True), (2, False)):
            stream.send(create(key=b"a", range_end=b"c", prev_kv=True, watch_id=id, fragment=fragment))
            assert stream.receive()["created"]
        change(both, GONE)
        cuts = []
        for side in stream.streams:
            parts: dict[str, list[tuple[int, bool]]] = {"1": [], "2": []}
            while not all(each and not each[-1][1] for each in parts.values()):
                part = side.receive(PATIENCE)
                parts[part["watch_id"]].append((len(part["events"]), part.get("fragment", False)))
            cuts.append(parts)
    theirs, ours = cuts
    assert ours == theirs
    assert len(ours["1"]) > 1
    assert ours["2"] == [(4, False)]


def test_a_client_that_has_sent_its_last_request_goes_on_seeing_events(both: Twins) -> None:
    both.begin()
    with both.stream(WATCH) as stream:
        stream.send(create(key=b"a"))
        stream.receive()
        stream.finish()
        change(both, A)
        assert "events" in stream.receive()


@pytest.mark.parametrize("sizes", [[10], [40, 40, 40, 40], [500], [500, 1, 1, 500], [99, 1, 99, 1]])
def test_fragments_hold_every_event_once(sizes: list[int]) -> None:
    events = [Event(kv=KeyValue(key=b"%d" % n, value=b"v" * size)) for n, size in enumerate(sizes)]
    response = WatchResponse(watch_id=3, events=events)
    parts = list(fragments(response, 120))
    assert [event for part in parts for event in part.events] == events
    assert [part.fragment for part in parts] == [True] * (len(parts) - 1) + [False]
    assert all(part.ByteSize() <= 120 or len(part.events) == 1 for part in parts)
    assert {part.watch_id for part in parts} == {3}


def test_a_client_that_does_not_read_misses_nothing(both: Twins) -> None:
    """Its events wait in the hub, which pauses the watch once it holds enough of them, and reads the rest later."""
    proxy = both.proxy
    stream = proxy.stream(WATCH)
    try:
        stream.send(create(key=b"slow").SerializeToString())
        assert isinstance(stream.receive(), bytes)
        proxy.loop.call_soon_threadsafe(stream.inner.gate.clear)
        first = proxy.kv.put("slow", b"0").revision
        count = WATCH_BUFFER_EVENTS + 500
        proxy.run(put_many(proxy, count - 1))
        proxy.loop.call_soon_threadsafe(stream.inner.gate.set)
        seen: list[int] = []
        while len(seen) < count:
            answer = stream.receive()
            assert isinstance(answer, bytes)
            seen += [event.kv.mod_revision for event in WatchResponse.FromString(answer).events]
        assert seen == sorted(set(seen))
        assert seen[0] == first
    finally:
        stream.close()


async def put_many(proxy: LabProxy, count: int) -> None:
    await asyncio.gather(*[proxy.kv.aio.put("slow", b"%d" % number) for number in range(count)])


def test_requests_without_end_are_read_as_fast_as_they_are_answered(
    both: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raykeeper.actors.proxy.watch_service.MAX_PROXY_WATCH_ANSWERS", 10)
    stream = both.proxy.stream(WATCH)
    try:
        both.proxy.loop.call_soon_threadsafe(stream.inner.gate.clear)
        for _ in range(100):
            stream.send(create(key=b"b", range_end=b"a").SerializeToString())
        both.proxy.run(asyncio.sleep(0.2))  # all have come, and there was time to read them
        assert stream.inner._requests.qsize() > 80
        both.proxy.loop.call_soon_threadsafe(stream.inner.gate.set)
        answers = [stream.receive() for _ in range(100)]
        assert all(isinstance(answer, bytes) and WatchResponse.FromString(answer).canceled for answer in answers)
    finally:
        stream.close()
