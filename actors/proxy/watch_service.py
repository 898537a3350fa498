"""etcd's service Watch: many watches in one stream of requests and answers.

A watch of etcd is a watch of this process's hub, so it survives the member that serves it. Here is what etcd has beside
that: ids of the client's choice, progress, fragments, and the order of answers. Answers to requests (created, canceled,
progress) leave in the order of the requests, and events of a watch only after it was said to be created. One task reads
requests, another sends everything, so a client that does not read holds up nobody else: its events wait in the hub,
within the hub's bounds.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from ...errors import AuthFailed, CompactedError, KeeperError, PermissionDenied
from ...limits import (
    MAX_PROXY_WATCH_ANSWERS,
    PROXY_PROGRESS_CHECK_S,
    PROXY_PROGRESS_JITTER_FRACTION,
    PROXY_PROGRESS_NOTIFY_S,
    PROXY_WATCH_ANSWER_BYTES,
    RPC_OVERHEAD_BYTES,
)
from ...schema.frames import WatchEvent
from ...schema.key_spaces import UNUSED_KEY
from ...schema.operations import KeyRange
from ..client.core.subscription import Delivery, Phase, Subscription
from ..client.hub import Hub
from ..client.loop_bridge import bridge_to
from .etcd_backend import EtcdBackend, StreamContext
from .etcd_errors import from_keeper_error
from .etcdpb.kv_pb2 import Event, KeyValue
from .etcdpb.rpc_pb2 import WatchCreateRequest, WatchRequest, WatchResponse
from .rpc_status import RpcError
from .translate import Translator

EMPTY_RANGE = "mvcc: watcher range is empty"
DUPLICATE_ID = "mvcc: duplicate watch ID provided on the WatchStream"
NO_WATCH = -1
"""The id in an answer that concerns no watch, or all."""


class WatchService:
    """Answers streams; see the module.

    Args:
        denied: told of watches that their user may not have: the client's address, and why.
    """

    def __init__(self, backend: EtcdBackend, denied: Callable[[str, str], None]) -> None:
        self._backend = backend
        self._denied = denied
        self._translate = Translator(backend.space, backend.space_end)

    async def watch(self, stream: StreamContext) -> None:
        """Serve one stream until its client is gone."""
        await _ServedWatches(self._backend, self._translate, stream, self._denied).serve()


class _ServedWatch:
    """One watch of a stream; the hub wakes it when there is news."""

    __slots__ = ("_owner", "announced", "ended", "fragment", "has_news", "id", "notify", "quiet", "subscription")

    def __init__(self, owner: _ServedWatches, id: int, request: WatchCreateRequest) -> None:
        self._owner = owner
        self.id = id
        self.notify = request.progress_notify
        self.fragment = request.fragment
        self.announced = False
        """Whether the client was told that it is created..."""
        self.ended = False
        """... and that it is over. Its id stays taken until it is canceled (etcd: watchStream)."""
        self.quiet = False
        """Whether no event was sent since the last progress notification was due."""
        self.has_news = False
        """Whether it waits for the sender already."""
        self.subscription: Subscription | None = None

    def wake(self) -> None:
        """There is news. Called with the hub's lock held."""
        self._owner.queue_news(self)


class _Pending:
    """An answer to a request that is not ready yet; ``response`` is ``None`` until it is."""

    __slots__ = ("from_now", "response", "revision", "watch")

    def __init__(self, response: WatchResponse | None = None, watch: _ServedWatch | None = None) -> None:
        self.response = response
        self.watch = watch
        """The watch that it is about to announce..."""
        self.from_now = False
        """... which begins where a member says, so that the answer has to wait for that."""
        self.revision = 0
        """Of a progress request: every watch must have seen this, if it is known."""


def _refusal_of(error: KeeperError | None) -> str:
    """Why a user may not watch, in etcd's words; empty if that was not why a watch ended."""
    if isinstance(error, (AuthFailed, PermissionDenied)):
        failure = from_keeper_error(error)
        name = "".join(part.capitalize() for part in failure.code.name.split("_"))
        return f"rpc error: code = {name} desc = {failure.text}"
    return ""


