"""``/kv/<key>``: keys and values by plain HTTP, for curl and for programs without a client of etcd's.

Values are bodies, as they are. ``ETag`` is the mod revision, so that ``If-Match`` and ``If-None-Match`` are comparisons
of etcd's in one transaction with the write. A request with an ``Idempotency-Key`` that is sent again is not done again:
the key is the ``request_id`` of RayKeeper's own clients. The page docs/http.md says what each request may have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote_from_bytes

from ...errors import KeeperError
from ...schema.answers import Answer, DeleteAnswer, Item, RangeAnswer, TxnAnswer
from ...schema.operations import Delete, KeyRange, Put, Range, Txn
from ..client.view import Call, Steps, named, page, prefix_end, rest_of
from .etcd_backend import EtcdBackend, UntimedContext
from .http_exchange import HttpError, HttpExchange
from .key_forms import (
    DELETED,
    REVISION_HEADER,
    TEXT_TYPE,
    compact_json,
    headers_of,
    http_error,
    line,
    pair_json,
    path_of,
)
from .key_requests import KeyRequest, Precondition, parse_preconditions, parse_request
from .key_watch import serve_watch
from .long_reads import Place

METHODS = ("GET", "HEAD", "PUT", "DELETE")
_VALUE = {
    "content-type": "application/octet-stream",
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
}
_LIST = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class KeyValues:
    """Answers requests whose paths begin with ``/kv/``; see the module.

    Args:
        backend: the cluster, which is open.
    """

    def __init__(self, backend: EtcdBackend) -> None:
        self._backend = backend

    async def handle(self, exchange: HttpExchange) -> None:
        """Answer one request.

        Raises:
            HttpError: it failed.
        """
        if exchange.method not in METHODS:
            raise HttpError(405, "Method Not Allowed\n", {"allow": ", ".join(METHODS)})
        asked = parse_request(exchange)
        conditions = parse_preconditions(exchange.headers)
        if conditions and asked.kind in ("list", "watch", "delete all"):
            raise HttpError(400, "If-Match and If-None-Match go with one key\n")
        try:
            if asked.kind == "get":
                await self._get(exchange, asked, conditions)
            elif asked.kind == "list":
                async with self._backend.long_reads.place() as place:
                    body, headers = await self._list(exchange, asked, place)
                await exchange.respond(200, body, headers)
            elif asked.kind == "watch":
                await serve_watch(self._backend, exchange, asked)
            elif asked.kind == "put":
                await self._put(exchange, asked, conditions)
            else:
                await self._delete(exchange, asked, conditions)
        except KeeperError as error:
            raise http_error(error, exchange.method in ("PUT", "DELETE")) from None

    # -- reads --------------------------------------------------------------------------------------------------------

    async def _get(self, exchange: HttpExchange, asked: KeyRequest, conditions: Sequence[Precondition]) -> None:
        command = Range(KeyRange(self._backend.space + asked.key), asked.revision)
        answer = await self._ask(page(command, "serializable" in asked.flags), exchange)
        revision = {REVISION_HEADER: str(answer.revision)}
        item = answer.items[0] if answer.items else None
        headers = headers_of(item, answer.revision) if item else revision
        for each in conditions:
            if not each.holds(item.mod_revision if item else 0):
                if each.match:
                    raise _precondition(item, headers)
                await exchange.respond(304, b"", headers)
                return
        if item is None:
            raise HttpError(404, "the key does not exist\n", headers)
        await exchange.respond(200, item.value, {**_VALUE, **headers})

    async def _list(self, exchange: HttpExchange, asked: KeyRequest, place: Place) -> tuple[bytes, dict[str, str]]:
        """One page of the keys with a prefix, and where the next one begins, at the same revision."""
        space, flags = self._backend.space, asked.flags
        keys = KeyRange(space + asked.start, prefix_end(space + asked.key))
        keys_only = "keys_only" in flags
        command = Range(keys, asked.revision, asked.limit, keys_only=keys_only, uncounted=True)
        answer = await place.wait_for(self._ask(page(command, "serializable" in flags), exchange))
        await self._backend.wait_for_turn(answer.items)
        rest = rest_of(keys, answer)
        headers = {**_LIST, REVISION_HEADER: str(answer.revision)}
        following = ""
        if rest is not None:
            at = asked.revision or answer.revision
            following = self._next_page(asked, rest.key[len(space) :], at)
            headers["link"] = f'<{following}>; rel="next"'
        if "text" in flags:
            body = b"".join(self._line(item, keys_only) for item in answer.items)
            return body, {**headers, "content-type": TEXT_TYPE}
        found: dict[str, Any] = {"revision": str(answer.revision)}
        found["kvs"] = [pair_json(item, len(space), not keys_only) for item in answer.items]
        if following:
            found["next"] = following
        return compact_json(found) + b"\n", {**headers, "content-type": "application/json"}

    def _line(self, item: Item, keys_only: bool) -> bytes:
        key = item.key[len(self._backend.space) :]
        return line((key,) if keys_only else (key, item.value))

    @staticmethod
    def _next_page(asked: KeyRequest, start: bytes, revision: int) -> str:
        """The path and query of the next page."""
        kept = [name for name in ("keys_only", "serializable", "text") if name in asked.flags]
        query = "&".join(["prefix", *kept, f"limit={asked.limit}", f"revision={revision}"])
        return f"{path_of(asked.key)}?{query}&start={quote_from_bytes(start, safe='/')}"

    # -- writes -------------------------------------------------------------------------------------------------------

    async def _put(self, exchange: HttpExchange, asked: KeyRequest, conditions: Sequence[Precondition]) -> None:
        key = self._backend.space + asked.key
        put = Put(key, await exchange.body(), asked.lease)
        answer = await self._write(exchange, key, conditions, (put, _what_is_there(key)))
        item = _item(answer.responses[1])
        assert item is not None  # it was put in the same transaction
        await exchange.respond(201 if item.version == 1 else 200, b"", headers_of(item, answer.revision))

    async def _delete(self, exchange: HttpExchange, asked: KeyRequest, conditions: Sequence[Precondition]) -> None:
        key = self._backend.space + asked.key
        everything = asked.kind == "delete all"
        delete = Delete(KeyRange(key, prefix_end(key)) if everything else KeyRange(key))
        answer = await self._write(exchange, key, conditions, (delete,))
        deleted = answer.responses[0]
        assert isinstance(deleted, DeleteAnswer)
        headers = {REVISION_HEADER: str(answer.revision), DELETED: str(deleted.deleted)}
        if not deleted.deleted and not everything:
            raise HttpError(404, "the key does not exist\n", headers)
        await exchange.respond(200, b"", headers)

    async def _write(
        self, exchange: HttpExchange, key: bytes, conditions: Sequence[Precondition], operations: tuple[Any, ...]
    ) -> TxnAnswer:
        """Run operations if the conditions hold.

        Raises:
            HttpError: 412, they do not.
            KeeperError: it failed.
        """
        otherwise = (_what_is_there(key),) if conditions else ()
        command = Txn(tuple([each.compare(key) for each in conditions]), operations, otherwise)
        name = exchange.headers.get("idempotency-key")
        request_id = None if name is None else named(self._backend.space, name, command)
        size = sum(len(each.value or b"") for each in operations if isinstance(each, Put))
        asked = self._ask(_one(Call(command, request_id=request_id)), exchange)
        answer = await self._backend.long_writes.run(size, exchange.client, math.inf, asked)
        assert isinstance(answer, TxnAnswer)
        if not answer.succeeded:
            item = _item(answer.responses[0])
            revision = {REVISION_HEADER: str(answer.revision)}
            raise _precondition(item, headers_of(item, answer.revision) if item else revision)
        return answer

    async def _ask(self, steps: Steps[Any], exchange: HttpExchange) -> Any:
        return await self._backend.ask(steps, UntimedContext(exchange.headers))


def _what_is_there(key: bytes) -> Range:
    return Range(KeyRange(key), keys_only=True)


def _item(answer: Answer) -> Item | None:
    assert isinstance(answer, RangeAnswer)
    return answer.items[0] if answer.items else None


def _precondition(item: Item | None, headers: Mapping[str, str]) -> HttpError:
    found = "the key does not exist" if item is None else f"the key was changed last at revision {item.mod_revision}"
    return HttpError(412, f"the condition does not hold: {found}\n", headers)


def _one(call: Call) -> Steps[Answer]:
    answer: Answer = yield call
    return answer
