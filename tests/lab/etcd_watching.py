"""A stream of watches to a real etcd and to a proxy's service, and what arrives compared.

The answers to requests are compared one by one, with their headers; events for each watch as one list, since etcd is
free to put events of several revisions into one answer, and to serve watches in any order.
"""

from __future__ import annotations

import queue
import time
from collections import defaultdict
from contextlib import suppress
from typing import Any

from lab.etcd_twins import SideStream, Twins
from lab.patience import PATIENCE
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import PutRequest, WatchRequest

WATCH = "/etcdserverpb.Watch/Watch"
MARK = 1000
"""Id of a watch that every stream has: what it sees says that all before has arrived."""


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
        while (answer := self.take(PATIENCE)) is None:
            pass
        return answer

    def until_mark(self, count: int) -> None:
        while len(self.events[str(MARK)]) < count:
            assert self.take(PATIENCE) is None


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
        etcd, ours = self.seen
        deadline = time.monotonic() + PATIENCE
        while True:
            for seen in self.seen:
                seen.until_mark(self.marks)
                with suppress(queue.Empty):
                    while True:
                        assert seen.take(0.05) is None
            if (ours.events, ours.ends) == (etcd.events, etcd.ends) or time.monotonic() > deadline:
                break  # or one of them is slow with what lags
        assert ours.events == etcd.events
        assert ours.ends == etcd.ends