class _ServedWatches:
    """All watches of one stream."""

    def __init__(
        self,
        backend: EtcdBackend,
        translate: Translator,
        stream: StreamContext,
        denied: Callable[[str, str], None],
    ) -> None:
        self._backend = backend
        self._denied = denied
        self._hub = backend.hub
        self._translate = translate
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._reader = bridge_to(self._hub).reader
        self._watches: dict[int, _ServedWatch] = {}
        self._next_id = 0
        self._pending: deque[_Pending] = deque()
        """Answers to requests, in the order of the requests."""
        self._news: deque[_ServedWatch] = deque()
        """Watches that the hub has woken; it appends to this on its own threads."""
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        """An answer to a request was sent, since this was last cleared."""
        self._random = random.Random(os.urandom(16))
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the hub's side -----------------------------------------------------------------------------------------------

    def queue_news(self, watch: _ServedWatch) -> None:
        """A watch has begun, has events, or is over. Called on any thread, with the hub's lock held.

        A watch waits for the sender once, however often it is woken. The sender takes the mark away before it looks.
        """
        if not watch.has_news:
            watch.has_news = True
            self._news.append(watch)
        self._hub.flush_later(self)

    def flush(self) -> None:
        """The hub's lock is released."""
        if self._reader is not None and self._reader.reads_now():
            self._wake.set()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    # -- the stream ---------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Read requests and send answers. A client that has sent its last request goes on seeing events."""
        sender = asyncio.ensure_future(self._send_all())
        reader = asyncio.ensure_future(self._read_all())
        tasks = [reader, sender]
        try:
            await asyncio.gather(*tasks)
        except (Exception, asyncio.CancelledError):  # not GeneratorExit: then the loop has ended, and nothing can wait
            await self._end(tasks)
            raise
        await self._end(tasks)

    async def _end(self, serving: Sequence[asyncio.Task[None]]) -> None:
        tasks = [*serving, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        watches, self._watches = list(self._watches.values()), {}
        self._cancel(watches)

    async def _read_all(self) -> None:
        while (message := await self._stream.receive()) is not None:
            while len(self._pending) >= MAX_PROXY_WATCH_ANSWERS:
                self._room.clear()
                await self._room.wait()
            request = WatchRequest.FromString(message)
            kind = request.WhichOneof("request_union")
            if kind == "create_request":
                self._create(request.create_request)
            elif kind == "cancel_request":
                self._cancel_request(request.cancel_request.watch_id)
            elif kind == "progress_request":
                self._start(self._confirm_progress(self._answer_later()))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answer_later(self, watch: _ServedWatch | None = None) -> _Pending:
        pending = _Pending(watch=watch)
        self._pending.append(pending)
        return pending

    def _answer(self, pending: _Pending, response: WatchResponse) -> None:
        pending.response = response
        self._wake.set()

    # -- requests -----------------------------------------------------------------------------------------------------

    def _create(self, request: WatchCreateRequest) -> None:
        """Start a watch. An empty key stands for the first key of all (etcd: recvLoop)."""
        key, end = request.key or b"\0", request.range_end
        id, why = request.watch_id, ""
        if end not in (b"", b"\0") and key >= end:
            why = EMPTY_RANGE
        elif id and id in self._watches:
            why = DUPLICATE_ID
        if why:
            self._start(self._refuse(self._answer_later(), why))
            return
        if not id:
            while self._next_id in self._watches:
                self._next_id += 1
            id = self._next_id
            self._next_id += 1
        watch = self._watches[id] = _ServedWatch(self, id, request)
        pending = self._answer_later(watch)
        pending.from_now = request.start_revision == 0
        try:
            watch.subscription = self._subscribe(watch, self._translate.key_range(key, end), request)
        except KeeperError as error:
            del self._watches[id]
            pending.watch = None
            self._start(self._refuse(pending, str(error)))
            return
        if not pending.from_now:
            self._start(self._announce(pending))

    def _subscribe(self, watch: _ServedWatch, keys: KeyRange, request: WatchCreateRequest) -> Subscription:
        filters = set(request.filters)
        return self._hub.run_locked(
            lambda now: self._hub.watch_core.create(
                keys,
                start_revision=max(1, request.start_revision) if request.start_revision else 0,
                prev=request.prev_kv,
                puts=WatchCreateRequest.NOPUT not in filters,
                deletes=WatchCreateRequest.NODELETE not in filters,
                signal=watch,
                loop=self._reader,
            )
        )

    async def _refuse(self, pending: _Pending, why: str) -> None:
        header = self._backend.header(await self._newest())
        refused = WatchResponse(header=header, watch_id=NO_WATCH, created=True, canceled=True, cancel_reason=why)
        self._answer(pending, refused)

    async def _announce(self, pending: _Pending) -> None:
        """Say that a watch from a revision on is created. One from now on is announced when its start is known."""
        watch = pending.watch
        assert watch is not None
        header = self._backend.header(await self._newest())
        self._answer(pending, WatchResponse(header=header, watch_id=watch.id, created=True))

    async def _newest(self) -> int:
        """The newest revision of the store, or, if no member can confirm one now, the newest known."""
        try:
            return await self._backend.revision(self._stream)
        except RpcError:
            return self._hub.revision

    def _cancel_request(self, id: int) -> None:
        """End a watch; an unknown one is not answered."""
        watch = self._watches.pop(id, None)
        if watch is not None:
            self._cancel([watch])
            self._start(self._confirm_cancel(self._answer_later(), id))

    async def _confirm_cancel(self, pending: _Pending, id: int) -> None:
        header = self._backend.header(await self._newest())
        self._answer(pending, WatchResponse(header=header, watch_id=id, canceled=True))

    def _cancel(self, watches: Sequence[_ServedWatch]) -> None:
        def cancel_all(now: float) -> None:
            for watch in watches:
                if watch.subscription is not None:
                    self._hub.watch_core.cancel(watch.subscription, now)

        if watches:
            self._hub.run_locked(cancel_all)

    async def _confirm_progress(self, pending: _Pending) -> None:
        """Find a revision that a quorum confirms, and have the sender wait until all watches have seen it. A watch from
        now on gives both: it begins after that revision, and the answer that begins it names what the others have seen.
        """
        begun = asyncio.Event()
        signal = _BegunSignal(self._hub, self._loop, begun)
        keys, core = KeyRange(UNUSED_KEY), self._hub.watch_core
        probe = self._hub.run_locked(
            lambda now: core.create(
                keys, start_revision=0, prev=False, puts=False, deletes=False, signal=signal, loop=self._reader
            )
        )
        try:
            while not probe.fixed and probe.phase is not Phase.OVER:
                await begun.wait()
                begun.clear()
        finally:
            self._hub.run_locked(lambda now: core.cancel(probe, now))
        pending.revision = max(1, probe.start_after)
        self._wake.set()

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        """Send what is ready: answers to requests first, then events."""
        notify_at = self._next_notification()
        while True:
            self._wake.clear()
            await self._send_pending()
            while self._news:
                watch = self._news.popleft()
                watch.has_news = False
                if watch.announced and self._watches.get(watch.id) is watch:
                    await self._send_news(watch, self._deliver([watch])[0])
            if self._loop.time() >= notify_at:
                notify_at = self._next_notification()
                await self._notify()
            wait = PROXY_PROGRESS_CHECK_S if self._waits_for_progress() else notify_at - self._loop.time()
            timer = self._loop.call_later(max(0.0, wait), self._wake.set)
            await self._wake.wait()
            timer.cancel()

    def _next_notification(self) -> float:
        spread = self._random.uniform(1 - PROXY_PROGRESS_JITTER_FRACTION, 1 + PROXY_PROGRESS_JITTER_FRACTION)
        return self._loop.time() + spread * PROXY_PROGRESS_NOTIFY_S

    def _waits_for_progress(self) -> bool:
        return bool(self._pending) and self._pending[0].revision > 0

    async def _send_pending(self) -> None:
        """Send the answers that are ready, up to the first that is not."""
        while self._pending:
            pending = self._pending[0]
            if pending.revision and not await self._seen_by_all(pending.revision):
                return
            response = pending.response or self._complete(pending)
            if response is None:
                return
            self._pending.popleft()
            self._room.set()
            await self._stream.send(response.SerializeToString())
            watch = pending.watch
            if watch is not None and not response.canceled:
                watch.announced = True
                watch.has_news = True
                self._news.append(watch)

    def _complete(self, pending: _Pending) -> WatchResponse | None:
        """The answer to a request that waited for the hub; ``None`` if it still does."""
        if pending.revision:
            return WatchResponse(header=self._backend.header(pending.revision), watch_id=NO_WATCH)
        watch = pending.watch
        subscription = None if watch is None else watch.subscription
        if watch is None or subscription is None or not pending.from_now:
            return None
        if not subscription.fixed and subscription.phase is not Phase.OVER:
            return None
        if not subscription.fixed and (reason := self._denial(subscription)):
            self._watches.pop(watch.id, None)
            watch.ended = True
            header = self._backend.header(self._hub.revision)
            return WatchResponse(header=header, watch_id=watch.id, created=True, canceled=True, cancel_reason=reason)
        revision = subscription.start_after if subscription.fixed else self._hub.revision
        return WatchResponse(header=self._backend.header(revision), watch_id=watch.id, created=True)

    async def _seen_by_all(self, revision: int) -> bool:
        """Send all events up to a revision; whether every watch has come that far."""
        watches = [watch for watch in self._watches.values() if watch.announced]
        seen = True
        for watch, taken in zip(watches, self._deliver(watches), strict=True):
            await self._send_news(watch, taken)
            seen = seen and (taken.position >= revision or taken.over)
        return seen

    def _deliver(self, watches: Sequence[_ServedWatch]) -> list[Delivery]:
        core = self._hub.watch_core
        subscriptions = [watch.subscription for watch in watches if watch.subscription is not None]
        return self._hub.run_locked(lambda now: [core.deliver(subscription) for subscription in subscriptions])

    async def _notify(self) -> None:
        """Tell how far quiet watches have come that want to know."""
        watches = [watch for watch in self._watches.values() if watch.notify and watch.announced]
        for watch, taken in zip(watches, self._deliver(watches), strict=True):
            await self._send_news(watch, taken)
            if watch.quiet and not taken.over:
                header = self._backend.header(taken.position)
                await self._stream.send(WatchResponse(header=header, watch_id=watch.id).SerializeToString())
            watch.quiet = True

    async def _send_news(self, watch: _ServedWatch, taken: Delivery) -> None:
        for events in _answers_of(taken.events):
            response = WatchResponse(
                header=self._backend.header(events[-1].item.mod_revision),
                watch_id=watch.id,
                events=map(self._event, events),
            )
            watch.quiet = False
            most = self._backend.limits.max_request_bytes + RPC_OVERHEAD_BYTES
            for part in fragments(response, most) if watch.fragment else (response,):
                await self._stream.send(part.SerializeToString())
        if taken.over and taken.error is not None and watch.subscription is not None and not watch.ended:
            watch.ended = True
            await self._stream.send(self._ended(watch, watch.subscription).SerializeToString())

    def _ended(self, watch: _ServedWatch, subscription: Subscription) -> WatchResponse:
        """The answer that ends a watch whose next revision is compacted, or that no member will serve."""
        error = subscription.error
        ended = WatchResponse(header=self._backend.header(0), watch_id=watch.id, canceled=True)
        if isinstance(error, CompactedError):
            ended.compact_revision = error.compact_revision
        else:
            ended.cancel_reason = self._denial(subscription) or str(error)
        return ended

    def _denial(self, subscription: Subscription) -> str:
        """Why a user may not watch, which is noted; empty if that was not why a watch ended."""
        reason = _refusal_of(subscription.error)
        if reason:
            self._denied(self._stream.client, reason)
        return reason

    def _event(self, event: WatchEvent) -> Event:
        item = event.item
        if event.deleted:
            kv = KeyValue(key=item.key[len(self._translate.space) :], mod_revision=item.mod_revision)
        else:
            kv = self._translate.pair(item)
        return Event(
            type=Event.DELETE if event.deleted else Event.PUT,
            kv=kv,
            prev_kv=None if event.prev is None else self._translate.pair(event.prev),
        )


class _BegunSignal:
    """Wakes the coroutine that waits for a watch to begin."""

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop, begun: asyncio.Event) -> None:
        self._hub = hub
        self._loop = loop
        self._begun = begun

    def wake(self) -> None:
        """Called with the hub's lock held."""
        self._hub.flush_later(self)

    def flush(self) -> None:
        """The hub's lock is released."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._begun.set)


def _answers_of(events: Sequence[WatchEvent]) -> Iterator[Sequence[WatchEvent]]:
    """Events in parts of a bounded size, each of whole revisions."""
    start = size = 0
    for number, event in enumerate(events):
        item = event.item
        if size > PROXY_WATCH_ANSWER_BYTES and item.mod_revision != events[number - 1].item.mod_revision:
            yield events[start:number]
            start, size = number, 0
        size += len(item.key) + len(item.value) + (len(event.prev.value) if event.prev is not None else 0)
    if events:
        yield events[start:]


def fragments(response: WatchResponse, most: int) -> Iterator[WatchResponse]:
    """A response in parts of less than ``most`` bytes, or of one event (etcd: sendFragments)."""
    if response.ByteSize() < most or len(response.events) < 2:
        yield response
        return
    part = WatchResponse(header=response.header, watch_id=response.watch_id, fragment=True)
    empty = size = part.ByteSize()
    for event in response.events:
        event_bytes = event.ByteSize()
        needed = 1 + (event_bytes.bit_length() + 6) // 7 + event_bytes  # tag, length as a varint, and the event
        if part.events and size + needed >= most:
            yield part
            part = WatchResponse(header=response.header, watch_id=response.watch_id, fragment=True)
            size = empty
        part.events.append(event)
        size += needed
    part.fragment = False
    yield part
