"""Spans of sampled requests: which requests are sampled, what a frame carries, and that the spans form one tree."""

from __future__ import annotations

import asyncio
import json
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from lab.http2.etcd_port import etcd_port
from lab.http2.http_client import request
from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE, until
from raykeeper.actors import process_tracer, tracing
from raykeeper.actors.member.request_spans import RequestSpans
from raykeeper.actors.span_files import SpanFile
from raykeeper.actors.tracing import EndedSpan, OpenSpan, SpanContext, Tracer, parse_traceparent
from raykeeper.actors.transport.peer_frames import BarePeerFrame, EntryTrace, PeerFrame, decode_frame, encode_frame
from raykeeper.actors.transport.peer_transport import PeerTransport
from raykeeper.limits import MAX_TRACED_ENTRIES
from raykeeper.raft import Entry
from raykeeper.raft.messages import AppendEntries, EntryKind
from raykeeper.schema.commands import ClientWrites
from raykeeper.schema.frames import BareReads, BareWrites, Read, Reads, Request, Writes
from raykeeper.schema.key_range import KeyRange
from raykeeper.schema.operations import Range

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WRITE_PARTS = ["raykeeper.queue", "raykeeper.log", "raykeeper.quorum", "raykeeper.apply", "raykeeper.answer"]


@pytest.fixture
def spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file to which every request's spans go."""
    path = tmp_path / "spans.jsonl"
    monkeypatch.setenv("RAYKEEPER_TRACE", str(path))
    monkeypatch.setenv("RAYKEEPER_TRACE_RATE", "1")
    yield path
    tracer = process_tracer.process_tracer()
    assert tracer is not None
    tracer.close()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def below(found: list[dict[str, Any]], parent: dict[str, Any]) -> list[str]:
    children = [each for each in found if each["parentSpanId"] == parent["spanId"]]
    assert {each["traceId"] for each in children} <= {parent["traceId"]}
    return [each["name"] for each in sorted(children, key=lambda each: each["startTimeUnixNano"])]


def tree(path: Path, root: str, member: str) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """All spans, once the one of a call and the one of the member below it are there, and these two."""

    def pair() -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]] | None:
        found = read(path)
        calls = [each for each in found if each["name"] == root]
        for call in calls:
            for each in found:
                if (each["name"], each["parentSpanId"]) == (member, call["spanId"]):
                    return found, call, each
        return None

    until(lambda: pair() is not None, what=f"{root} and {member}")
    result = pair()
    assert result is not None
    return result


# -- one member -------------------------------------------------------------------------------------------------------


def test_a_put(spans: Path) -> None:
    with one_member() as member, member.client() as kv:
        kv.put("a", "1")
        found, call, write = tree(spans, "raykeeper.put", "raykeeper.member.write")
    assert sorted(below(found, call)) == ["raykeeper.hub.wait", "raykeeper.lane", "raykeeper.member.write"]
    assert sorted(below(found, write)) == sorted(WRITE_PARTS)
    assert call["parentSpanId"] == ""
    assert write["attributes"]["raykeeper.member"] == "m1"
    assert write["attributes"]["raykeeper.index"] > 0
    assert call["startTimeUnixNano"] <= call["endTimeUnixNano"]


def test_a_read(spans: Path) -> None:
    with one_member() as member, member.client() as kv:
        kv.get("a")
        found, call, asked = tree(spans, "raykeeper.range", "raykeeper.member.read")
    assert sorted(below(found, asked)) == ["raykeeper.read", "raykeeper.read_index"]
    assert "raykeeper.lane" in below(found, call)


def test_of_a_batch_the_first_sampled_call_leads_to_the_member(spans: Path) -> None:
    async def put_all(member: OneMember) -> None:
        async with member.client().aio as aio:
            await asyncio.gather(*[aio.put(f"k{number}", "v") for number in range(20)])

    with one_member() as member:
        with member.client() as kv:
            kv.put("first", "")  # there is a session, so the others share frames
        asyncio.run(put_all(member))
    until(lambda: sum(each["name"] == "raykeeper.put" for each in read(spans)) == 21)
    found = read(spans)
    calls = [each for each in found if each["name"] == "raykeeper.put"]
    carried = [each["attributes"].get("raykeeper.frame_of") for each in calls]
    parents = {f"00-{each['traceId']}-{each['spanId']}-01" for each in calls}
    assert {each for each in carried if each} <= parents


