"""What a proxy serves by plain HTTP: keys under ``/kv/``, etcd's JSON gateway, health checks, ``/metrics``,
``/version``, and the console, if it is on.

Pages of other origins may ask only if their origin is allowed; then every answer says so (CORS), as etcd's do.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qs

from ...limits import GATEWAY_END_S, PROXY_TIMEOUT_S
from ...telemetry import Telemetry
from ..client.aio_timeout import within
from ..tracing import TRACEPARENT, GivenParent
from .console_site import ConsoleSite, is_console
from .etcd_backend import EtcdBackend, UntimedContext
from .etcd_services import EtcdServices
from .etcdpb.message_pool import Method
from .gateway import (
    JSON_TYPE,
    PREFIXES,
    JsonRequests,
    body_of,
    error_json,
    error_line,
    find_method,
    metadata_of,
    request_of,
    response_json,
    stream_line,
    timeout_of,
)
from .health_pages import HealthPages
from .http_exchange import HttpError, HttpExchange
from .key_forms import EXPOSED, WHO_ARE_YOU
from .key_requests import KEYS_PATH, basic_credentials
from .key_values import KeyValues
from .maintenance_service import CLUSTER_VERSION, ETCD_VERSION
from .proxy_audit import claimed_user
from .proxy_metrics import ProxyMetrics
from .rpc_methods import RpcMethod, RpcMethods
from .rpc_status import CANCELED, DEADLINE_EXCEEDED, RpcCode, RpcError

T = TypeVar("T")

_JSON = {"content-type": JSON_TYPE}
_NOT_ALLOWED = "Method Not Allowed\n"
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}
_ALLOWED_HEADERS = "accept, content-type, authorization, if-match, if-none-match, idempotency-key, last-event-id"
_VERSION = json.dumps({"etcdserver": ETCD_VERSION, "etcdcluster": CLUSTER_VERSION}, separators=(",", ":")).encode()


class EtcdHttp:
    """The handler of all requests that are not gRPC's.

    Args:
        backend: the cluster, which is open.
        services: what the gateway's paths stand for.
        methods: where calls by way of the gateway are counted, too.
        cors: origins whose pages may ask (``https://host``), or ``*`` for all.
        telemetry: the process's; by default, one of its own.
        console: the web page, if it is served.
    """

    def __init__(
        self,
        backend: EtcdBackend,
        services: EtcdServices,
        methods: RpcMethods,
        cors: Sequence[str] = (),
        telemetry: Telemetry | None = None,
        console: ConsoleSite | None = None,
    ) -> None:
        self._backend = backend
        self._services = services
        self._methods = methods
        self._cors = frozenset(cors)
        self._console = console
        self._health = HealthPages(backend, services.calls)
        self.metrics = ProxyMetrics(telemetry or Telemetry(), methods, self._health, backend.hub)

    async def handle(self, exchange: HttpExchange) -> None:
        """Answer one request."""
        with GivenParent(exchange.headers.get(TRACEPARENT, "")):
            await self._handle(exchange)

    async def _handle(self, exchange: HttpExchange) -> None:
        name, status = "other", 500
        if exchange.path.startswith(KEYS_PATH):
            name = "kv"
        elif exchange.path.startswith(PREFIXES):
            name = "gateway"
        elif self._console is not None and is_console(exchange.path):
            name = "console"
        try:
            if name == "console" and self._console is not None:
                await self._console.handle(exchange)
            elif self._answer_cors(exchange):
                await exchange.respond(200, b"", {})
            elif name == "kv":
                await self._key(exchange)
            elif name == "gateway":
                await self._gateway(exchange)
            else:
                name = await self._page(exchange)
            status = exchange.status
        except HttpError as error:
            status = error.status
            raise
        finally:
            method = exchange.method if exchange.method in _METHODS else "other"
            self.metrics.http_requests[name, method, exchange.status or status] += 1

    def _answer_cors(self, exchange: HttpExchange) -> bool:
        """Say that a page of another origin may see the answer, if it may; whether that is all that was asked for."""
        origin = exchange.headers.get("origin", "")
        if not self._cors or not ("*" in self._cors or origin in self._cors):
            return False
        exchange.added = {
            "access-control-allow-origin": "*" if "*" in self._cors else origin,
            "access-control-allow-methods": "POST, GET, OPTIONS, PUT, DELETE",
            "access-control-allow-headers": _ALLOWED_HEADERS,
            "access-control-expose-headers": ", ".join(EXPOSED),
            "vary": "origin",
        }
        return exchange.method == "OPTIONS"

    async def _key(self, exchange: HttpExchange) -> None:
        user = ""
        try:
            given = basic_credentials(exchange.headers)
            user = given[0] if given else claimed_user(exchange.headers)
            backend = await self._backend_of(exchange, given)
            user = backend.user
            await KeyValues(backend).handle(exchange)
        except HttpError as error:
            self._services.audit.refused_http(user, exchange.client, exchange.method, error)
            raise

    async def _backend_of(self, exchange: HttpExchange, given: tuple[str, str] | None) -> EtcdBackend:
        """The cluster as the user of a request to ``/kv/`` sees it: named by HTTP Basic, or by a token as in the
        gateway.

        Raises:
            HttpError: 401, password or token is wrong.
        """
        try:
            if given is None:
                services = await self._services.of_caller(UntimedContext(exchange.headers, exchange.client))
            else:
                services = await self._services.of_password(*given, PROXY_TIMEOUT_S)
        except RpcError as error:
            if error.code in (RpcCode.UNAUTHENTICATED, RpcCode.INVALID_ARGUMENT):
                raise HttpError(401, f"{error.text}\n", WHO_ARE_YOU) from None
            raise HttpError(503, f"{error.text}\n", {"retry-after": "1"}) from None
        return services.backend

    # -- the gateway --------------------------------------------------------------------------------------------------

    async def _gateway(self, exchange: HttpExchange) -> None:
        method = find_method(exchange.path)
        if method is None:
            raise HttpError(404, "Not Found\n")
        if exchange.method != "POST":
            raise HttpError(405, _NOT_ALLOWED)
        counted = self._methods.get(method.path)
        code = CANCELED.code
        if counted is not None:
            counted.started += 1
        try:
            await self._call(exchange, method, counted)
            code = RpcCode.OK
        except RpcError as error:
            code = error.code
            error.__cause__ = None
            if exchange.started:
                await exchange.send(error_line(error))
            else:
                status, body = error_json(error)
                await exchange.respond(status, body, _JSON)
        finally:
            if counted is None:
                pass
            elif code is RpcCode.OK:
                counted.succeeded += 1
            else:
                counted.count_failure(code)

    async def _call(self, exchange: HttpExchange, method: Method, counted: RpcMethod | None) -> None:
        unary = self._services.unary.get(method.path)
        streaming = self._services.streaming.get(method.path)
        if counted is None:
            raise RpcError(RpcCode.UNIMPLEMENTED, f"unknown method {method.path.rpartition('/')[2]}")
        if unary is not None:
            context = _GatewayContext(exchange)

            async def take() -> bytes:
                request = request_of(method, await body_of(exchange))
                counted.received += 1
                return request

            async def serve() -> bytes:
                return await unary(await take(), context)

            if not context.time_left():
                await within(GATEWAY_END_S, take())  # etcd, too, says first what is wrong with it
            answer = await context.while_time_is_left(serve)
            counted.sent += 1
            await exchange.respond(200, response_json(method, answer), _JSON)
        elif streaming is not None:
            stream = _LineStream(exchange, method, counted)
            await stream.while_time_is_left(lambda: streaming(stream))
            if not exchange.started:
                await exchange.respond(200, b"", _JSON)

    # -- pages --------------------------------------------------------------------------------------------------------

    async def _page(self, exchange: HttpExchange) -> str:
        """Answer a request for a page; returns what it is called in the metrics."""
        if await self._health.handle(exchange):
            return "health"
        if exchange.path not in ("/version", "/metrics"):
            raise HttpError(404, "404 page not found\n")
        if exchange.method != "GET":
            raise HttpError(405, _NOT_ALLOWED, {"allow": "GET"})
        if exchange.path == "/version":
            await exchange.respond(200, _VERSION, _JSON)
            return "version"
        accept, calls = exchange.headers.get("accept", ""), self._services.calls
        if "members" in parse_qs(exchange.query, keep_blank_values=True):
            page, content_type = await self.metrics.members_page(calls, accept)
        else:
            page, content_type = await self.metrics.page(calls, self._backend.member, accept)
        await exchange.respond(200, page, {"content-type": content_type})
        return "metrics"


class _GatewayContext(UntimedContext):
    """The context of a call by way of the gateway. Raises ``RpcError``: its timeout is malformed."""

    def __init__(self, exchange: HttpExchange) -> None:
        super().__init__(metadata_of(exchange.headers), exchange.client)
        self._deadline = time.monotonic() + timeout_of(exchange.headers)
        self._over = False
        """Whether the call was answered at its deadline."""

    def time_left(self) -> float:
        """Seconds until the deadline; infinite if there is none."""
        return max(0.0, self._deadline - time.monotonic())

    async def while_time_is_left(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the call's handler, which is cancelled at the deadline, and waited for, ``GATEWAY_END_S`` more.
        As by a client of gRPC, what ends later than that has ended by the deadline, whatever it says.

        Raises:
            RpcError: the deadline has passed, or as the handler ends.
        """
        if math.isinf(self._deadline):
            return await work()
        if self.time_left():
            task = asyncio.ensure_future(work())
            task.add_done_callback(_retrieve)
            try:
                if await within(self.time_left(), task):
                    return task.result()
            except RpcError:
                if self.time_left():
                    raise
            self._over = True
            await asyncio.wait({task}, timeout=GATEWAY_END_S)
        raise RpcError(DEADLINE_EXCEEDED.code, DEADLINE_EXCEEDED.text)

    def check_not_over(self) -> None:
        """The exchange is no longer the handler's once the call was answered: of two that wait on it, one would be
        forgotten. Raises ``RpcError``: it was."""
        if self._over:
            raise RpcError(DEADLINE_EXCEEDED.code, DEADLINE_EXCEEDED.text)


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Look at how a handler has ended, which nobody may wait for: otherwise asyncio reports its error."""
    if not task.cancelled():
        task.exception()


class _LineStream(_GatewayContext):
    """A stream of requests and answers, as JSON values in the body of a request and lines in that of an answer."""

    def __init__(self, exchange: HttpExchange, method: Method, counted: RpcMethod) -> None:
        super().__init__(exchange)
        self._counted = counted
        self._exchange = exchange
        self._method = method
        self._requests = JsonRequests(method)
        self._decoded: deque[bytes] = deque()
        self._ended = False

    async def receive(self) -> bytes | None:
        """The next request; of a method with one, that, or an empty one. Raises ``RpcError``: the call is over."""
        self.check_not_over()
        while not self._decoded and not self._ended:
            data = await self._exchange.receive()
            self._ended = not data
            self._decoded.extend(self._requests.feed(data, last=self._ended))
        if self._decoded:
            request = self._decoded.popleft()
            self._counted.received += 1
            if not self._method.client_streaming:
                self._decoded.clear()
                self._ended = True
            return request
        return None

    async def send(self, message: bytes) -> None:
        """One line. Raises ``RpcError``: the call is over."""
        self.check_not_over()
        if not self._exchange.started:
            await self._exchange.start(200, _JSON)
        self._counted.sent += 1
        await self._exchange.send(stream_line(self._method, message))
