"""The console's view of keys: one level of the tree, one key with its history, and a live tail.

A level is read page by page. Where a folder begins, all of its keys are passed over by reading on behind them, so a
folder of a million keys costs as much as one of two.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from ...errors import CompactedError, KeeperError
from ...limits import (
    CONSOLE_CUT_BYTES,
    CONSOLE_HISTORY_BYTES,
    CONSOLE_KEY_BYTES,
    CONSOLE_KEYS,
    CONSOLE_READS,
    CONSOLE_VALUE_BYTES,
    CONSOLE_VERSIONS,
    HTTP_WATCH_NOTICE_S,
    MAX_CONSOLE_TAILS,
)
from ...schema.answers import Item, RangeAnswer
from ...schema.operations import KeyRange, Range
from ..client.results import Event
from ..client.view import page, prefix_end, rest_of
from .console_forms import id_form, key_form, value_form
from .etcd_backend import CallContext, EtcdBackend, expect
from .etcd_errors import TOO_MANY_REQUESTS, from_keeper_error
from .http_exchange import HttpExchange
from .rpc_status import RpcCode, RpcError


async def list_level(backend: EtcdBackend, prefix: bytes, start: bytes, context: CallContext) -> dict[str, Any]:
    """The folders and keys directly below a prefix, from ``start`` on; ``next`` is where the next page begins.

    Raises:
        RpcError: it could not be read.
    """
    space = backend.space
    end = prefix_end(space + prefix)
    cursor: bytes | None = max(prefix, start)
    entries: list[dict[str, Any]] = []
    revision = size = 0
    for _ in range(CONSOLE_READS):
        if cursor is None or len(entries) >= CONSOLE_KEYS or size >= CONSOLE_KEY_BYTES:
            break
        keys = KeyRange(space + cursor, end)
        command = Range(keys, 0, CONSOLE_KEYS, keys_only=True, uncounted=True)
        answer = expect(await backend.run(page(command, False), context), RangeAnswer)
        revision = answer.revision
        rest = rest_of(keys, answer)
        for item in answer.items:
            key = item.key[len(space) :]
            if cursor is None or key < cursor:  # in the folder that was found last
                continue
            if len(entries) >= CONSOLE_KEYS or size >= CONSOLE_KEY_BYTES:
                rest = KeyRange(space + cursor)
                break
            name, slash, _ = key[len(prefix) :].partition(b"/")
            size += len(key)
            if slash:
                folder = prefix + name + b"/"
                entries.append({"folder": True, **key_form(folder, len(prefix))})
                beyond = prefix_end(space + folder)
                cursor = beyond[len(space) :] if beyond and (not end or beyond < end) else None
            else:
                entries.append({"folder": False, **key_form(key, len(prefix)), **_numbers(item)})
                cursor = key + b"\0"
        if rest is None:
            cursor = None
        elif cursor is not None:
            cursor = max(cursor, rest.key[len(space) :])
    following = {} if cursor is None else {"next": key_form(cursor)["path"]}
    return {"revision": revision, "prefix": key_form(prefix), "entries": entries, **following}


async def describe_key(backend: EtcdBackend, key: bytes, context: CallContext) -> dict[str, Any]:
    """A key with its value, and the versions before it as far as they go: to its creation, to what is compacted, or to
    a bound; ``end`` says which.

    Raises:
        RpcError: there is no such key, or it could not be read.
    """
    item = await _item_at(backend, key, 0, context)
    if item is None:
        raise RpcError(RpcCode.NOT_FOUND, "the key does not exist")
    history: list[dict[str, Any]] = []
    end, found, read = "created", item, len(item.value)
    while found.version > 1:
        if len(history) >= CONSOLE_VERSIONS or read > CONSOLE_HISTORY_BYTES:
            end = "more"
            break
        try:
            older = await _item_at(backend, key, found.mod_revision - 1, context, whole=True)
        except CompactedError:
            end = "compacted"
            break
        if older is None:
            break
        found = older
        read += len(found.value)
        history.append({**_numbers(found), "value": value_form(found.value, CONSOLE_CUT_BYTES)})
    value = value_form(item.value, CONSOLE_VALUE_BYTES)
    return {**key_form(key), **_numbers(item), "value": value, "history": history, "end": end}


async def _item_at(
    backend: EtcdBackend, key: bytes, revision: int, context: CallContext, whole: bool = False
) -> Item | None:
    """Raises ``RpcError``; for what is compacted, ``CompactedError``."""
    command = Range(KeyRange(backend.space + key), revision)
    try:
        answer = expect(await backend.ask(page(command, False), context), RangeAnswer)
    except CompactedError:
        raise
    except KeeperError as error:
        raise from_keeper_error(error) from error
    return answer.items[0] if answer.items else None


def _numbers(item: Item) -> dict[str, Any]:
    return {
        "create_revision": item.create_revision,
        "mod_revision": item.mod_revision,
        "version": item.version,
        "lease": id_form(item.lease) if item.lease else "",
    }


class Tails:
    """Live tails: the changes of a key, or of all keys with a prefix, one JSON object a line.

    A user (without users, a host) may have as many as there are places left for all others. So each has room for one
    while few have, and nobody takes all of it: the first has half of the places at most, the next half of the rest.
    """

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    async def follow(
        self, backend: EtcdBackend, exchange: HttpExchange, key: bytes, prefix: bool, headers: dict[str, str]
    ) -> None:
        """Send changes until the client is gone or the watch ends.

        Raises:
            RpcError: it cannot begin, or there are too many.
        """
        whose = f"user {backend.user}" if backend.user else f"host {exchange.client.partition(' port ')[0]}"
        if self._open[whose] >= MAX_CONSOLE_TAILS - self._open.total():
            raise TOO_MANY_REQUESTS.error()
        self._open[whose] += 1
        try:
            try:
                watch = await backend.watch_key(key, prefix, None, False)
            except KeeperError as error:
                raise from_keeper_error(error) from error
            try:
                await exchange.start(200, {**headers, "content-type": "application/x-ndjson"})
                await exchange.send(_line({"revision": watch.revision}))
                while True:
                    try:
                        event = await watch.next(HTTP_WATCH_NOTICE_S)
                    except KeeperError as error:
                        await exchange.send(_line({"error": str(error)}))
                        return
                    await exchange.send(_line({"revision": watch.revision} if event is None else _change(event)))
            finally:
                await watch.cancel()
        finally:
            self._open[whose] -= 1
            if not self._open[whose]:
                del self._open[whose]


def _change(event: Event) -> dict[str, Any]:
    kv = event.kv
    found = {"type": event.type, "revision": kv.mod_revision, **key_form(kv.key)}
    if event.type == "delete":
        return found
    return {**found, "version": kv.version, "value": value_form(kv.raw, CONSOLE_CUT_BYTES)}


_dump: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":")).encode


def _line(value: dict[str, Any]) -> bytes:
    return _dump(value).encode() + b"\n"