def test_a_call_that_fails_says_so(spans: Path) -> None:
    with one_member() as member, member.client() as kv:
        kv.put("a", "1")
        member.cut = True
        with pytest.raises(Exception, match="in time"):
            kv.put("b", "1", timeout=0.2)  # the member never answers
        until(lambda: any("status" in each for each in read(spans)))
        member.cut = False
    (failed,) = [each for each in read(spans) if "status" in each]
    assert failed["status"]["code"] == "error"
    assert "in time" in failed["status"]["message"]


# -- what is sampled --------------------------------------------------------------------------------------------------


class Kept:
    """A sink that keeps spans in memory."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.parent: SpanContext | None = None
        self._rng = random.Random(7)

    def open(self, name: str, kind: str, parent: SpanContext | None, start: float, attributes: Any) -> Any:
        self.opened.append(name)
        return tracing.random_context(self._rng, parent), None

    def write(self, spans: list[OpenSpan]) -> None:
        pass

    def current(self) -> SpanContext | None:
        return self.parent


def test_the_rate() -> None:
    sink = Kept()
    tracer = Tracer(sink, 0.25, random.Random(1))
    sampled = sum(tracer.sample("x", None, {}) is not None for _ in range(1000))
    assert 200 < sampled < 300
    assert len(sink.opened) == sampled


def test_a_parent_decides() -> None:
    never, always = Tracer(Kept(), 0.0), Tracer(Kept(), 1.0)
    parent = parse_traceparent(PARENT)
    assert parent is not None
    assert always.sample("x", parent._replace(sampled=False), {}) is None
    span = never.sample("x", parent, {})
    assert span is not None
    assert span.context.trace == parent.trace
    assert span.context.span != parent.span


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        PARENT.upper(),
        "ff" + PARENT[2:],
        PARENT + "-00",
        "00-" + "0" * 32 + PARENT[35:],
        PARENT[:36] + "0" * 16 + "-01",
        PARENT[:-1],
    ],
)
def test_what_is_no_traceparent(text: str) -> None:
    assert parse_traceparent(text) is None


def test_a_traceparent() -> None:
    context = parse_traceparent(f" {PARENT}")
    assert context == SpanContext(PARENT[3:35], PARENT[36:52], True)
    assert context.traceparent == PARENT
    later = parse_traceparent("42" + PARENT[2:-1] + "0-more")
    assert later == SpanContext(PARENT[3:35], PARENT[36:52], False)


@pytest.mark.parametrize(("text", "rate"), [("", 0.01), ("0.5", 0.5), ("2", 0.0), ("nan", 0.0), ("many", 0.0)])
def test_rates(text: str, rate: float) -> None:
    assert process_tracer.rate_of({"RAYKEEPER_TRACE_RATE": text}) == rate


def test_without_settings_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYKEEPER_TRACE", raising=False)
    monkeypatch.delenv("RAYKEEPER_TRACE_RATE", raising=False)
    assert process_tracer.process_tracer() is None


# -- frames -----------------------------------------------------------------------------------------------------------


def test_a_frame_without_a_sampled_request_is_not_a_byte_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traced process with nothing to sample sends what one sends that does not trace."""
    frames: dict[str, list[bytes]] = {"0": [], "1": []}
    monkeypatch.setenv("RAYKEEPER_TRACE", "/dev/null")
    for rate, seen in frames.items():
        monkeypatch.setenv("RAYKEEPER_TRACE_RATE", rate)
        with one_member() as member, member.client() as kv:
            kv.put("a", "1")
            handle = member.loop.handler.handle_request

            def noted(frame: bytes, *rest: Any, seen: list[bytes] = seen, handle: Any = handle) -> None:
                seen.append(frame)
                handle(frame, *rest)

            monkeypatch.setattr(member.loop.handler, "handle_request", noted)
            kv.put("b", "22")
            kv.get("b")
    decode = msgspec.msgpack.Decoder(Request).decode
    for kind, bare in ((Writes, BareWrites), (Reads, BareReads)):
        plain, traced = (next(each for each in seen if type(decode(each)) is kind) for seen in frames.values())
        older = [msgspec.msgpack.decode(each, type=bare) for each in (plain, traced)]
        assert [type(each) for each in older] == [bare, bare], "an older member reads both"
        assert msgspec.msgpack.encode(older[0]) == plain
        assert len(decode(traced).traceparent) == 55
        assert len(msgspec.msgpack.encode(older[1])) == len(traced) - 57, "the text, and two bytes before it"


