"""The handle against a real state machine: what every call returns, and how it ends."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import cloudpickle
import pytest

from lab.client.cluster import FakeCluster, connect, serve
from lab.patience import PATIENCE, failure
from raykeeper import (
    END,
    KEEP,
    Client,
    ClusterMismatch,
    ClusterNotFound,
    CompactedError,
    Compare,
    DecodeError,
    FutureRevisionError,
    InvalidArgument,
    KeyValue,
    LeaseNotFound,
    Op,
    RequestTimeout,
    RequestTooLarge,
    SessionExpired,
    Unavailable,
    codec,
)
from raykeeper.limits import Limits, Settings
from raykeeper.schema.commands import ClientWrite, ClientWrites
from raykeeper.schema.frames import Reads, Writes
from raykeeper.schema.operations import Compact, Put


def keys(items: Any) -> list[bytes]:
    return [item.key for item in items]


# --- calls and results -----------------------------------------------------------------------------------------------


def test_put_and_get(kv: Client) -> None:
    first = kv.put("k", "v")
    assert first.prev is None
    second = kv.put(b"k", b"w", prev=True)
    assert second.revision == first.revision + 1
    assert second.prev == KeyValue(b"k", b"v", first.revision, first.revision, 1)
    found = kv.get("k")
    assert found == KeyValue(b"k", b"w", first.revision, second.revision, 2)
    assert found is not None
    assert (found.value, found.text, found.lease) == (b"w", "w", 0)
    past = kv.get("k", revision=first.revision)
    assert past is not None
    assert past.value == b"v"
    assert kv.get("nothing") is None
    assert kv.revision() == second.revision


def test_keep_leaves_what_is_there(kv: Client) -> None:
    kv.put("k", "v")
    kv.put("k", KEEP)
    found = kv.get("k")
    assert found is not None
    assert (found.value, found.version) == (b"v", 2)
    kv.put("k", "w", lease=KEEP)
    with pytest.raises(InvalidArgument, match="KEEP"):
        kv.put("nothing", KEEP)
    with pytest.raises(LeaseNotFound):
        kv.put("k", "v", lease=12345)


def test_any_bytes_are_a_key_and_any_a_value(kv: Client) -> None:
    for key in (b"", b"\0", b"\xff" * 5, bytes(range(256)), "Schlüssel"):
        kv.put(key, b"")
        found = kv.get(key)
        assert found is not None
        assert found.value == b""
    kv.put("large", b"x" * 1_000_000)
    found = kv.get("large")
    assert found is not None
    assert len(found.value) == 1_000_000


def test_ranges(kv: Client) -> None:
    for key in "abcde":
        kv.put(key, key.upper())
    assert keys(kv.range("b", "d")) == [b"b", b"c"]
    assert keys(kv.range("c", END)) == [b"c", b"d", b"e"]
    assert keys(kv.range("c")) == [b"c"]
    assert keys(kv.range(prefix="")) == [b"a", b"b", b"c", b"d", b"e"]
    assert keys(kv.range("d", "b")) == []
    result = kv.range(prefix=b"", limit=2, order="descend")
    assert keys(result) == [b"e", b"d"]
    assert (result.count, result.more, len(result)) == (5, True, 2)
    only = kv.range(prefix=b"", keys_only=True)
    assert [item.value for item in only] == [b""] * 5
    counted = kv.range(prefix=b"", count_only=True)
    assert (counted.items, counted.count, counted.more) == ((), 5, False)
    assert keys(kv.range(prefix=b"", serializable=True)) == keys(only)
    assert keys(kv.range("a", END, revision=3)) == [b"a", b"b"]


def test_delete(kv: Client) -> None:
    for key in "abcde":
        kv.put(key, key)
    revision = kv.revision()
    gone = kv.delete("a", prev=True)
    assert (gone.deleted, keys(gone.prev), gone.revision) == (1, [b"a"], revision + 1)
    assert kv.delete("a").deleted == 0
    assert kv.delete("b", "d").deleted == 2
    assert kv.delete(prefix="").deleted == 2
    assert kv.range(prefix="").count == 0


def test_a_transaction_answers_each_operation_in_its_own_kind(kv: Client) -> None:
    kv.put("a", "1")
    result = kv.txn(
        compare=[Compare.version("a") == 1, Compare.value("a") == "1", Compare.create_revision("b") == 0],
        success=[
            Op.put("b", "2", prev=True),
            Op.get("b"),
            Op.get("c"),
            Op.range(prefix="", keys_only=True),
            Op.txn(compare=[Compare.lease("a") != 0], failure=[Op.delete("a", prev=True)]),
        ],
    )
    assert result.succeeded
    put, got, missing, ranged, inner = result.responses
    assert put.revision == result.revision  # type: ignore[union-attr]
    assert got.value == b"2"  # type: ignore[union-attr]
    assert missing is None
    assert [item.value for item in ranged] == [b"", b""]  # type: ignore[union-attr]
    assert not inner.succeeded  # type: ignore[union-attr]
    assert keys(inner.responses[0].prev) == [b"a"]  # type: ignore[union-attr]
    assert not kv.txn(compare=[Compare.mod_revision(prefix="") > 1000], success=[Op.put("x", "")]).succeeded
    assert kv.txn().succeeded


def test_compaction(kv: Client) -> None:
    first = kv.put("k", "1").revision
    last = kv.put("k", "2").revision
    kv.compact(last)
    with pytest.raises(CompactedError) as caught:
        kv.get("k", revision=first)
    assert caught.value.compact_revision == last
    with pytest.raises(CompactedError):
        kv.compact(last)
    with pytest.raises(FutureRevisionError):
        kv.compact(last + 100)
    with pytest.raises(FutureRevisionError):
        kv.get("k", revision=last + 100)


def test_the_same_request_id_takes_effect_once(kv: Client) -> None:
    first = kv.put("k", "1", request_id="job-1")
    kv.put("k", "2")
    assert kv.put("k", "1", request_id=b"job-1") == first
    found = kv.get("k")
    assert found is not None
    assert found.value == b"2"


# --- long ranges -----------------------------------------------------------------------------------------------------


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """A cluster whose pages hold seven keys."""
    cluster = FakeCluster(settings=Settings(limits=Limits(max_page_items=7)))
    serve(monkeypatch, cluster)
    return cluster


@pytest.mark.parametrize("scan", [1, 12, 1000])
@pytest.mark.parametrize("limit", [0, 1, 6, 7, 8, 14, 15, 40, 50])
@pytest.mark.parametrize("order", ["ascend", "descend"])
@pytest.mark.parametrize("sort", [None, "key", "version", "create_revision", "mod_revision", "value"])
def test_pages_make_up_the_range_that_was_asked_for(
    paged: FakeCluster, limit: int, order: str, sort: str | None, scan: int
) -> None:
    """However many keys a member looks at before it answers with a part; those that are gone count there too."""
    paged.read_scan = scan
    kv = connect().namespace("n/")
    for i in range(40):
        kv.put(b"%02d" % (i * 7 % 40), b"%d" % (i % 5))
    for i in range(0, 40, 3):
        kv.put(b"%02d" % i, b"x")
    for i in range(25):
        kv.put(b"1%dgone" % (i % 10) + b"%d" % i, b"")
    kv.delete(b"10gone", end=b"20")
    for i in range(11, 20):
        kv.put(b"%d" % i, b"%d" % (i % 5) if i % 3 else b"x")
    whole = list(kv.range(prefix="", limit=0, serializable=True))
    assert keys(whole) == [b"%02d" % i for i in range(40)]
    attribute = sort or "key"
    wanted = sorted(whole, key=lambda kv: getattr(kv, attribute), reverse=order == "descend")  # stable: then by key
    before = paged.count(Reads)
    result = kv.range(prefix="", limit=limit, sort=sort, order=order)
    assert paged.count(Reads) >= before + 40 // scan
    assert list(result) == wanted[: limit or None]
    assert (result.count, result.more) == (40, 0 < limit < 40)
    only = kv.range(prefix="", limit=limit, sort=sort, order=order, keys_only=True)
    assert keys(only) == keys(result)
    assert not any(item.value for item in only)


def test_only_a_range_with_a_limit_has_the_keys_counted_that_a_page_leaves_out(paged: FakeCluster) -> None:
    kv = connect()
    for i in range(20):
        kv.put(b"%02d" % i, b"")
    for limit in (0, 3):
        before = len(paged.requests)
        assert kv.range(prefix="", limit=limit).count == 20
        asked = [frame.reads[0].range for _, frame in paged.requests[before:] if isinstance(frame, Reads)]
        assert [each.uncounted for each in asked] == ([True] * 3 if limit == 0 else [False])


def test_all_pages_are_of_one_revision(paged: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = connect()
    for i in range(20):
        kv.put(b"%02d" % i, b"old")
    revision = kv.revision()
    meanwhile = connect()
    ask = FakeCluster._answer

    def meddle(self: FakeCluster, member: int, request: Any) -> Any:
        answer = ask(self, member, request)
        if isinstance(request, Reads):
            self.leader = self.leader % 3 + 1
            threading.Thread(target=lambda: meanwhile.put("15", "new", timeout=1)).start()
        return answer

    monkeypatch.setattr(FakeCluster, "_answer", meddle)
    result = kv.range(prefix="")
    assert [item.value for item in result] == [b"old"] * 20
    assert result.revision == revision


@pytest.mark.parametrize("pinned", [False, True])
def test_a_range_that_is_compacted_between_two_pages(
    paged: FakeCluster, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    """It is read again, at a newer revision, unless the caller named the revision."""
    kv = connect()
    for i in range(20):
        kv.put(b"%02d" % i, b"")
    revision = kv.revision()
    ask = FakeCluster._answer
    compacted = []

    def meddle(self: FakeCluster, member: int, request: Any) -> Any:
        answer = ask(self, member, request)
        if isinstance(request, Reads) and not compacted:
            compacted.append(True)
            writes = (ClientWrite(10**6, Put(b"uzz", b"")), ClientWrite(10**6 + 1, Compact(revision + 1)))
            self._apply(ClientWrites(next(iter(self.state.sessions)), 0, writes))
        return answer

    monkeypatch.setattr(FakeCluster, "_answer", meddle)
    if pinned:
        with pytest.raises(CompactedError):
            kv.range(prefix="", revision=revision)
    else:
        assert kv.range(prefix="").count == 21


def test_the_clusters_own_limits_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(settings=Settings(limits=Limits(max_request_bytes=2_000_000)))
    serve(monkeypatch, cluster)
    with connect() as kv:
        kv.put("k", b"x" * 1_900_000)
        with pytest.raises(RequestTooLarge):
            kv.put("k", b"x" * 2_000_001)


# --- namespaces and codecs -------------------------------------------------------------------------------------------


def test_a_namespace_sees_itself_and_nothing_else(kv: Client) -> None:
    inside = kv.namespace("a/").namespace(b"b/")
    assert inside.prefix == b"a/b/"
    for key in ("a", "a/", "a/b", "a/b0", "b"):
        kv.put(key, "outside")
    inside.put("k", "inside")
    inside.put("", "root")
    assert keys(inside.range(prefix="")) == [b"", b"k"]
    assert keys(inside.range("", END)) == [b"", b"k"]
    assert keys(kv.range(prefix="a/b/")) == [b"a/b/", b"a/b/k"]
    result = inside.txn(
        compare=[Compare.value("k") == "inside", Compare.version(prefix="") == 1, Compare.version("a") == 0],
        success=[Op.put("l", "", prev=True), Op.range("a", END)],
    )
    assert result.succeeded
    assert keys(result.responses[1]) == [b"k", b"l"]
    assert keys(inside.txn(success=[Op.delete(prefix="", prev=True)]).responses[0].prev) == [b"", b"k", b"l"]  # type: ignore[union-attr]
    assert inside.delete("", END).deleted == 0
    assert kv.range(prefix="").count == 5


def test_a_namespace_of_the_highest_bytes(kv: Client) -> None:
    kv.put(b"\xff", "outside")
    top = kv.namespace(b"\xff\xff")
    top.put(b"\xff", "1")
    assert keys(top.range(prefix=b"")) == [b"\xff"]
    assert keys(top.range(b"", END)) == [b"\xff"]


def test_json_values_are_objects(kv: Client) -> None:
    objects = kv.with_codec(codec.JSON)
    value = {"b": [1, 2.5, None, True], "a": "ä"}
    objects.put("k", value)
    found = objects.get("k")
    assert found is not None
    assert found.value == value
    assert objects.txn(compare=[Compare.value("k") == {"a": "ä", "b": [1, 2.5, None, True]}]).succeeded
    assert objects.range(prefix="", keys_only=True).items[0].value == b""
    assert objects.put("k", 1, prev=True).prev.value == value  # type: ignore[union-attr]
    with pytest.raises(InvalidArgument, match="encode"):
        objects.put("k", object())
    with pytest.raises(InvalidArgument, match="compared"):
        objects.txn(compare=[Compare.value("k") > 3])
    assert kv.get("k").value == b"1"  # type: ignore[union-attr]


def test_a_value_that_the_codec_cannot_read(kv: Client) -> None:
    objects = kv.with_codec(codec.JSON)
    kv.put("k", b"\xff{")
    found = objects.get("k")
    assert found is not None
    assert found.raw == b"\xff{"
    with pytest.raises(DecodeError, match="key b'k'"):
        _ = found.value
    with pytest.raises(DecodeError):
        _ = found.text
    # a write that took effect is not an error, whatever was there before
    previous = objects.put("k", 1, prev=True).prev
    assert previous is not None
    assert previous.raw == b"\xff{"


def test_cloudpickle_takes_anything(kv: Client) -> None:
    objects = kv.with_codec(codec.CLOUDPICKLE)
    objects.put("f", lambda x: x + 1)
    found = objects.get("f")
    assert found is not None
    assert found.value(2) == 3
    with pytest.raises(InvalidArgument, match="compared"):
        objects.txn(compare=[Compare.value("f") == 3])


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_results_and_codecs_pickle(kv: Client, pickler: Any) -> None:
    assert pickler.loads(pickler.dumps(codec.JSON)) is codec.JSON
    assert pickler.loads(pickler.dumps(codec.CLOUDPICKLE)) is codec.CLOUDPICKLE
    objects = kv.with_codec(codec.JSON)
    put = objects.put("k", [1])
    ranged = objects.range(prefix="")
    result = objects.txn(success=[Op.get("k"), Op.delete("k", prev=True)])
    for each in (put, ranged, result):
        assert pickler.loads(pickler.dumps(each)) == each
    assert pickler.loads(pickler.dumps(ranged)).items[0].value == [1]


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_closed_handle_says_so(kv: Client) -> None:
    other = connect()
    inner, aio = other.namespace("n/"), other.aio
    other.close()
    other.close()
    for call in (
        lambda: other.put("k", "v"),
        lambda: other.get("k"),
        lambda: other.namespace("x"),
        lambda: other.aio,
        lambda: other.__enter__(),
        lambda: pickle.dumps(other),
    ):
        with pytest.raises(InvalidArgument, match="closed") as caught:
            call()
        assert caught.value.applied is False
    assert other.closed
    assert aio.closed
    assert "closed" in repr(other)
    inner.put("k", "v")  # a handle of its own
    kv.put("k", "v")


def test_a_timeout_of_zero_sends_nothing(kv: Client, cluster: FakeCluster) -> None:
    for call in (lambda: kv.put("k", "v", timeout=0), lambda: kv.get("k", timeout=0), lambda: kv.revision(timeout=0)):
        with pytest.raises(RequestTimeout) as caught:
            call()
        assert caught.value.applied is False
    with pytest.raises(RequestTimeout):
        kv.with_timeout(0).put("k", "v")
    assert cluster.requests == []


def test_no_answer_in_time(kv: Client, cluster: FakeCluster) -> None:
    kv.put("k", "v")
    cluster.gate.clear()
    with pytest.raises(RequestTimeout) as caught:
        kv.put("k", "w", timeout=0.1)
    assert caught.value.applied is None
    with pytest.raises(RequestTimeout) as caught:
        kv.get("k", timeout=0.1)
    assert caught.value.applied is False
    cluster.gate.set()


def test_no_quorum(kv: Client, cluster: FakeCluster) -> None:
    kv.put("k", "v")
    cluster.leader = 0
    error = failure(lambda: kv.put("k", "w", timeout=0.5), Unavailable, "not leader")
    assert error.applied is None
    cluster.broken = {1, 2, 3}
    error = failure(lambda: kv.get("k", timeout=0.5), Unavailable, "broken")
    assert error.applied is False
    cluster.broken, cluster.leader = set(), 2
    kv.put("k", "w")


def test_a_change_of_leader_is_not_noticed(kv: Client, cluster: FakeCluster) -> None:
    for leader in (1, 2, 3, 1):
        cluster.leader = leader
        kv.put("k", "v")
    found = kv.get("k")
    assert found is not None
    assert found.version == 4


def test_a_silent_leader_is_left(kv: Client, cluster: FakeCluster) -> None:
    kv.put("k", "v")
    cluster.mute, cluster.leader = {1}, 2
    kv.put("k", "w", timeout=PATIENCE)
    assert kv.get("k", timeout=PATIENCE).version == 2  # type: ignore[union-attr]


def test_an_expired_session(kv: Client, cluster: FakeCluster) -> None:
    kv.put("k", "v")
    cluster.expire_sessions()
    with pytest.raises(SessionExpired) as caught:
        kv.put("k", "w")
    assert caught.value.applied is None
    kv.put("k", "w")


def test_a_cluster_that_took_the_place_of_the_old_one(kv: Client, cluster: FakeCluster) -> None:
    kv.put("k", "v")
    cluster.foreign = {1, 2, 3}
    with pytest.raises(ClusterMismatch) as caught:
        kv.put("k", "w")
    assert caught.value.applied is False


# --- finding the cluster ---------------------------------------------------------------------------------------------


def test_no_such_cluster(cluster: FakeCluster) -> None:
    with pytest.raises(ClusterNotFound, match="'other'"):
        connect("other")


def test_members_that_do_not_serve_or_do_not_answer(cluster: FakeCluster) -> None:
    cluster.not_serving = {1, 2, 3}
    failure(lambda: connect(timeout=0.3), Unavailable, "its disk is gone")
    cluster.not_serving, cluster.broken, cluster.leader = {1}, {2}, 3
    with connect() as kv:
        kv.put("k", "v")


def test_a_pickled_handle_finds_another_cluster(cluster: FakeCluster) -> None:
    data = pickle.dumps(Client("test", 0x99))
    with pytest.raises(ClusterMismatch, match="0x99"):
        pickle.loads(data).put("k", "v", timeout=PATIENCE)
    assert cluster.requests == []


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_pickled_handle_is_the_same_view_of_the_same_cluster(kv: Client, cluster: FakeCluster, pickler: Any) -> None:
    handle = kv.namespace("a/").with_codec(codec.JSON).with_timeout(3)
    data = pickler.dumps(handle)
    assert len(data) < 400
    copy = pickler.loads(data)
    assert (copy.prefix, copy.codec, copy.timeout) == (b"a/", codec.JSON, 3.0)
    assert (copy.cluster_name, copy.cluster_id) == ("test", 0x77)
    copy.put("k", [1])
    assert handle.get("k").value == [1]  # type: ignore[union-attr]
    assert cluster.transports == 1, "one process has one hub"
    assert isinstance(pickler.loads(pickler.dumps(kv.aio)), type(kv.aio))


def test_concurrent_callers_share_frames(kv: Client, cluster: FakeCluster) -> None:
    kv.put("first", "")
    cluster.gate.clear()
    threads = [threading.Thread(target=kv.put, args=(f"k{i}", "v")) for i in range(100)]
    for thread in threads:
        thread.start()
    while kv._share.hub._dispatch_core.pending < 100:  # type: ignore[union-attr]
        threading.Event().wait(0.001)
    before = cluster.count(Writes)
    cluster.gate.set()
    for thread in threads:
        thread.join()
    assert cluster.count(Writes) - before <= 12
    assert kv.range(prefix="k", count_only=True).count == 100
