"""``/console``: the page, and the JSON that it is made of. docs/console.md says what each path answers.

The page is static files of the package. It may load nothing from elsewhere and run no script but its own
(Content-Security-Policy), and shows what is in the store as text only. It keeps its token in memory and sends it as a
header, as clients of etcd's JSON gateway do; there are no cookies, so another page cannot act for its user. An action
is a POST whose content type a browser does not send elsewhere without asking, and this is never agreed to: pages of
other origins get nothing from these paths, whatever ``proxy_cors`` says.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from ...limits import HTTP_WATCH_NOTICE_S
from ...schema.operations import KeyRange, Range
from ..client.view import page
from ..recipes.in_use_fields import LISTS
from .cluster_service import MembershipOperations
from .console_actions import ConsoleActions
from .console_forms import bad_request, parameters
from .console_keys import Tails, describe_key, list_level
from .console_shared import MadeView, SharedAnswers, ViewOfUser
from .console_views import (
    NodeAddresses,
    NodeBook,
    show_clients,
    show_cluster,
    show_events,
    show_in_use,
    show_lease,
    show_leases,
    show_load,
)
from .etcd_backend import UntimedContext
from .etcd_errors import AUTHENTICATION_FAILED, USER_EMPTY
from .etcd_services import EtcdServices
from .gateway import JSON_TYPE, body_of, error_json
from .http_exchange import HttpError, HttpExchange
from .proxy_audit import claimed_user
from .rpc_status import RpcCode, RpcError

CONSOLE_PATH = "/console"
_API = "/console/api/"
_ACT = "act/"
_FOLDER = Path(__file__).parent / "console"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_API_HEADERS = {**_SAFE, "cache-control": "no-store"}
_JSON_HEADERS = {**_API_HEADERS, "content-type": JSON_TYPE}
_NOT_LOGGED_IN = {USER_EMPTY.text, AUTHENTICATION_FAILED.text}
_View = Callable[[EtcdServices, dict[str, bytes], UntimedContext], Awaitable[dict[str, Any]]]


class _Asker:
    """Who asks, as far as that is known."""

    def __init__(self, user: str) -> None:
        self.user = user


def is_console(path: str) -> bool:
    """Whether a path is the console's."""
    return path == CONSOLE_PATH or path.startswith(f"{CONSOLE_PATH}/")