def test_an_older_frame_has_no_traceparent() -> None:
    old = msgspec.msgpack.encode(BareReads(7, 1.0, True, (Read(Range(KeyRange(b"a"))),)))
    assert msgspec.msgpack.decode(old, type=Request) == Reads(7, 1.0, True, (Read(Range(KeyRange(b"a"))),))
    old = msgspec.msgpack.encode(BareWrites(7, 1.0, ClientWrites(1, 1, ())))
    assert msgspec.msgpack.decode(old, type=Request) == Writes(7, 1.0, ClientWrites(1, 1, ()))


# -- leader and follower ----------------------------------------------------------------------------------------------


def entries(*indexes: int) -> tuple[Entry, ...]:
    return tuple([Entry(index, 1, EntryKind.NORMAL, b"x") for index in indexes])


def transport(spans: RequestSpans) -> PeerTransport:
    return PeerTransport(
        cluster=7,
        member=1,
        lookup=lambda member: None,
        deliver=lambda frame: True,
        unreachable=lambda member: None,
        give_up_after=1.0,
        traced=spans.proposed,
        trace_arrived=spans.arrived,
    )


def test_a_followers_append_is_below_the_leaders_span(tmp_path: Path) -> None:
    path = tmp_path / "spans"
    tracer = Tracer(SpanFile(str(path)), 1.0)
    leader = RequestSpans(tracer, "c", 1, lambda: 5.0)
    follower = RequestSpans(tracer, "c", 2, lambda: 5.0)
    write = leader.write(PARENT, 4.0)
    assert write is not None
    leader.propose(11, write)
    side = transport(leader)
    try:
        peer = side._peer(2)
        frames = [
            decode_frame(side._frame(peer, sequence, [AppendEntries(1, 2, 1, index - 1, 1, 0, entries(index))]))
            for sequence, index in ((1, 11), (2, 12))
        ]
    finally:
        side.close()
    carried, bare = frames
    assert carried is not None
    assert bare is not None
    assert carried.traces == (EntryTrace(11, write.span.context.traceparent),)
    assert bare.traces == ()
    assert encode_frame(bare) == encode_frame(bare)
    leader.appended(entries(11), 0.5)
    write.answered(11, 4.0, 4.5, 5.0, 0.0)
    assert follower.waiting is False
    follower.arrived(carried.traces)
    assert follower.waiting is True
    follower.appended(entries(10, 11), 0.25)
    assert follower.waiting is leader.waiting is False
    tracer.close()
    found = read(path)
    (append,) = [each for each in found if each["name"] == "raykeeper.member.append"]
    (root,) = [each for each in found if each["name"] == "raykeeper.member.write"]
    assert root["parentSpanId"] == PARENT[36:52]
    assert append["parentSpanId"] == root["spanId"]
    assert append["attributes"] == {"raykeeper.cluster": "c", "raykeeper.member": "m2", "raykeeper.index": 11}
    assert below(found, append) == ["raykeeper.log"]
    assert {each["traceId"] for each in found} == {PARENT[3:35]}


def test_tables_of_a_member_are_bounded() -> None:
    spans = RequestSpans(Tracer(Kept(), 1.0), "c", 1, lambda: 0.0)
    for index in range(1, 10 * MAX_TRACED_ENTRIES):
        write = spans.write(PARENT, 0.0)
        assert write is not None
        spans.propose(index, write)
        spans.arrived([EntryTrace(index, PARENT)])
    assert len(spans.proposed) == len(spans._writes) == len(spans._arrived) == MAX_TRACED_ENTRIES
    spans.appended(entries(10 * MAX_TRACED_ENTRIES), 0.0)
    assert not spans._arrived, "entries before the last one will not be appended any more"


