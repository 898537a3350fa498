"""Any sequence of requests of all kinds, to a real etcd and to the proxy's services: keys, leases, compactions, locks,
elections and keep-alives, while one stream of watches is open. Each answer is compared, then all that was seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.etcd_requests import contests, create, kv_requests, lease_requests, leases, watch_requests
from lab.etcd_twins import Apart, Twins, twins
from lab.etcd_watching import MARK, WATCH, Watching
from raykeeper.actors.proxy.etcdpb.election_pb2 import CampaignRequest
from raykeeper.actors.proxy.etcdpb.lock_pb2 import LockRequest
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseTimeToLiveRequest,
    RangeRequest,
    WatchRequest,
)

RANGE, TIME_TO_LIVE = "/etcdserverpb.KV/Range", "/etcdserverpb.Lease/LeaseTimeToLive"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
EVERYTHING = RangeRequest(key=b"\0", range_end=b"\0")

keep_alives = st.tuples(st.just(KEEP_ALIVE), st.builds(LeaseKeepAliveRequest, ID=leases))
watches = st.tuples(st.just(WATCH), watch_requests)
steps = st.one_of(kv_requests, kv_requests, kv_requests, lease_requests, contests, keep_alives, watches)


@pytest.fixture(scope="module")
def both() -> Iterator[Twins]:
    with twins() as both:
        yield both


class Sequence:
    """One of them, on both."""

    def __init__(self, both: Twins, watching: Watching, began: float) -> None:
        self.both = both
        self.watching = watching
        self._open: set[int] = set()
        self._began = began

    def do(self, path: str, request: Any) -> None:
        """Ask both, and compare."""
        if path == WATCH:
            self._watch(request)
        elif path == KEEP_ALIVE:
            with self.both.stream(path) as stream:
                stream.send(request)
                stream.receive()
        elif path == TIME_TO_LIVE:
            self._time_to_live(request)
        elif not (isinstance(request, LockRequest | CampaignRequest) and self._would_wait(request)):
            self.both.ask(path, request)

    def _would_wait(self, request: Any) -> bool:
        """Whether somebody else is in the line."""
        prefix = request.name + b"/"
        found = self.both.sides[0].ask(RANGE, RangeRequest(key=prefix, range_end=prefix[:-1] + b"0"))
        own = prefix + b"%x" % (request.lease & (1 << 64) - 1)
        return any(kv.key != own for kv in found.kvs)

    def _time_to_live(self, request: LeaseTimeToLiveRequest) -> None:
        """The remaining seconds go by while one after the other grants the lease, and is asked. etcd gives the
        keys in the order of a map of Go, which is another each time."""
        theirs, ours = (side.relative(TIME_TO_LIVE, request) for side in self.both.sides)
        for answer in (theirs, ours):
            answer["keys"] = sorted(answer.get("keys", ()))
        left = [int(answer.pop("TTL")) for answer in (theirs, ours)]
        assert theirs == ours
        assert abs(left[0] - left[1]) <= 1 + time.monotonic() - self._began

    def _watch(self, request: WatchRequest) -> None:
        if request.HasField("cancel_request"):
            if request.cancel_request.watch_id in self._open:
                self.watching.settle()  # what a canceled watch has not been sent yet, it may not get any more
                self.watching.ask(request)
                self._open.discard(request.cancel_request.watch_id)
            return
        answer = self.watching.ask(request)
        if answer.get("created") and not answer.get("canceled"):
            self._open.add(int(answer.get("watch_id", 0)))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, min_size=3, max_size=25))
def test_any_sequence(both: Twins, sequence: list[tuple[str, Any]]) -> None:
    began = time.monotonic()
    both.begin()
    for id in (7, -5):
        both.ask("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest(ID=id, TTL=1000))
    with both.stream(WATCH) as stream:
        watching = Watching(both, stream.streams)
        watching.ask(create(key=b"mark", watch_id=MARK))
        on_both = Sequence(both, watching, began)
        try:
            for path, request in sequence:
                on_both.do(path, request)
        except Apart:
            return
        both.ask(RANGE, EVERYTHING)
        watching.settle()
        both.ask("/etcdserverpb.KV/DeleteRange", DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True))
