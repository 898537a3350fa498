"""A client of etcd that knows several endpoints, at work while proxies, nodes and members die; and its books.

Each write puts a key of its own, once: whatever becomes of the call, it is never sent again by this program. So an
acknowledged key must be there, and no key may have been put twice. A watch on all of them goes on where it was after
each break, and a lease is kept alive meanwhile.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)

OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)
PREFIX, END = b"load/", b"load0"


def channel(urls: list[str]) -> grpc.Channel:
    """A channel to the first of these that can be reached."""
    return grpc.insecure_channel("ipv4:" + ",".join(url.removeprefix("http://") for url in urls), options=OPTIONS)


def unary(over: grpc.Channel, path: str, request: Any, answer: Any, timeout: float = 20.0) -> Any:
    """The answer to one call."""
    call = over.unary_unary(path, type(request).SerializeToString, answer.FromString)
    return call(request, timeout=timeout)


class EtcdLoad:
    """See the module. Its threads begin at once.

    Args:
        urls: of the proxies; every other writer prefers another one.
        ttl: of the lease, in seconds.
    """

    def __init__(self, urls: list[str], writers: int = 2, ttl: int = 15) -> None:
        self.acknowledged: dict[bytes, int] = {}
        """Revisions by key."""
        self.unknown: set[bytes] = set()
        self.seen: list[tuple[bytes, int]] = []
        """What the watch has told: keys and revisions."""
        self.versions: set[int] = set()
        """All versions of keys that it has told of."""
        self.watch_breaks = 0
        self.failures: list[str] = []
        self._urls = urls
        self._over = threading.Event()
        self._watching = threading.Event()
        self._numbers = itertools.count()
        with channel(urls) as first:
            granted = unary(first, "/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest(TTL=ttl), LeaseGrantResponse)
            self.lease = granted.ID
            put = PutRequest(key=b"leased", value=b"x", lease=self.lease)
            unary(first, "/etcdserverpb.KV/Put", put, PutResponse)
        self._start = granted.header.revision + 1
        work = [lambda n=n: self._write(urls[n % len(urls) :] + urls[: n % len(urls)]) for n in range(writers)]  # type: ignore[misc]
        self._threads = [threading.Thread(target=run, daemon=True) for run in (*work, self._watch, self._keep_alive)]
        for thread in self._threads:
            thread.start()
        assert self._watching.wait(60)

    def await_progress(self, calls: int = 20, seconds: float = 90.0) -> None:
        """Wait until so many more writes are acknowledged."""
        wanted, until = len(self.acknowledged) + calls, time.monotonic() + seconds
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < until, f"{len(self.acknowledged)} of {wanted} acknowledged: {self.failures[-3:]}"
            time.sleep(0.05)

    def finish(self) -> None:
        """Stop writing, and check the books."""
        self._over.set()
        for thread in self._threads[:-2]:
            thread.join(60)
            assert not thread.is_alive()
        with channel(self._urls[1:] + self._urls[:1]) as over:
            request = RangeRequest(key=PREFIX, range_end=END)
            found = {each.key: each for each in unary(over, "/etcdserverpb.KV/Range", request, RangeResponse, 60).kvs}
            leased = unary(over, "/etcdserverpb.KV/Range", RangeRequest(key=b"leased"), RangeResponse, 60)
        lost = self.acknowledged.keys() - found.keys()
        assert not lost, f"acknowledged, and not there: {sorted(lost)[:5]}"
        assert {key: found[key].mod_revision for key in self.acknowledged} == self.acknowledged
        twice = [key for key, each in found.items() if each.version != 1]
        assert not twice, f"done twice: {twice[:5]}"
        assert found.keys() <= self.acknowledged.keys() | self.unknown
        assert len(leased.kvs) == 1, "the lease was kept alive"
        until = time.monotonic() + 60
        wanted = sorted(((key, each.mod_revision) for key, each in found.items()), key=lambda pair: pair[1])
        while len(self.seen) < len(wanted) and time.monotonic() < until:
            time.sleep(0.05)
        assert self.seen == wanted, f"the watch has told {len(self.seen)} of {len(wanted)}"
        assert self.versions == {1}

    # -- threads ------------------------------------------------------------------------------------------------------

    def _write(self, urls: list[str]) -> None:
        with channel(urls) as over:
            while not self._over.is_set():
                key = PREFIX + b"%08d" % next(self._numbers)
                try:
                    answer = unary(over, "/etcdserverpb.KV/Put", PutRequest(key=key, value=key), PutResponse)
                    self.acknowledged[key] = answer.header.revision
                except grpc.RpcError as error:
                    self.unknown.add(key)
                    self.failures.append(f"{error.code()}: {error.details()}")  # type: ignore[attr-defined]
                    time.sleep(0.05)
                time.sleep(0.005)

    def _watch(self) -> None:
        start = self._start
        while True:
            requests: queue.SimpleQueue[WatchRequest | None] = queue.SimpleQueue()
            create = WatchCreateRequest(key=PREFIX, range_end=END, start_revision=start)
            requests.put(WatchRequest(create_request=create))
            with channel(self._urls) as over:
                call = over.stream_stream(
                    "/etcdserverpb.Watch/Watch", WatchRequest.SerializeToString, WatchResponse.FromString
                )
                try:
                    for answer in call(iter(requests.get, None)):
                        self._watching.set()
                        for event in answer.events:
                            self.seen.append((event.kv.key, event.kv.mod_revision))
                            self.versions.add(event.kv.version)
                            start = event.kv.mod_revision + 1
                except grpc.RpcError:
                    self.watch_breaks += 1
                finally:
                    requests.put(None)
            time.sleep(0.05)

    def _keep_alive(self) -> None:
        while True:
            with channel(self._urls) as over:
                call = over.stream_stream(
                    "/etcdserverpb.Lease/LeaseKeepAlive",
                    LeaseKeepAliveRequest.SerializeToString,
                    LeaseKeepAliveResponse.FromString,
                )
                try:
                    for answer in call(self._every_second()):
                        if answer.TTL <= 0:
                            self.failures.append("the lease is gone")
                except grpc.RpcError:
                    pass
            time.sleep(0.05)

    def _every_second(self) -> Iterator[LeaseKeepAliveRequest]:
        while True:
            yield LeaseKeepAliveRequest(ID=self.lease)
            time.sleep(1.0)