class ConsoleSite:
    """See the module.

    Args:
        services: etcd's, by whose users and hubs the cluster is asked.
        operations: changes of its members.
        mode: ``read``, or ``act`` if actions are allowed.
        nodes: gives the addresses of Ray's nodes by id, and may block; ``None`` without Ray.
    """

    def __init__(
        self, services: EtcdServices, operations: MembershipOperations, mode: str, nodes: NodeAddresses | None = None
    ) -> None:
        self._services = services
        self._acts = mode == "act"
        self._actions = ConsoleActions(operations)
        self._tails = Tails()
        self.shared = SharedAnswers()
        self._nodes = NodeBook(nodes)
        self._files = {f"{CONSOLE_PATH}/{file.name}": file for file in _FOLDER.iterdir() if file.suffix in _TYPES}
        self._files[CONSOLE_PATH] = _FOLDER / "index.html"
        self._views: dict[str, tuple[_View, tuple[str, ...]]] = {
            "cluster": (self._cluster, ()),
            "events": (lambda of, asked, context: show_events(of.backend, of.calls), ()),
            "clients": (lambda of, asked, context: show_clients(of.backend, of.calls), ()),
            "load": (lambda of, asked, context: show_load(of.calls), ()),
            "leases": (lambda of, asked, context: show_leases(of.backend, context), ()),
            "lease": (self._lease, ("id",)),
            "keys": (self._keys, ("prefix", "start")),
            "key": (lambda of, asked, context: describe_key(of.backend, asked.get("key", b""), context), ("key",)),
        }
        for name in LISTS:
            self._views[name] = (_list_of(name), ())

    async def handle(self, exchange: HttpExchange) -> None:
        """Answer one request.

        Raises:
            HttpError: it is for the page, and failed. What is for the page's program is answered with JSON.
        """
        if exchange.path.startswith(_API):
            await self._api(exchange)
        else:
            await self._file(exchange)

    async def _file(self, exchange: HttpExchange) -> None:
        file = self._files.get(exchange.path)
        if file is None:
            raise HttpError(404, "404 page not found\n", _SAFE)
        if exchange.method not in ("GET", "HEAD"):
            raise HttpError(405, "Method Not Allowed\n", {**_SAFE, "allow": "GET, HEAD"})
        headers = {**_SAFE, "cache-control": "no-cache", "content-type": _TYPES[file.suffix]}
        await exchange.respond(200, file.read_bytes(), headers)

    async def _api(self, exchange: HttpExchange) -> None:
        name = exchange.path.removeprefix(_API)
        caller = _Asker(claimed_user(exchange.headers))
        try:
            found = await self._answer(exchange, name, caller)
            if found is not None:
                await exchange.respond(200, found, _JSON_HEADERS)
        except RpcError as error:
            error.__cause__ = None
            status, body = error_json(error)
            if error.text in _NOT_LOGGED_IN or error.code is RpcCode.UNAUTHENTICATED:
                status = 401
            if status in (401, 403) and not name.startswith(_ACT):
                self._services.audit.refused_view(caller.user, exchange.client, name, error)
            if exchange.started:
                return
            await exchange.respond(status, body, _JSON_HEADERS)

    async def _answer(self, exchange: HttpExchange, name: str, caller: _Asker) -> bytes | None:
        """What a request gets; ``None`` if it was answered."""
        action = name.removeprefix(_ACT) if name.startswith(_ACT) else ""
        if name not in self._views and name != "tail" and action not in self._actions:
            raise RpcError(RpcCode.NOT_FOUND, "there is no such view or action")
        wanted = "POST" if action else "GET"
        if exchange.method != wanted:
            allow = {**_SAFE, "allow": wanted}
            raise HttpError(405, "Method Not Allowed\n", allow)
        if action:
            return _json(await self._act(exchange, action))
        services = await self._services_of(exchange)
        caller.user = services.backend.user
        context = UntimedContext(exchange.headers, exchange.client)
        if name == "tail":
            asked = parameters(exchange.query, ("key", "prefix"))
            if len(asked) != 1:
                raise bad_request("a live tail is of a key, or of a prefix")
            ((which, key),) = asked.items()
            await self._tails.follow(services.backend, exchange, key, which == "prefix", _API_HEADERS)
            return None
        view, known = self._views[name]
        asked = parameters(exchange.query, known)

        async def make() -> MadeView:
            found = await view(services, asked, context)
            return MadeView(_json(found), found.get("reads", 0))

        if known:
            return (await make()).body
        return await self.shared.answer(ViewOfUser(name, services.backend.user), make)

    async def _services_of(self, exchange: HttpExchange) -> EtcdServices:
        """The services of whom a request is. One without a user gets nothing while users are needed, not even what
        members tell anyone.

        Raises:
            RpcError: it needs a user.
        """
        context = UntimedContext(exchange.headers, exchange.client)
        services = await self._services.of_caller(context)
        if not services.backend.user:  # the member that is asked refuses to read for nobody
            nothing = Range(KeyRange(services.backend.space + b"\0"), keys_only=True)
            await services.backend.run(page(nothing, True), context)
        return services

    async def _act(self, exchange: HttpExchange, action: str) -> dict[str, Any]:
        if not self._acts:
            raise RpcError(RpcCode.PERMISSION_DENIED, "this console is for reading: proxy_console is not act")
        content_type = exchange.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != JSON_TYPE:
            raise HttpError(415, f"an action takes {JSON_TYPE}\n", _SAFE)
        context = UntimedContext(exchange.headers, exchange.client)
        try:
            services = await self._services_of(exchange)
        except RpcError as error:
            self._services.audit.acted(claimed_user(exchange.headers), exchange.client, f"console {action}", error)
            raise
        try:
            return await self._actions.run(action, services, await body_of(exchange), context)
        finally:
            self.shared.forget()

    # -- views --------------------------------------------------------------------------------------------------------

    async def _cluster(self, of: EtcdServices, asked: Mapping[str, bytes], context: UntimedContext) -> dict[str, Any]:
        found = await show_cluster(of.backend, of.calls, self._nodes)
        return {**found, "user": of.backend.user, "acts": self._acts, "notice_s": HTTP_WATCH_NOTICE_S}

    async def _keys(self, of: EtcdServices, asked: Mapping[str, bytes], context: UntimedContext) -> dict[str, Any]:
        return await list_level(of.backend, asked.get("prefix", b""), asked.get("start", b""), context)

    async def _lease(self, of: EtcdServices, asked: Mapping[str, bytes], context: UntimedContext) -> dict[str, Any]:
        try:
            lease = int(asked.get("id", b""), 16)
        except ValueError:
            lease = 0
        if not 0 < lease < 1 << 63:
            raise bad_request("id is a lease, in hexadecimal")
        return await show_lease(of.backend, lease, context)


def _list_of(name: str) -> _View:
    return lambda of, asked, context: show_in_use(of.backend, name)


def _json(found: Mapping[str, Any]) -> bytes:
    return json.dumps(found, separators=(",", ":")).encode()
