"""``/kv/<key>?watch``: changes of keys as they happen, as server-sent events (WHATWG HTML, 9.2) or lines of text.

The last event of each revision has the revision as its ``id``. So a client that was cut off in the middle of a revision
gets all of it again, and misses nothing: browsers and other clients of server-sent events send the last id that they
saw as ``Last-Event-ID``, and the watch goes on after it. While nothing happens, an ``id`` alone comes now and then,
which no client shows: it keeps the connection open, and the place to go on from out of reach of compaction.

If what comes next is compacted, an event ``error`` says so and ends the stream; a request that begins there is answered
with 410. In either case the client has to read the present, and to watch from there.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ...errors import CompactedError, FutureRevisionError, KeeperError
from ...limits import HTTP_WATCH_NOTICE_S
from ...schema.answers import Item
from ...schema.operations import KeyRange, Range
from ..client.results import Event, KeyValue
from ..client.view import page
from ..client.watch import AsyncWatch
from .etcd_backend import EtcdBackend, UntimedContext
from .http_exchange import HttpError, HttpExchange
from .key_forms import REVISION_HEADER, TEXT_TYPE, compact_json, deleted_json, line, pair_json
from .key_requests import KeyRequest


async def serve_watch(backend: EtcdBackend, exchange: HttpExchange, asked: KeyRequest) -> None:
    """Send changes until the client is gone or the watch has ended.

    Raises:
        HttpError: a watch cannot be asked for in this way.
        KeeperError: it cannot begin; a ``CompactedError`` if its first revision is compacted.
    """
    if exchange.method != "GET":
        raise HttpError(405, "Method Not Allowed\n", {"allow": "GET"})
    start = asked.from_revision
    if start:
        await _check_start(backend, exchange, start)
    watch = await backend.watch_key(asked.key, "prefix" in asked.flags, start or None, "prev" in asked.flags)
    try:
        form = _Lines(watch) if "text" in asked.flags else _ServerSentEvents(watch)
        headers = {
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            REVISION_HEADER: str(watch.revision),
        }
        await exchange.start(200, {**headers, "content-type": form.content_type})
        await _send_all(exchange, watch, form)
    finally:
        await watch.cancel()


async def _check_start(backend: EtcdBackend, exchange: HttpExchange, start: int) -> None:
    """Whether the history reaches back to where a watch begins; one that begins in the future waits."""
    command = Range(KeyRange(backend.space), start, count_only=True)
    with suppress(FutureRevisionError):
        await backend.ask(page(command, False), UntimedContext(exchange.headers))


async def _send_all(exchange: HttpExchange, watch: AsyncWatch, form: _Lines | _ServerSentEvents) -> None:
    await exchange.send(form.begin())
    while True:
        try:
            event = await watch.next(HTTP_WATCH_NOTICE_S)
        except KeeperError as error:
            await exchange.send(form.error(error))
            return
        await exchange.send(form.notice() if event is None else form.event(event))


class _ServerSentEvents:
    """Events as the standard has them."""

    content_type = "text/event-stream"

    def __init__(self, watch: AsyncWatch) -> None:
        self._watch = watch

    def begin(self) -> bytes:
        """What comes first: that it has begun, and where."""
        return f": changes after revision {self._watch.revision}\n".encode() + self.notice()

    def notice(self) -> bytes:
        """That all up to a revision was sent."""
        return b"id: %d\n\n" % self._watch.revision

    def event(self, event: Event) -> bytes:
        """One change."""
        kv = event.kv
        data = deleted_json(kv.key, kv.mod_revision) if event.type == "delete" else pair_json(_item(kv), 0)
        if event.prev is not None:
            data["prev"] = pair_json(_item(event.prev), 0)
        last = self._watch.revision >= kv.mod_revision
        id = b"id: %d\n" % kv.mod_revision if last else b""
        return b"%sevent: %s\ndata: %s\n\n" % (id, event.type.encode(), compact_json(data))

    def error(self, error: KeeperError) -> bytes:
        """Why the watch has ended."""
        data: dict[str, Any] = {"error": str(error)}
        if isinstance(error, CompactedError):
            data["compact_revision"] = str(error.compact_revision)
        return b"event: error\ndata: %s\n\n" % compact_json(data)


class _Lines:
    """One line for each change: revision, put or delete, key, and of a put the value."""

    content_type = TEXT_TYPE

    def __init__(self, watch: AsyncWatch) -> None:
        self._watch = watch

    def begin(self) -> bytes:
        """Nothing: a header has the revision."""
        return b""

    def notice(self) -> bytes:
        """Nothing."""
        return b""

    def event(self, event: Event) -> bytes:
        """One change."""
        kv = event.kv
        fields = (str(kv.mod_revision), event.type, kv.key)
        return line(fields if event.type == "delete" else (*fields, kv.raw))

    def error(self, error: KeeperError) -> bytes:
        """Why the watch has ended."""
        return line(("0", "error", str(error).encode()))


def _item(kv: KeyValue) -> Item:
    return Item(kv.key, kv.raw, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
