"""Clients of etcd, unmodified, at two proxies of a cluster in which leaders, members and proxies die.

Each client puts and watches at once. The store's own history is the truth: each watch has seen it whole, once and in
order; each put that was answered is in it at the revision answered; one that failed is in it at most once.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from lab.etcd_clients import PROGRAMS, Command, api3, etcdctl_program, go_client
from lab.ray.proxies import Proxies
from lab.ray.tools import kill, leader, serving, told, wait_until
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import RangeRequest, RangeResponse

pytestmark = pytest.mark.survival

UNKNOWN = (
    "etcdserver: request timed out",
    "etcdserver: leader changed",
    "context deadline exceeded",
    "Deadline Exceeded",
)
"""What a put may fail with while its proxy lives."""
GONE = ("transport is closing", "error reading from server", "Connection reset", "Socket closed", "recvmsg", "GOAWAY")
"""And when it dies."""
REFUSED = ("onnection refused", "failed to connect", "connection error", "no available", "ping")


@pytest.fixture
def proxies(clusters: Any) -> Iterator[tuple[Any, Proxies]]:
    cluster = clusters.launch()
    made = Proxies(cluster)
    yield cluster, made
    made.end()


class Worker:
    """A client that puts and watches until it is told to end; see its program."""

    def __init__(self, program: list[str], endpoints: str, prefix: str) -> None:
        self.prefix = prefix
        self._started = Command(program, endpoints).start(endpoints, prefix)
        self.happened: list[dict[str, Any]] = []
        assert json.loads(self._started.line())["kind"] == "begin"
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._started.process.stdout is not None
        while self._started.process.poll() is None or self._started.waiting:
            line = self._started.next_line(0.5)
            if line is not None:
                self.happened.append(json.loads(line))

    def answered(self) -> int:
        """How many puts."""
        return sum(1 for each in list(self.happened) if each["kind"] == "put" and not each.get("error"))

    def finish(self) -> None:
        """Have it end, and its watch come to the end."""
        self._started.write("\n")
        self._started.process.wait(90)
        self._reader.join(30)
        assert self._started.process.returncode == 0
        self._started.end()

    def end(self) -> None:
        self._started.end()


def go_worker(endpoints: str) -> Worker:
    return Worker([go_client(), "work"], endpoints, "go/")


def aetcd_worker(endpoints: str) -> Worker:
    return Worker([sys.executable, str(PROGRAMS / "aetcd_work.py")], endpoints, "aio/")


Change = tuple[int, str, str]


def check_errors(worker: Worker, allowed: tuple[str, ...]) -> None:
    """A put that was not answered has failed with one of these."""
    for put in list(worker.happened):
        assert put["kind"] != "put" or not put.get("error") or any(text in put["error"] for text in allowed), put


def check(worker: Worker, truth: list[Change]) -> None:
    """Compare what a client was told with the store's history."""
    mine = [change for change in truth if change[1].startswith(worker.prefix) and change[1] != worker.prefix + "begin"]
    ends = [change for change in mine if change[1] == worker.prefix + "end"]
    seen = [(each["revision"], each["key"], each["value"]) for each in worker.happened if each["kind"] == "event"]
    assert seen == mine[: mine.index(ends[0]) + 1], "the watch has seen all, once and in order"
    values = Counter(value for _, _, value in mine if value)
    assert not values or max(values.values()) == 1, "nothing was done twice"
    there = {value: (revision, key) for revision, key, value in mine if value}
    for put in (each for each in worker.happened if each["kind"] == "put"):
        if not put.get("error"):
            assert there[put["value"]] == (put["revision"], put["key"])


def spoken_for(cluster: Any, endpoint: str) -> int:
    """The process of the member that a proxy names in its answers."""
    with grpc.insecure_channel(endpoint) as channel:
        ask = channel.unary_unary("/etcdserverpb.KV/Range", RangeRequest.SerializeToString, RangeResponse.FromString)
        member = ask(RangeRequest(key=b"a"), timeout=30).header.member_id
    return next(each.pid for each in cluster.members() if each.id == member)


def history(cluster: Any) -> list[Change]:
    kv = cluster.client()
    with kv.watch(prefix="", start_revision=1) as watch:
        events = told(watch, kv.revision())
        return [(each.kv.mod_revision, each.kv.key.decode(), each.kv.raw.decode()) for each in events]


def whole(cluster: Any, workers: list[Worker]) -> None:
    """All members serve, and each client has had some more puts answered."""
    wait_until(lambda: serving(cluster), what="members that serve")
    before = [worker.answered() for worker in workers]
    wait_until(
        lambda: all(worker.answered() > count + 20 for worker, count in zip(workers, before, strict=True)),
        what=lambda: str([worker.happened[-3:] for worker in workers]),
    )


def test_nothing_is_lost_or_done_twice_whoever_dies(proxies: tuple[Any, Proxies]) -> None:
    cluster, made = proxies
    first, second = made.start(), made.start()
    program = etcdctl_program("3.5")
    workers = []
    etcdctl = Command([program, f"--endpoints={first},{second}"], first, api3())
    lines: list[str] = []
    watching = etcdctl.start("watch", "", "--prefix", "--rev=1", "-w", "json")
    try:
        workers = [go_worker(f"{first},{second}"), aetcd_worker(f"{first},{second}")]
        whole(cluster, workers)
        for _ in range(2):
            kill(leader(cluster).pid)
            whole(cluster, workers)
            for endpoint in (first, second):
                kill(spoken_for(cluster, endpoint))
                whole(cluster, workers)
        for worker in workers:
            check_errors(worker, UNKNOWN)
        for number in (signal.SIGKILL, signal.SIGTERM):
            for endpoint in (first, second):
                made.kill(endpoint, number)
                whole(cluster, workers)
                assert made.start(endpoint) == endpoint
                whole(cluster, workers)
        for worker in workers:
            worker.finish()
        truth = history(cluster)
        seen: list[int] = []
        while not seen or seen[-1] < truth[-1][0]:
            lines.append(watching.line())
            seen += [
                (each["kv"]["mod_revision"], each["kv"]["key"]) for each in json.loads(lines[-1]).get("Events", ())
            ]
    finally:
        watching.end()
        for worker in workers:
            worker.end()
    assert seen == [revision for revision, _, _ in truth], "etcdctl has seen all, once"
    for worker in workers:
        check(worker, truth)
        check_errors(worker, (*UNKNOWN, *GONE, *REFUSED))
