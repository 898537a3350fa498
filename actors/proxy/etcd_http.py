"""What a proxy serves by plain HTTP: keys under ``/kv/``, etcd's JSON gateway, ``/health``, ``/livez``, ``/readyz`` and
``/version``."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from urllib.parse import parse_qs

from .etcd_backend import EtcdBackend, UntimedContext
from .etcd_services import EtcdServices
from .etcdpb.message_pool import Method
from .gateway import (
    JSON_TYPE,
    PREFIXES,
    JsonRequests,
    error_json,
    error_line,
    find_method,
    request_of,
    response_json,
    stream_line,
)
from .http_exchange import HttpError, HttpExchange
from .key_requests import KEYS_PATH
from .key_values import KeyValues
from .maintenance_service import ETCD_VERSION
from .rpc_status import RpcCode, RpcError

_JSON = {"content-type": JSON_TYPE}
_TEXT = {"content-type": "text/plain; charset=utf-8"}
_NOT_ALLOWED = "Method Not Allowed\n"
_CLUSTER_VERSION = ETCD_VERSION.rpartition(".")[0] + ".0"


class EtcdHttp:
    """The handler of all requests that are not gRPC's.

    Args:
        backend: the cluster.
        services: what the gateway's paths stand for.
    """

    def __init__(self, backend: EtcdBackend, services: EtcdServices) -> None:
        self._backend = backend
        self._services = services
        self._keys = KeyValues(backend)
        self._pages = {
            "/health": self._health,
            "/livez": self._live,
            "/readyz": self._ready,
            "/version": self._version,
        }

    async def handle(self, exchange: HttpExchange) -> None:
        """Answer one request."""
        if exchange.path.startswith(KEYS_PATH):
            await self._keys.handle(exchange)
            return
        method = find_method(exchange.path)
        if method is not None:
            if exchange.method != "POST":
                raise HttpError(405, _NOT_ALLOWED)
            await self._call(exchange, method)
            return
        if exchange.path.startswith(PREFIXES):
            raise HttpError(404, "Not Found\n")
        page = self._pages.get(exchange.path)
        if page is None:
            raise HttpError(404, "404 page not found\n")
        if exchange.method not in ("GET", "HEAD"):
            raise HttpError(405, _NOT_ALLOWED)
        await page(exchange)

    # -- the gateway --------------------------------------------------------------------------------------------------

    async def _call(self, exchange: HttpExchange, method: Method) -> None:
        unary = self._services.unary.get(method.path)
        streaming = self._services.streaming.get(method.path)
        try:
            if unary is not None:
                request = request_of(method, await exchange.body())
                answer = await unary(request, UntimedContext())
                await exchange.respond(200, response_json(method, answer), _JSON)
            elif streaming is not None:
                await streaming(_LineStream(exchange, method))
                if not exchange.started:
                    await exchange.respond(200, b"", _JSON)
            else:
                raise RpcError(RpcCode.UNIMPLEMENTED, f"unknown method {method.path.rpartition('/')[2]}")
        except RpcError as error:
            error.__cause__ = None
            if exchange.started:
                await exchange.send(error_line(error))
            else:
                status, body = error_json(error)
                await exchange.respond(status, body, _JSON)

    # -- pages --------------------------------------------------------------------------------------------------------

    async def _health(self, exchange: HttpExchange) -> None:
        """As etcd's: unhealthy with an alarm that is not excluded, without a leader, and if nothing can be read."""
        query = parse_qs(exchange.query)
        serializable = query.get("serializable") == ["true"]
        why = await self._services.why_unhealthy(set(query.get("exclude", ())), serializable)
        body = json.dumps({"health": "false" if why else "true", "reason": why}, separators=(",", ":"))
        await exchange.respond(503 if why else 200, body.encode(), _TEXT)

    async def _live(self, exchange: HttpExchange) -> None:
        """Whether the member can be read at all."""
        await _checks(exchange, {"serializable_read": await self._services.why_unhealthy(None, True)})

    async def _ready(self, exchange: HttpExchange) -> None:
        """Whether the cluster serves."""
        checks = {
            "data_corruption": await self._services.why_unhealthy({"NOSPACE"}, True),
            "serializable_read": await self._services.why_unhealthy(None, True),
            "linearizable_read": await self._services.why_unhealthy(None, False),
        }
        await _checks(exchange, checks)

    async def _version(self, exchange: HttpExchange) -> None:
        body = json.dumps({"etcdserver": ETCD_VERSION, "etcdcluster": _CLUSTER_VERSION}, separators=(",", ":"))
        await exchange.respond(200, body.encode(), _JSON)


async def _checks(exchange: HttpExchange, found: Mapping[str, str]) -> None:
    """The page of some checks, each with why it fails or an empty text (etcd: healthz)."""
    failed = any(found.values())
    lines = [f"[-]{name} failed: {why}\n" if why else f"[+]{name} ok\n" for name, why in found.items()]
    verbose = failed or "verbose" in parse_qs(exchange.query, keep_blank_values=True)
    text = "".join(lines if verbose else []) + ("" if failed else "ok\n")
    await exchange.respond(503 if failed else 200, text.encode(), _TEXT)


class _LineStream(UntimedContext):
    """A stream of requests and answers, as JSON values in the body of a request and lines in that of an answer."""

    def __init__(self, exchange: HttpExchange, method: Method) -> None:
        super().__init__()
        self._exchange = exchange
        self._method = method
        self._requests = JsonRequests(method)
        self._decoded: deque[bytes] = deque()
        self._ended = False

    async def receive(self) -> bytes | None:
        """The next request; of a method with one, that, or an empty one."""
        while not self._decoded and not self._ended:
            data = await self._exchange.receive()
            self._ended = not data
            self._decoded.extend(self._requests.feed(data, last=self._ended))
        if self._decoded:
            request = self._decoded.popleft()
            if not self._method.client_streaming:
                self._decoded.clear()
                self._ended = True
            return request
        return None

    async def send(self, message: bytes) -> None:
        """One line."""
        if not self._exchange.started:
            await self._exchange.start(200, _JSON)
        await self._exchange.send(stream_line(self._method, message))
