"""A campaign's way through proxies: what its threads call on a handle, spoken in gRPC as a client of etcd would.

One endpoint is used until it fails, then the next one; no write is ever repeated. What an error says of a write is
taken at its word: "request timed out", a deadline that has passed and a connection that breaks leave the outcome open,
and every other error says that there was none.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from raykeeper.actors.client.txn_parts import Condition, Op
from raykeeper.actors.proxy.etcdpb.message_pool import methods
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
)
from raykeeper.errors import CompactedError, NoSpace, RequestTimeout, Unavailable
from raykeeper.schema.operations import Relation, Target

OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
)
NEVER_SENT = ("failed to connect", "Connection refused")
COMPACTED = "etcdserver: mvcc: required revision has been compacted"
OPEN = "etcdserver: request timed out"
PROGRESS_S = 0.5
"""How often a watch asks how far it has come."""
TO_A_QUESTION = -1
"""As the id of a watch: the answer is of all watches of its stream."""
_WATCH = "/etcdserverpb.Watch/Watch"


@dataclass(frozen=True)
class Item:
    """A key as a handle would give it."""

    key: bytes
    value: bytes
    mod_revision: int
    create_revision: int
    version: int

    @property
    def text(self) -> str:
        return self.value.decode()


def _item(kv: Any) -> Item:
    return Item(kv.key, kv.value, kv.mod_revision, kv.create_revision, kv.version)


@dataclass(frozen=True)
class Found:
    """Of a range."""

    items: list[Item]
    revision: int

    def __iter__(self) -> Any:
        return iter(self.items)


@dataclass(frozen=True)
class Done:
    """Of a write."""

    revision: int
    prev: Item | None = None
    deleted: int = 0
    succeeded: bool = False
    responses: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Event:
    """Of a watch."""

    type: str
    kv: Item


def prefix_end(prefix: bytes) -> bytes:
    """Of a prefix that does not end in 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _range(key: str | None, prefix: str | None) -> dict[str, bytes]:
    if key is not None:
        return {"key": key.encode()}
    assert prefix
    return {"key": prefix.encode(), "range_end": prefix_end(prefix.encode())}


class EtcdClient:
    """See the module; thread-safe.

    Args:
        endpoints: of the proxies, HOST:PORT.
        first: the number of the one to begin with.
    """

    def __init__(self, endpoints: Sequence[str], first: int) -> None:
        self._endpoints = endpoints
        self._current = first % len(endpoints)
        self._channels = [grpc.insecure_channel(endpoint, OPTIONS) for endpoint in endpoints]
        self._lock = threading.Lock()

    # -- calls --------------------------------------------------------------------------------------------------------

    def channel(self) -> tuple[int, Any]:
        """The channel that is in use, and its number."""
        with self._lock:
            return self._current, self._channels[self._current]

    def failed(self, number: int) -> None:
        """Use another one from now on."""
        with self._lock:
            if number == self._current:
                self._current = (number + 1) % len(self._channels)

    def call(self, path: str, request: Any, timeout: float) -> Any:
        """The answer.

        Raises:
            KeeperError: what a handle would raise.
        """
        number, channel = self.channel()
        kinds = methods()[path]
        ask = channel.unary_unary(path, kinds.request.SerializeToString, kinds.response.FromString)
        try:
            return ask(request, timeout=timeout)
        except grpc.RpcError as error:
            raise self._error(number, error) from error

    def _error(self, number: int, error: Any) -> Exception:
        code, text = error.code(), error.details() or ""
        if text.startswith("etcdserver: "):
            if text == COMPACTED:
                return CompactedError(0)
            if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
                return NoSpace(text, applied=False)
            if code == grpc.StatusCode.UNAVAILABLE:
                if text == "etcdserver: server stopped":
                    self.failed(number)
                return RequestTimeout(text, applied=None) if text == OPEN else Unavailable(text, applied=False)
            return ValueError(f"{code} {text}")
        if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            return RequestTimeout(f"{code} {text}", applied=None)
        if code == grpc.StatusCode.UNAVAILABLE:
            self.failed(number)
            sent = not any(each in text for each in NEVER_SENT)
            return RequestTimeout(text, applied=None) if sent else Unavailable(text, applied=False)
        return ValueError(f"{code} {text}")

    # -- what threads call --------------------------------------------------------------------------------------------

    def range(
        self, key: str | None = None, *, prefix: str | None = None, revision: int = 0, timeout: float = 5.0
    ) -> Found:
        """The keys now, or at a revision."""
        request = RangeRequest(**_range(key, prefix), revision=revision)
        answer = self.call("/etcdserverpb.KV/Range", request, timeout)
        return Found([_item(each) for each in answer.kvs], answer.header.revision)

    def get(self, key: str, *, serializable: bool, at_least: int | None = None, timeout: float = 5.0) -> Item | None:
        """What some member knows of a key; etcd's API has no bound on how old that is."""
        assert not at_least
        request = RangeRequest(key=key.encode(), serializable=serializable)
        answer = self.call("/etcdserverpb.KV/Range", request, timeout)
        return _item(answer.kvs[0]) if answer.kvs else None

    def put(self, key: str, value: str, *, prev: bool = False, timeout: float = 5.0) -> Done:
        """Put a key."""
        request = PutRequest(key=key.encode(), value=value.encode(), prev_kv=prev)
        answer = self.call("/etcdserverpb.KV/Put", request, timeout)
        return Done(answer.header.revision, _item(answer.prev_kv) if answer.HasField("prev_kv") else None)

    def delete(self, key: str, *, timeout: float = 5.0) -> Done:
        """Delete a key."""
        answer = self.call("/etcdserverpb.KV/DeleteRange", DeleteRangeRequest(key=key.encode()), timeout)
        return Done(answer.header.revision, deleted=answer.deleted)

    def txn(
        self,
        compare: Sequence[Condition] = (),
        success: Sequence[Op] = (),
        failure: Sequence[Op] = (),
        *,
        timeout: float = 5.0,
    ) -> Done:
        """A transaction of puts and gets."""
        request = TxnRequest(
            compare=[_compare(each) for each in compare],
            success=[_operation(each) for each in success],
            failure=[_operation(each) for each in failure],
        )
        answer = self.call("/etcdserverpb.KV/Txn", request, timeout)
        responses = [
            _item(each.response_range.kvs[0]) if each.response_range.kvs else None for each in answer.responses
        ]
        return Done(answer.header.revision, succeeded=answer.succeeded, responses=tuple(responses))

    def watch(
        self,
        key: str | None = None,
        *,
        prefix: str | None = None,
        start_revision: int | None = None,
        timeout: float,
        known: Callable[[], int] = lambda: 0,
    ) -> EtcdWatch:
        """Watch a range; see :class:`EtcdWatch`."""
        return EtcdWatch(self, _range(key, prefix), start_revision or 0, timeout, known)


