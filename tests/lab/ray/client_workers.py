"""Clients of etcd, unmodified, at work at several proxies while leaders, members, proxies and nodes die; their books.

Each is a process that puts and watches at once (``tests/clients/programs``), and repeats no write. The store's own
history is the truth: each watch has seen it whole, once and in order; each put that was answered is in it at the
revision answered; one that failed is in it at most once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lab.etcd_clients import PROGRAMS, Command, etcdctl_program, go_client, node_program
from lab.patience import PATIENCE
from lab.ray.tools import serving, told, wait_until

UNKNOWN = (
    "etcdserver: request timed out",
    "etcdserver: leader changed",
    "context deadline exceeded",
    "Deadline Exceeded",
    "DEADLINE_EXCEEDED",
    "ConnectionTimeoutError",
    "ConnectionFailedError",  # what etcd3 makes of "request timed out"
    "the lock was lost",
    "etcdserver: requested lease not found",
    "mutex: session is expired",
)
"""What a put may fail with while its proxy lives."""
GONE = ("transport is closing", "error reading from server", "Connection reset", "Socket closed", "recvmsg", "GOAWAY",
        "Connection dropped", "Connection aborted", "ECONNRESET", "Received RST_STREAM", "unexpected EOF")  # fmt: skip
"""And when it dies."""
REFUSED = ("onnection refused", "ECONNREFUSED", "failed to connect", "No connection established", "connection error",
           "no available", "ping", "Execution prevented because the circuit breaker is open")  # fmt: skip

Change = tuple[int, str, str]
"""Revision, key, value."""


class ClientWorker:
    """A client that puts and watches until it is told to end; see its program."""

    def __init__(
        self, program: list[str], endpoints: Sequence[str], prefix: str, environment: dict[str, str] | None = None
    ) -> None:
        self.prefix = prefix
        where = ",".join(endpoints)
        self._started = Command(program, where, environment).start(where, prefix)
        self.happened: list[dict[str, Any]] = []
        self.complaints: deque[str] = deque(maxlen=20)
        """The last lines of its standard error."""
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_complaints)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self._started.process.stdout is not None
        for line in self._started.process.stdout:
            self.happened.append(json.loads(line))

    def _read_complaints(self) -> None:
        assert self._started.process.stderr is not None
        self.complaints.extend(self._started.process.stderr)

    @property
    def answered(self) -> int:
        """How many puts were."""
        return sum(1 for each in list(self.happened) if each["kind"] == "put" and not each.get("error"))

    @property
    def seen(self) -> list[Change]:
        """What its watch has told."""
        events = [each for each in list(self.happened) if each["kind"] == "event"]
        return [(each["revision"], each["key"], each["value"]) for each in events]

    def finish(self) -> None:
        """Have it end, and its watch come to the end."""
        self._started.write("\n")
        code = self._started.process.wait(3 * PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        self._started.end()
        assert code == 0, (self.prefix, code, self.complaints)

    def end(self) -> None:
        """Whatever it does."""
        self._started.end()


def _blocking(client: str, prefix: str, **environment: str) -> Callable[[Sequence[str]], ClientWorker]:
    program = [sys.executable, str(PROGRAMS / "python_work.py"), client]
    return lambda endpoints: ClientWorker(program, endpoints, prefix, {**os.environ, **environment})


def _etcdctl(version: str) -> Callable[[Sequence[str]], ClientWorker]:
    return _blocking(etcdctl_program(version), f"etcdctl{version}/", ETCDCTL_API="3")


def _library(name: str, **environment: str) -> Callable[[Sequence[str]], ClientWorker]:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"there is no {name}: pip install {name}")
    return _blocking(name, f"{name}/", **environment)


def _aetcd() -> Callable[[Sequence[str]], ClientWorker]:
    return lambda endpoints: ClientWorker([sys.executable, str(PROGRAMS / "aetcd_work.py")], endpoints, "aio/")


def _node() -> Callable[[Sequence[str]], ClientWorker]:
    node, environment = node_program()
    return lambda endpoints: ClientWorker([node, str(PROGRAMS / "npm_work.js")], endpoints, "npm/", dict(environment))


def _go(kind: str, prefix: str) -> Callable[[Sequence[str]], ClientWorker]:
    program = [go_client(), kind]
    return lambda endpoints: ClientWorker(program, endpoints, prefix)


_KINDS: dict[str, Callable[[], Callable[[Sequence[str]], ClientWorker]]] = {
    "clientv3": lambda: _go("work", "go/"),
    "concurrency of clientv3": lambda: _go("locked", "locked1/"),
    "another one, for the same lock": lambda: _go("locked", "locked2/"),
    "aetcd": _aetcd,
    "etcd3": lambda: _library("etcd3", PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python"),
    "etcd3gw": lambda: _library("etcd3gw"),
    "npm's etcd3": _node,
    "etcdctl 3.5": lambda: _etcdctl("3.5"),
    "etcdctl 3.4": lambda: _etcdctl("3.4"),
}


class ClientWorkers:
    """One of each kind that is installed.

    Args:
        endpoints: of the proxies.
        cluster: theirs.
    """

    def __init__(self, cluster: Any, endpoints: Sequence[str]) -> None:
        self._cluster = cluster
        self.missing: list[str] = []
        self.workers: dict[str, ClientWorker] = {}
        for number, (name, find) in enumerate(_KINDS.items()):
            try:
                begin = find()
            except pytest.skip.Exception as skipped:
                self.missing.append(str(skipped))
                continue
            turned = number % len(endpoints)
            self.workers[name] = begin([*endpoints[turned:], *endpoints[:turned]])

    def await_progress(self, members: int = 3) -> None:
        """So many members serve, and then each client has had some more puts answered, and told of."""
        wait_until(lambda: serving(self._cluster, members), what="members that serve")
        before = {name: (worker.answered, len(worker.seen)) for name, worker in self.workers.items()}

        def lagging() -> dict[str, Any]:
            now = {name: (worker.answered, len(worker.seen)) for name, worker in self.workers.items()}
            few = [name for name in now if min(now[name][0] - before[name][0], now[name][1] - before[name][1]) < 5]
            return {name: (self.workers[name].happened[-3:], *self.workers[name].complaints) for name in few}

        wait_until(lambda: not lagging(), seconds=3 * PATIENCE, what=lambda: str(lagging()))

    def finish(self) -> None:
        """Have all end."""
        for worker in self.workers.values():
            worker.finish()

    def end(self) -> None:
        """Whatever they do."""
        for worker in self.workers.values():
            worker.end()

    def check_errors(self, *allowed: str) -> None:
        """Each put that was not answered has failed with one of these."""
        for name, worker in self.workers.items():
            for put in list(worker.happened):
                failed = put["kind"] == "put" and put.get("error")
                assert not failed or any(text in put["error"] for text in allowed), (name, put)

    def check(self, truth: list[Change]) -> None:
        """Compare what the clients were told with the store's history."""
        for name, worker in self.workers.items():
            _check(name, worker, [change for change in truth if change[1].startswith(worker.prefix)])


def _check(name: str, worker: ClientWorker, truth: list[Change]) -> None:
    begun = next(each["revision"] for each in worker.happened if each["kind"] == "begin")
    end = next(n for n, change in enumerate(truth) if change[1] == f"{worker.prefix}end")
    expected = [change for change in truth[: end + 1] if change[0] > begun]
    assert worker.seen == expected, f"{name}: the watch has seen all, once and in order"
    values = Counter(value for _, _, value in truth if value)
    assert values.most_common(1)[0][1] == 1, f"{name}: nothing was done twice"
    there = {value: (revision, key) for revision, key, value in truth if value}
    for put in (each for each in worker.happened if each["kind"] == "put"):
        if not put.get("error"):
            assert there[put["value"]] == (put["revision"], put["key"]), name


def history(cluster: Any) -> list[Change]:
    """All changes of a cluster's keys."""
    kv = cluster.client()
    with kv.watch(prefix="", start_revision=1) as watch:
        events = told(watch, kv.revision())
        return [(each.kv.mod_revision, each.kv.key.decode(), each.kv.raw.decode()) for each in events]
