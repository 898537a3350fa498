"""Which of etcd's errors stands for which of ours."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from lab.patience import PATIENCE
from lab.proxy_services import LabProxy, lab_proxy
from raykeeper.actors.client.core.failures import failure
from raykeeper.actors.proxy.etcd_errors import (
    COMPACTED,
    DUPLICATE_KEY,
    FUTURE_REVISION,
    KEY_NOT_FOUND,
    LEARNER_NOT_READY,
    LEASE_EXISTS,
    LEASE_NOT_FOUND,
    NO_LEADER,
    NO_SPACE,
    NOT_ENOUGH_STARTED,
    REQUEST_TOO_LARGE,
    TIMED_OUT,
    TOO_MANY_REQUESTS,
    from_keeper_error,
)
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import PutRequest, RangeRequest
from raykeeper.errors import KeeperError, RequestTimeout, RequestTooLarge, SessionExpired, Unavailable
from raykeeper.schema.answers import Failed, Reason


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (Reason.COMPACTED, COMPACTED),
        (Reason.FUTURE_REVISION, FUTURE_REVISION),
        (Reason.LEASE_NOT_FOUND, LEASE_NOT_FOUND),
        (Reason.LEASE_EXISTS, LEASE_EXISTS),
        (Reason.KEY_NOT_FOUND, KEY_NOT_FOUND),
        (Reason.SESSION_EXPIRED, TIMED_OUT),
        (Reason.BELOW_MARK, TIMED_OUT),
        (Reason.TOO_LARGE, REQUEST_TOO_LARGE),
        (Reason.FULL, TOO_MANY_REQUESTS),
        (Reason.INVALID, DUPLICATE_KEY),
        (Reason.NO_SPACE, NO_SPACE),
        (Reason.NOT_CAUGHT_UP, LEARNER_NOT_READY),
        (Reason.NO_QUORUM, NOT_ENOUGH_STARTED),
    ],
)
def test_refusals_of_the_state_machine(reason: Reason, expected: object) -> None:
    error = from_keeper_error(failure(Failed(reason, 5), maybe_applied=False))
    assert (error.code, error.text) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unavailable("", applied=None), TIMED_OUT),
        (Unavailable(""), NO_LEADER),
        (RequestTimeout("", applied=None), TIMED_OUT),
        (RequestTimeout(""), TIMED_OUT),
        (SessionExpired("", applied=None), TIMED_OUT),
        (RequestTooLarge(""), REQUEST_TOO_LARGE),
        (RequestTooLarge("", applied=None), TIMED_OUT),
        (failure(Failed(Reason.FULL), maybe_applied=True), TIMED_OUT),
    ],
)
def test_an_unknown_outcome_is_always_a_time_out(error: KeeperError, expected: object) -> None:
    """After that no client of etcd repeats a write by itself."""
    found = from_keeper_error(error)
    assert (found.code, found.text) == expected


def test_an_error_is_made_anew_each_time() -> None:
    assert COMPACTED.error() is not COMPACTED.error()


@pytest.fixture
def proxy() -> Iterator[LabProxy]:
    with lab_proxy() as proxy:
        yield proxy


def test_a_cluster_that_does_not_answer(proxy: LabProxy) -> None:
    put = PutRequest(key=b"a").SerializeToString()
    assert isinstance(proxy.call("/etcdserverpb.KV/Put", put), bytes)
    proxy.member.cut = True
    try:
        assert proxy.call("/etcdserverpb.KV/Put", put, 0.3) == TIMED_OUT
        read = proxy.call("/etcdserverpb.KV/Range", RangeRequest(key=b"a").SerializeToString(), 0.3)
        assert read in (TIMED_OUT, NO_LEADER)
    finally:
        proxy.member.cut = False


def test_more_requests_than_a_process_may_have_open(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    core = proxy.backend.hub._dispatch_core
    monkeypatch.setattr(core, "_limits", msgspec.structs.replace(core._limits, max_pending_requests=0))
    put = PutRequest(key=b"a").SerializeToString()
    assert proxy.call("/etcdserverpb.KV/Put", put, PATIENCE) == TOO_MANY_REQUESTS