def _compare(condition: Condition) -> Compare:
    made = Compare(key=str(condition.key).encode(), result=Compare.EQUAL)
    assert condition.relation == Relation.EQUAL
    if condition.target == Target.VERSION:
        made.target, made.version = Compare.VERSION, condition.operand
    else:
        assert condition.target == Target.VALUE
        made.target, made.value = Compare.VALUE, condition.operand.encode()
    return made


def _operation(operation: Op) -> RequestOp:
    key = operation.arguments["key"].encode()
    if operation.kind == "put":
        return RequestOp(request_put=PutRequest(key=key, value=operation.arguments["value"].encode()))
    assert operation.kind == "get"
    return RequestOp(request_range=RangeRequest(key=key))


class EtcdWatch:
    """A watch that goes on at the other proxy, after the last revision that it has seen, when a stream ends.

    Args:
        known: tells the newest revision that this process knows of, when progress is asked for.

    Attributes:
        revision: all up to here has been given out.
        progress: each answer to a question for progress: a revision, how many events had arrived before it, and what
            was known when it was asked.
    """

    def __init__(
        self, client: EtcdClient, where: dict[str, bytes], start: int, timeout: float, known: Callable[[], int]
    ) -> None:
        self._known = known
        self.progress: list[tuple[int, int, int]] = []
        self._arrived = 0
        self._questions: deque[int] = deque()
        """Of this stream, without an answer."""
        self._client = client
        self._where = where
        self._responses: queue.Queue[Any] = queue.Queue()
        self._events: deque[Event] = deque()
        self._call: Any = None
        self._asked = 0.0
        self._positioned = start > 0
        self._upto = self.revision = max(0, start - 1)
        deadline = time.monotonic() + timeout
        while True:
            self._open()
            try:
                first = self._responses.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.__exit__()
                raise RequestTimeout("the watch was not created in time", applied=False) from None
            if not isinstance(first, Exception):
                break
            if time.monotonic() > deadline:
                raise RequestTimeout(str(first), applied=False)
            time.sleep(0.05)
        assert first.created, first
        if not self._positioned:
            self._upto = self.revision = first.header.revision
            self._positioned = True

    def _open(self) -> None:
        """A stream at the proxy that is in use."""
        number, channel = self._client.channel()
        self._requests: queue.Queue[Any] = queue.Queue()
        self._questions.clear()
        create = WatchCreateRequest(**self._where, start_revision=self._upto + 1 if self._positioned else 0)
        self._requests.put(WatchRequest(create_request=create))
        kinds = methods()[_WATCH]
        stream = channel.stream_stream(_WATCH, kinds.request.SerializeToString, kinds.response.FromString)
        self._call = stream(iter(self._requests.get, None))
        self._responses = queue.Queue()
        threading.Thread(target=self._receive, args=(number, self._call, self._responses), daemon=True).start()

    def _receive(self, number: int, call: Any, responses: queue.Queue[Any]) -> None:
        try:
            for response in call:
                responses.put(response)
            responses.put(RuntimeError("the stream has ended"))
        except grpc.RpcError as error:
            self._client.failed(number)
            responses.put(error)

    def next(self, timeout: float) -> Event | None:
        """The next event, if there is one in time.

        Raises:
            CompactedError: its past is gone.
        """
        deadline = time.monotonic() + timeout
        while not self._events:
            self.revision = self._upto
            if time.monotonic() > self._asked + PROGRESS_S:
                self._asked = time.monotonic()
                self._questions.append(self._known())
                self._requests.put(WatchRequest(progress_request={}))
            try:
                response = self._responses.get(timeout=max(0.0, min(0.1, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    return None
                continue
            self._take(response)
        event = self._events.popleft()
        if not self._events:
            self.revision = self._upto
        return event

    def _take(self, response: Any) -> None:
        if isinstance(response, Exception):
            self._requests.put(None)
            time.sleep(0.05)
            self._open()
        elif response.compact_revision:
            raise CompactedError(response.compact_revision)
        elif response.events:
            for each in response.events:
                self._events.append(Event("delete" if each.type else "put", _item(each.kv)))
            self._arrived += len(response.events)
            self._upto = response.events[-1].kv.mod_revision
        elif not response.created:
            assert not response.canceled, response
            if response.watch_id == TO_A_QUESTION:
                self.progress.append((response.header.revision, self._arrived, self._questions.popleft()))
            self._upto = max(self._upto, response.header.revision)

    def __enter__(self) -> EtcdWatch:
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.put(None)
        self._call.cancel()
