"""What every answer says about the cluster: its newest revision and its Raft term (etcd: ResponseHeader)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE
from raykeeper import Client
from raykeeper.actors.client.core.in_flight import LeaseQuestion
from raykeeper.actors.client.view import Call
from raykeeper.schema.answers import LeaseGranted, RangeAnswer
from raykeeper.schema.frames import KeepLeases, LeasesKept, LeaseStatuses, Read
from raykeeper.schema.operations import KeyRange, LeaseGrant, Range


@pytest.fixture(scope="module")
def member() -> Iterator[OneMember]:
    with one_member() as member:
        yield member


@pytest.fixture
def kv(member: OneMember) -> Iterator[Client]:
    with member.client() as kv:
        kv.put("k", "1")
        kv.put("k", "2")
        yield kv


def ask(kv: Client, request: Any) -> Any:
    return kv._hub(PATIENCE).call(Call(request), PATIENCE)


def test_a_read_of_the_past_names_the_newest_revision(kv: Client) -> None:
    newest = kv.revision()
    first = kv.range("k").items[0].create_revision
    for part in (KeyRange(b"uk"), KeyRange(b"u", b"v")):
        answer = ask(kv, Read(Range(part, first)))
        assert isinstance(answer, RangeAnswer)
        assert answer.revision == newest > first
    assert kv.range("k", revision=first).revision == first


def test_leases_are_answered_with_the_revision(kv: Client) -> None:
    newest = kv.revision()
    granted = ask(kv, LeaseGrant(0, 10.0))
    assert granted == LeaseGranted(granted.id, 10.0, newest)
    told = ask(kv, LeaseQuestion((granted.id,), False))
    assert isinstance(told, LeaseStatuses)
    assert told.revision == newest


def test_the_newest_term_is_known_from_any_answer(member: OneMember, kv: Client) -> None:
    router = kv._hub(5.0)._router
    term = member.loop.replica.term
    assert term > 0
    for request in (LeaseGrant(0, 10.0), Read(Range(KeyRange(b"u"))), LeaseQuestion((), False)):
        router.term = 0
        ask(kv, request)
        assert router.term == term, request
    router.term = 0
    with kv.watch("k"):
        assert router.term == term
    with kv.lease(60.0) as lease:
        frame = KeepLeases(member.cluster, PATIENCE, (lease.id,))
        kept = member.ask(frame)
        assert isinstance(kept, LeasesKept)
        assert (kept.term, kept.revision) == (term, kv.revision())
