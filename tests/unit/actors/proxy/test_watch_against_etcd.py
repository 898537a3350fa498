"""Watches: the same streams of requests to a real etcd and to the proxy's service, and what arrives compared.

The answers to requests are compared one by one, with their headers; events for each watch as one list, since etcd is
free to put events of several revisions into one answer, and to serve watches in any order.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.etcd_twins import RELATIVE, SideStream, Twins, twins
from lab.proxy_services import LabProxy
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
from raykeeper.limits import WATCH_BUFFER_EVENTS, Timings

WATCH = "/etcdserverpb.Watch/Watch"
MARK = 1000
"""Id of a watch that every stream has: what it sees says that all before has arrived."""


@pytest.fixture(scope="module")
def both() -> Iterator[Twins]:
    with twins() as both:
        yield both


def create(**fields: Any) -> WatchRequest:
    return WatchRequest(create_request=WatchCreateRequest(**fields))


def cancel(id: int) -> WatchRequest:
    return WatchRequest(cancel_request={"watch_id": id})


PROGRESS = WatchRequest(progress_request={})


class Seen:
    """What has arrived in one stream."""

    def __init__(self, stream: SideStream) -> None:
        self.stream = stream
        self.events: dict[str, list[Any]] = defaultdict(list)
        self.ends: dict[str, Any] = {}

    def take(self, timeout: float) -> Any:
        """The next answer to a request; ``None`` if what has arrived was something else."""
        answer = self.stream.receive(timeout)
        id = answer.get("watch_id", "0")
        if "events" in answer:
            self.events[id] += answer["events"]
            newest = answer["events"][-1]["kv"]["mod_revision"]
            assert int(answer["header"]["revision"]) >= int(newest)
            return None
        if "compact_revision" in answer:
            self.ends[id] = answer
            return None
        return answer

    def answer(self) -> Any:
        """The answer to the last request."""
        while (answer := self.take(20.0)) is None:
            pass
        return answer

    def until_mark(self, count: int) -> None:
        while len(self.events[str(MARK)]) < count:
            assert self.take(20.0) is None


class Watching:
    """A stream to both servers."""

    def __init__(self, both: Twins, streams: list[SideStream]) -> None:
        self.both = both
        self.seen = [Seen(stream) for stream in streams]
        self.marks = 0

    def ask(self, request: WatchRequest) -> Any:
        """Send a request; its answer, which both give."""
        for seen in self.seen:
            seen.stream.send(request)
        theirs, ours = (seen.answer() for seen in self.seen)
        assert ours == theirs
        return ours

    def settle(self) -> None:
        """Wait until everything has arrived, and compare it."""
        time.sleep(0.25)  # etcd looks after watches that lag ten times a second
        for _ in range(2):
            self.both.ask("/etcdserverpb.KV/Put", PutRequest(key=b"mark"))
            self.marks += 1
        for seen in self.seen:
            seen.until_mark(self.marks)
            with suppress(queue.Empty):
                while True:
                    assert seen.take(0.05) is None
        etcd, ours = self.seen
        assert ours.events == etcd.events
        assert ours.ends == etcd.ends


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


def test_a_client_that_has_sent_its_last_request_goes_on_seeing_events(both: Twins) -> None:
    both.begin()
    with both.stream(WATCH) as stream:
        stream.send(create(key=b"a"))
        stream.receive()
        stream.finish()
        change(both, A)
        assert "events" in stream.receive()


keys = st.sampled_from([b"a", b"b", b"c", b"d"])
ends = st.sampled_from([b"", b"", b"c", b"\0", b"e"])
starts = st.one_of(st.just(0), st.just(0), st.integers(1, 14).map(lambda n: RELATIVE + n))
creates = st.builds(
    create,
    key=keys,
    range_end=ends,
    start_revision=starts,
    prev_kv=st.booleans(),
    fragment=st.booleans(),
    watch_id=st.sampled_from([0, 0, 0, 3]),
    filters=st.sampled_from([[], [], [0], [1]]),
)
puts = st.builds(PutRequest, key=keys, value=st.sampled_from([b"", b"1", b"2"]))
deletes = st.builds(DeleteRangeRequest, key=keys, range_end=ends)
txns = st.builds(
    lambda some: TxnRequest(success=[RequestOp(request_put=PutRequest(key=key, value=b"t")) for key in sorted(some)]),
    st.sets(keys, min_size=1),
)
compactions = st.integers(1, 10).map(lambda n: CompactionRequest(revision=RELATIVE + n))
steps = st.one_of(
    creates,
    creates,
    st.integers(0, 3).map(cancel),
    st.just(PROGRESS),
    *([st.one_of(puts, deletes, txns)] * 6),
    compactions,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, min_size=3, max_size=16))
def test_any_sequence(both: Twins, sequence: list[Any]) -> None:
    both.begin()
    with both.stream(WATCH) as stream:
        watching = Watching(both, stream.streams)
        watching.ask(create(key=b"mark", watch_id=MARK))
        open_ids: set[int] = set()
        for step in sequence:
            if not isinstance(step, WatchRequest):
                change(both, step)
            elif step.HasField("cancel_request"):
                if step.cancel_request.watch_id in open_ids:
                    watching.settle()  # what a canceled watch has not been sent yet, it may not get any more
                    watching.ask(step)
                    open_ids.discard(step.cancel_request.watch_id)
            else:
                answer = watching.ask(step)
                if answer.get("created") and not answer.get("canceled"):
                    open_ids.add(int(answer.get("watch_id", 0)))
        watching.settle()


@pytest.mark.parametrize("sizes", [[10], [40, 40, 40, 40], [500], [500, 1, 1, 500], [99, 1, 99, 1]])
def test_fragments_hold_every_event_once(sizes: list[int]) -> None:
    events = [Event(kv=KeyValue(key=b"%d" % n, value=b"v" * size)) for n, size in enumerate(sizes)]
    response = WatchResponse(watch_id=3, events=events)
    parts = list(fragments(response, 120))
    assert [event for part in parts for event in part.events] == events
    assert [part.fragment for part in parts] == [True] * (len(parts) - 1) + [False]
    assert all(part.ByteSize() <= 120 or len(part.events) == 1 for part in parts)
    assert {part.watch_id for part in parts} == {3}


@pytest.mark.parametrize("required", [True, False])
def test_a_watch_that_requires_a_leader_ends_without_one(both: Twins, required: bool) -> None:
    both.begin()
    proxy = both.proxy
    proxy.backend.hub.timings = Timings(election_timeout=0.2)
    stream = proxy.stream(WATCH, {"hasleader": "true"} if required else {})
    try:
        stream.send(create(key=b"a").SerializeToString())
        assert isinstance(stream.receive(), bytes)
        proxy.member.cut = True
        stream.send(create(key=b"b").SerializeToString())  # has the hub notice at once
        if required:
            assert stream.receive() == (14, "etcdserver: no leader")
        else:
            with pytest.raises(queue.Empty):
                stream.receive(2.0)
    finally:
        proxy.member.cut = False
        proxy.backend.hub.timings = Timings()
        stream.close()


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
        time.sleep(0.5)
        assert stream.inner._requests.qsize() > 80
        both.proxy.loop.call_soon_threadsafe(stream.inner.gate.set)
        answers = [stream.receive() for _ in range(100)]
        assert all(isinstance(answer, bytes) and WatchResponse.FromString(answer).canceled for answer in answers)
    finally:
        stream.close()