def test_a_member_that_does_not_trace_keeps_nothing() -> None:
    spans = RequestSpans(None, "c", 1, lambda: 0.0)
    assert spans.write(PARENT, 0.0) is None
    spans.arrived([EntryTrace(1, PARENT)])
    spans.read(PARENT, 0.0, 0.0, 0.0)
    assert not spans.waiting
    assert not spans.proposed


def test_an_older_member_reads_a_frame_with_traces() -> None:
    frame = PeerFrame(7, 1, 2, 1, 16, (), 0.0, (EntryTrace(1, PARENT),))
    older = msgspec.msgpack.decode(encode_frame(frame)[4:], type=BarePeerFrame)
    assert older.sequence == 16


# -- proxies ----------------------------------------------------------------------------------------------------------


def test_a_proxy_takes_a_traceparent_from_grpc_and_http(spans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYKEEPER_TRACE_RATE", "0")
    with etcd_port() as port, grpc.insecure_channel(port.endpoint) as channel:
        put, get = (channel.unary_unary(f"/etcdserverpb.KV/{name}") for name in ("Put", "Range"))
        put(b"\x0a\x01a", timeout=PATIENCE)
        put(b"\x0a\x01a", timeout=PATIENCE, metadata=[("traceparent", PARENT)])
        until(lambda: [each["name"] for each in read(spans)].count("raykeeper.put") == 1)
        get(b"\x0a\x01a", timeout=PATIENCE, metadata=[("traceparent", PARENT)])
        until(lambda: [each["name"] for each in read(spans)].count("raykeeper.range") == 1)
        body = b'{"key": "YQ=="}'
        assert request(port.endpoint, "POST", "/v3/kv/put", body, {"traceparent": PARENT}).status == 200
        assert request(port.endpoint, "POST", "/v3/kv/put", body, {"traceparent": "odd"}).status == 200
        until(lambda: [each["name"] for each in read(spans)].count("raykeeper.put") == 2)
    roots = [each for each in read(spans) if each["kind"] == "client"]
    assert {each["traceId"] for each in roots} == {PARENT[3:35]}
    assert {each["parentSpanId"] for each in roots} == {PARENT[36:52]}


# -- files ------------------------------------------------------------------------------------------------------------


def a_span(tracer: Tracer) -> OpenSpan:
    span = tracer.open("x", "client", None, 1.0, {})
    span.parts.append(EndedSpan("y", 1.0, 2.0, {}))
    span.end_at = 2.0
    return span


def test_a_file_is_bounded_and_private(tmp_path: Path) -> None:
    path = tmp_path / "spans"
    sink = SpanFile(str(path), most_bytes=2000)
    tracer = Tracer(sink)
    for _ in range(100):
        sink.write([a_span(tracer)])
    sizes = [each.stat().st_size for each in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 2000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert all(each["name"] in "xy" for each in read(path))


def test_a_folder_keeps_the_newest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.span_files.TRACE_FOLDER_FILES", 3)
    for number in range(5):
        old = tmp_path / f"spans-host-{number}.jsonl"
        old.write_text("")
        os.utime(old, (number, number))
    (tmp_path / "other").write_text("")
    sink = SpanFile(str(tmp_path))
    sink.write([a_span(Tracer(sink))])
    names = {each.name for each in tmp_path.iterdir()}
    assert {"other", "spans-host-4.jsonl", "spans-host-3.jsonl"} < names
    assert len(names) == 4


def test_a_full_disk_harms_no_request() -> None:
    tracer = Tracer(SpanFile("/dev/full"))
    tracer.ended(a_span(tracer))
    until(lambda: tracer.dropped == 1)
    tracer.close()
    tracer.close()


def test_too_many_spans_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.tracing.MAX_SPANS_WAITING", 0)
    tracer = Tracer(Kept())
    tracer.ended(a_span(tracer))
    assert tracer.dropped == 1
    assert tracer._thread is None
