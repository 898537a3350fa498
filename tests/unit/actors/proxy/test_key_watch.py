"""``/kv/<key>?watch``: changes as server-sent events and as lines, resumed, compacted, and by one line of curl."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import request
from lab.patience import PATIENCE, until
from raykeeper import Op
from raykeeper.actors.proxy import key_watch
from raykeeper.errors import CompactedError

CURL = shutil.which("curl")


@pytest.fixture(scope="module")
def port() -> Iterator[EtcdPort]:
    with etcd_port() as port:
        yield port


@pytest.fixture(autouse=True)
def empty(port: EtcdPort) -> None:
    port.proxy.kv.delete(prefix="")


class Message(NamedTuple):
    """A server-sent event, read as browsers read it; an ``id`` without data brings no event."""

    id: str
    event: str
    data: Any

    @property
    def key(self) -> bytes:
        return b64decode(self.data["key"])

    @property
    def value(self) -> bytes:
        return b64decode(self.data["value"])


class Stream:
    """A stream of server-sent events."""

    def __init__(self, reply: http.client.HTTPResponse) -> None:
        self.reply = reply
        self.last_id = ""
        self.revision = int(reply.getheader("x-raykeeper-revision", ""))

    def __iter__(self) -> Iterator[Message]:
        event, data = "message", b""
        for line in self.reply:
            name, _, value = line.rstrip(b"\n").partition(b": ")
            if name == b"id":
                self.last_id = value.decode()
            elif name == b"event":
                event = value.decode()
            elif name == b"data":
                data += value
            elif not name:
                if data:
                    yield Message(self.last_id, event, json.loads(data))
                event, data = "message", b""

    def take(self, count: int) -> list[Message]:
        messages = iter(self)
        return [next(messages) for _ in range(count)]

    def wait_for_id(self, id: str) -> None:
        """Read until this id has come, with or without an event."""
        while self.last_id != id:
            line = self.reply.readline()
            assert line
            if line.startswith(b"id: "):
                self.last_id = line[4:-1].decode()


@contextmanager
def watching(port: EtcdPort, target: str, headers: Mapping[str, str] | None = None) -> Iterator[Stream]:
    client = http.client.HTTPConnection(port.endpoint, timeout=PATIENCE)
    try:
        client.request("GET", target, headers=dict(headers or {}))
        reply = client.getresponse()
        assert (reply.status, reply.getheader("content-type")) == (200, "text/event-stream")
        yield Stream(reply)
    finally:
        client.close()


def test_changes_of_a_prefix(port: EtcdPort) -> None:
    kv = port.proxy.kv
    with watching(port, "/kv/jobs/?prefix&watch") as stream:
        assert stream.revision == kv.revision()
        kv.put("other", "1")
        created = kv.put("jobs/1", b"\xff").revision
        deleted = kv.delete("jobs/1").revision
        put, delete = stream.take(2)
    assert (put.event, put.key, put.value, put.id) == ("put", b"jobs/1", b"\xff", str(created))
    assert put.data["create_revision"] == put.data["mod_revision"] == str(created)
    assert (delete.event, delete.key, delete.id) == ("delete", b"jobs/1", str(deleted))
    assert delete.data == {"key": put.data["key"], "path": "/kv/jobs/1", "mod_revision": str(deleted)}


def test_changes_of_one_key_with_what_was_there(port: EtcdPort) -> None:
    kv = port.proxy.kv
    with watching(port, "/kv/a?watch&prev") as stream:
        kv.put("ab", "other")
        for value in ("1", "2"):
            kv.put("a", value)
        kv.delete("a")
        messages = stream.take(3)
    assert "prev" not in messages[0].data
    assert [b64decode(each.data["prev"]["value"]) for each in messages[1:]] == [b"1", b"2"]


def test_from_a_revision_in_the_past(port: EtcdPort) -> None:
    kv = port.proxy.kv
    revisions = [kv.put("a", str(number)).revision for number in range(5)]
    with watching(port, f"/kv/a?watch&from={revisions[2]}") as stream:
        assert stream.revision == revisions[1]
        assert [each.value for each in stream.take(3)] == [b"2", b"3", b"4"]
    with watching(port, f"/kv/a?watch&from={revisions[2]}", {"Last-Event-ID": str(revisions[3])}) as stream:
        assert [each.value for each in stream.take(1)] == [b"4"]


def test_from_a_revision_in_the_future(port: EtcdPort) -> None:
    kv = port.proxy.kv
    first = kv.revision() + 2
    with watching(port, f"/kv/a?watch&from={first}") as stream:
        kv.put("a", "too early")
        kv.put("a", "1")
        (message,) = stream.take(1)
        assert (message.value, message.id) == (b"1", str(first))


def test_a_revision_that_was_cut_is_sent_again(port: EtcdPort) -> None:
    """Only the last event of a revision has its id."""
    kv = port.proxy.kv
    before = kv.put("k/0", "").revision
    revision = kv.txn(success=[Op.put(f"k/{number}", "1") for number in range(3)]).revision
    after = kv.put("k/9", "").revision
    target = f"/kv/k/?prefix&watch&from={before}"
    with watching(port, target) as stream:
        messages = stream.take(5)
    assert [each.id for each in messages] == [str(before)] * 3 + [str(revision), str(after)]
    with watching(port, target, {"Last-Event-ID": messages[1].id}) as stream:
        assert [each.key for each in stream.take(3)] == [b"k/0", b"k/1", b"k/2"]


def test_a_quiet_watch_is_told_how_far_it_has_come(port: EtcdPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_watch, "HTTP_WATCH_NOTICE_S", 0.05)
    with watching(port, "/kv/a?watch") as stream:
        stream.wait_for_id(str(stream.revision))
        revision = port.proxy.kv.put("b", "").revision
        stream.wait_for_id(str(revision))


def test_a_start_that_is_compacted(port: EtcdPort) -> None:
    kv = port.proxy.kv
    first = kv.put("a", "1").revision
    second = kv.put("a", "2").revision
    kv.compact(second)
    for target, headers in (
        (f"/kv/a?watch&from={first}", {}),
        ("/kv/a?watch", {"Last-Event-ID": str(first - 1)}),
    ):
        reply = request(port.endpoint, "GET", target, None, headers)
        assert (reply.status, reply.headers["x-raykeeper-compact-revision"]) == (410, str(second))
        assert reply.body == b"revisions below %d are compacted\n" % second
    with watching(port, f"/kv/a?watch&from={second}") as stream:
        assert [each.value for each in stream.take(1)] == [b"2"]


class _Compacted:
    """A watch whose next revision is compacted."""

    revision = 5

    async def next(self, timeout: float) -> None:
        raise CompactedError(9)

    async def cancel(self) -> None:
        pass


@pytest.mark.parametrize(
    ("form", "end"),
    [
        ("", b'event: error\ndata: {"error":"revisions below 9 are compacted","compact_revision":"9"}\n\n'),
        ("&text", b"0\terror\trevisions below 9 are compacted\n"),
    ],
)
def test_a_watch_that_is_overtaken_by_compaction(
    port: EtcdPort, monkeypatch: pytest.MonkeyPatch, form: str, end: bytes
) -> None:
    async def watch_key(*arguments: object) -> _Compacted:
        return _Compacted()

    monkeypatch.setattr(port.proxy.backend, "watch_key", watch_key)
    reply = request(port.endpoint, "GET", f"/kv/a?watch{form}")
    assert (reply.status, reply.body[-len(end) :]) == (200, end)


def test_a_lost_client_ends_its_watch(port: EtcdPort) -> None:
    watches = port.proxy.backend.hub.watch_core._watches
    until(lambda: not watches)
    with watching(port, "/kv/a?watch"):
        assert len(watches) == 1
    until(lambda: not watches)


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_one_line_of_curl(port: EtcdPort, version: str) -> None:
    if CURL is None:
        pytest.skip("there is no curl")
    kv = port.proxy.kv
    first = kv.put("jobs/1", "waiting").revision
    url = f"{port.proxy.url}/kv/jobs/?prefix&watch&text&from={first}"
    process = subprocess.Popen([CURL, "-sSN", version, url], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"%d\tput\tjobs/1\twaiting\n" % first
        second = kv.delete("jobs/1").revision
        assert process.stdout.readline() == b"%d\tdelete\tjobs/1\n" % second
    finally:
        process.kill()
        process.communicate()
