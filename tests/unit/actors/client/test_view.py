"""What users may pass in, and what the calls make of it."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raykeeper
from lab.client.cluster import FakeCluster
from raykeeper import END, KEEP, Client, Compare, InvalidArgument, Op, RequestTooLarge
from raykeeper.actors.client.view import View, prefix_end
from raykeeper.schema.operations import KeyRange


class NotAKey:
    pass


BAD_ARGUMENTS: dict[str, Any] = {
    "a key that is not str or bytes": lambda kv: kv.put(7, "v"),
    "a key of None": lambda kv: kv.put(None, "v"),
    "a key with half a surrogate": lambda kv: kv.put("\ud800", "v"),
    "a value that is not str or bytes": lambda kv: kv.put("k", 7),
    "a value of None": lambda kv: kv.put("k", None),
    "a lease that is none": lambda kv: kv.put("k", "v", lease="seven"),
    "a lease of 65 bits": lambda kv: kv.put("k", "v", lease=-(2**63) - 1),
    "a lease of True": lambda kv: kv.put("k", "v", lease=True),
    "prev that is not a bool": lambda kv: kv.put("k", "v", prev=1),
    "an empty request_id": lambda kv: kv.put("k", "v", request_id=""),
    "a request_id that is a number": lambda kv: kv.put("k", "v", request_id=7),
    "get of a number": lambda kv: kv.get(7),
    "get at a negative revision": lambda kv: kv.get("k", revision=-1),
    "get at revision 0": lambda kv: kv.get("k", revision=0),
    "get at half a revision": lambda kv: kv.get("k", revision=1.5),
    "get at a revision beyond 63 bits": lambda kv: kv.get("k", revision=2**63),
    "at_least without serializable": lambda kv: kv.get("k", at_least=3),
    "a negative at_least": lambda kv: kv.get("k", serializable=True, at_least=-3),
    "serializable that is not a bool": lambda kv: kv.get("k", serializable="yes"),
    "neither key nor prefix": lambda kv: kv.range(),
    "both key and prefix": lambda kv: kv.range("a", prefix="b"),
    "end with prefix": lambda kv: kv.range(end="z", prefix="b"),
    "end without key": lambda kv: kv.range(end="z"),
    "an empty end": lambda kv: kv.range("a", ""),
    "an end that is a number": lambda kv: kv.range("a", 7),
    "a negative limit": lambda kv: kv.range(prefix="a", limit=-1),
    "a limit of True": lambda kv: kv.range(prefix="a", limit=True),
    "a limit of None": lambda kv: kv.range(prefix="a", limit=None),
    "an unknown sort": lambda kv: kv.range(prefix="a", sort="size"),
    "an unknown order": lambda kv: kv.range(prefix="a", order="down"),
    "keys_only that is not a bool": lambda kv: kv.range(prefix="a", keys_only=None),
    "a delete of nothing": lambda kv: kv.delete(),
    "a delete of both": lambda kv: kv.delete("a", prefix="a"),
    "a comparison that is a bool": lambda kv: kv.txn(compare=[True]),
    "a comparison without its second half": lambda kv: kv.txn(compare=[Compare.version("k")]),
    "an operation that is a call": lambda kv: kv.txn(success=["put"]),
    "one operation without a list": lambda kv: kv.txn(success=Op.get("k")),
    "a bad operation inside": lambda kv: kv.txn(success=[Op.txn(success=[Op.put(7, "v")])]),
    "a version compared with text": lambda kv: kv.txn(compare=[Compare.version("k") == "0"]),
    "a value compared with a number": lambda kv: kv.txn(compare=[Compare.value("k") == 0]),
    "a comparison of no key": lambda kv: kv.txn(compare=[Compare.version() == 0]),
    "compaction to 0": lambda kv: kv.compact(0),
    "compaction to text": lambda kv: kv.compact("5"),
    "a timeout that is text": lambda kv: kv.get("k", timeout="1"),
    "a negative timeout": lambda kv: kv.get("k", timeout=-1),
    "a timeout that is not a number": lambda kv: kv.get("k", timeout=float("nan")),
    "a namespace of a number": lambda kv: kv.namespace(7),
    "a codec that is none": lambda kv: kv.with_codec("json"),
    "a default timeout of None": lambda kv: kv.with_timeout(None),
}


@pytest.mark.parametrize("what", BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_before_anything_is_sent(what: str, kv: Client, cluster: FakeCluster) -> None:
    with pytest.raises(InvalidArgument) as caught:
        BAD_ARGUMENTS[what](kv)
    assert caught.value.applied is False
    assert isinstance(caught.value, ValueError)
    assert cluster.requests == []


def test_requests_over_the_limits_are_refused_before_anything_is_sent(kv: Client, cluster: FakeCluster) -> None:
    for call in (
        lambda: kv.put("k" * 20_000, "v"),
        lambda: kv.put("k", b"v" * 2_000_000),
        lambda: kv.get("k" * 20_000),
        lambda: kv.put("k", "v", request_id="r" * 1000),
        lambda: kv.txn(success=[Op.put("k", b"v" * 1_000_000)] * 2),
        lambda: kv.txn(success=[Op.get("k")] * 129),
        lambda: kv.txn(success=[nested(128)]),
    ):
        with pytest.raises(RequestTooLarge) as caught:
            call()
        assert caught.value.applied is False
    assert cluster.requests == []


def nested(depth: int) -> Op:
    return Op.txn(success=[nested(depth - 1)] if depth else [])


@given(st.binary(max_size=4), st.lists(st.binary(max_size=6)))
def test_a_prefix_ends_after_all_keys_that_begin_with_it(prefix: bytes, keys: list[bytes]) -> None:
    end = prefix_end(prefix)
    for key in [*keys, prefix, prefix + b"\xff\xff"]:
        inside = key >= prefix and (not end or key < end)
        assert inside == key.startswith(prefix)


@given(st.binary(max_size=3), st.binary(max_size=3), st.binary(min_size=1, max_size=3))
def test_no_range_leaves_its_namespace(space: bytes, key: bytes, end: bytes) -> None:
    view = View(b"u" + space, None)
    last = prefix_end(view.space)
    for keys in (view.keys(key, None, None), view.keys(key, end, None), view.keys(key, END, None)):
        assert keys.key.startswith(view.space)
        assert keys.end is None or view.space <= keys.end <= last
        assert keys.end != b""
    assert view.keys(None, None, b"") == KeyRange(view.space, last)


def test_parts_of_transactions_say_what_they_are_and_pickle() -> None:
    condition = Compare.mod_revision("k") < 7
    assert repr(condition) == "<mod_revision of 'k' less 7>"
    assert repr(Op.put("k", "v", lease=KEEP)) == "Op.put(key='k', value='v', lease=raykeeper.KEEP)"
    with pytest.raises(TypeError, match="compare"):
        bool(condition)
    for pickler in (pickle, cloudpickle):
        copy = pickler.loads(pickler.dumps([condition, Op.range("a", END), KEEP, END]))
        assert repr(copy) == repr([condition, Op.range("a", END), KEEP, END])
        assert copy[2] is KEEP
        assert copy[3] is END


def test_comparisons_read_the_same_from_both_sides() -> None:
    assert repr(0 == Compare.version("k")) == repr(Compare.version("k") == 0)  # noqa: SIM300
    assert repr(3 < Compare.version("k")) == repr(Compare.version("k") > 3)  # noqa: SIM300


def test_the_public_names_are_there() -> None:
    for name in raykeeper.__all__:
        assert getattr(raykeeper, name) is not None
