"""One connection to etcd's JSON gateway, as a proxy of ours or an etcd serves it, by the standard library alone.

The shell uses it where a proxy listens on its node, because attaching to Ray takes a second. So what this file imports
counts: no Ray, no gRPC, no asyncio. A request is sent once: what became of a write whose answer was lost is unknown,
and the error says so.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..actors.deadline import time_left
from ..errors import (
    AuthFailed,
    CompactedError,
    FutureRevisionError,
    InvalidArgument,
    KeeperError,
    LeaseNotFound,
    NoSpace,
    PermissionDenied,
    RequestTimeout,
    RequestTooLarge,
    Unavailable,
)
from ..limits import GATEWAY_CONNECT_TIMEOUT_S, MAX_GATEWAY_LINE_BYTES

Fields = dict[str, Any]

_CHUNK_BYTES = 1 << 16


class GatewayTls(NamedTuple):
    """Files for TLS, as PEM; empty ones are not used.

    Attributes:
        ca: the authorities that may vouch for the server; without any, those of the system.
        pinned: the server's own certificate, whatever its name, in place of authorities.
        cert: the certificate to show, with its key.
        key: its key, if that is in another file.
    """

    ca: str = ""
    pinned: str = ""
    cert: str = ""
    key: str = ""


class Endpoint(NamedTuple):
    """Where a gateway is.

    Attributes:
        url: ``http://host:port`` or ``https://host:port``.
        tls: for ``https``.
        cluster: id of the cluster that must answer; 0 for any.
    """

    url: str
    tls: GatewayTls = GatewayTls()
    cluster: int = 0


def endpoint_url(text: str) -> str:
    """The URL that an endpoint stands for: HOST:PORT, or a URL without a path.

    Raises:
        InvalidArgument: it is neither.
    """
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port and parts.path in ("", "/")
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or parts.username is not None:
        raise InvalidArgument(f"{text!r} is not an endpoint: HOST:PORT, http://HOST:PORT or https://HOST:PORT")
    return f"{parts.scheme}://{parts.netloc}"


def b64(data: bytes) -> str:
    """Bytes as the gateway has them."""
    return base64.b64encode(data).decode()


def unb64(text: str | None) -> bytes:
    """Bytes from a field of an answer, which is left out if there are none."""
    return base64.b64decode(text or "")


def number(value: Any) -> int:
    """A number from a field of an answer: text if it has 64 bits, and left out if it is 0."""
    return int(value or 0)


def _number_or_none(value: Any) -> int | None:
    """The same of what may be no answer of etcd's: ``None`` if it is not a number."""
    try:
        return number(value)
    except (ValueError, TypeError, OverflowError):
        return None


def json_object(data: bytes) -> Fields | None:
    """What a gateway said; ``None`` if that is not an object of JSON."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class EtcdGateway:
    """A connection, opened at the first call.

    Args:
        endpoint: where.
        timeout: seconds for each call, and for the next part of a stream's start.
    """

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.url = endpoint.url
        self.cluster = endpoint.cluster
        self.timeout = timeout
        self._tls = endpoint.tls
        self._headers = {"content-type": "application/json"}
        self._connection: http.client.HTTPConnection | None = None
        self._streams: set[EtcdGateway] = set()

    def connect(self) -> None:
        """Open the connection.

        Raises:
            Unavailable: nobody listens there, or it cannot prove who it is.
        """
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port
        patience = max(0.01, min(self.timeout, time_left(), GATEWAY_CONNECT_TIMEOUT_S))
        try:
            if parts.scheme == "https":
                connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                    host, port, timeout=patience, context=self._tls_context()
                )
            else:
                connection = http.client.HTTPConnection(host, port, timeout=patience)
            connection.connect()
        except (OSError, UnicodeError) as error:  # TLS errors are among them
            raise Unavailable(f"{self.url} cannot be reached: {_reason(error)}") from error
        self._connection = connection

    def log_in(self, user: str, password: str) -> None:
        """Make all further calls as this user.

        Raises:
            AuthFailed: there is no such user, or this is not its password.
        """
        answer = self.call("auth/authenticate", {"name": user, "password": password})
        self._headers["authorization"] = str(answer.get("token", ""))

    def call(self, path: str, request: Fields, *, writes: bool = False) -> Fields:
        """One call without streams.

        Args:
            path: below ``/v3/``.
            request: the fields of the message.
            writes: whether it changes anything: then its outcome is unknown if no answer comes.

        Raises:
            KeeperError: what the server said, or that it did not answer in time.
        """
        until = time.monotonic() + min(self.timeout, time_left())
        response = self._send(path, request, until, writes)
        body = self._read_all(response, until, writes)
        answer = json_object(body)
        if answer is None:  # it broke off, or no gateway of etcd's is there
            self.close()
            if response.status == 413:
                raise RequestTooLarge(f"the request is too large ({self.url})")
            if response.status == 429:  # said before a request is handed on, by what is in front of a proxy, say
                raise Unavailable(f"too many requests ({self.url})")
            raise self._lost(ValueError(f"its answer, of HTTP status {response.status}, is not JSON"), writes)
        if response.status != 200 or "code" in answer:
            raise self._error(answer, writes)
        self._check_cluster(answer, writes)
        return answer

    def stream(self, path: str, request: Fields) -> Iterator[Fields]:
        """The messages of a stream, on a connection of its own, until its end. It has no deadline; closing the gateway
        ends it.

        Raises:
            KeeperError: the server said so, or the connection was lost.
        """
        other = EtcdGateway(Endpoint(self.url, self._tls, self.cluster), self.timeout)
        other._headers = self._headers
        self._streams.add(other)
        try:
            yield from other._stream(path, request)
        finally:
            self._streams.discard(other)
            other.close()

    def _stream(self, path: str, request: Fields) -> Iterator[Fields]:
        response = self._send(path, request, time.monotonic() + min(self.timeout, time_left()), False)
        if response.status != 200:
            body = self._read_all(response, time.monotonic() + self.timeout, False)
            raise self._error(json_object(body) or {"message": f"HTTP status {response.status}"}, False)
        assert self._connection is not None
        if self._connection.sock is not None:
            self._connection.sock.settimeout(None)
        while True:
            try:
                line = response.readline(MAX_GATEWAY_LINE_BYTES)
            except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                self.close()
                raise Unavailable(f"the connection to {self.url} was lost: {_reason(error)}") from error
            if not line:
                self.close()
                return
            answer = json_object(line) or {}
            result = answer.get("result")
            if "error" in answer:
                self.close()
                said = answer["error"]
                raise self._error(said if isinstance(said, dict) else answer, False)
            if not isinstance(result, dict):  # it broke off, or no gateway of etcd's is there
                self.close()
                raise Unavailable(f"what {self.url} sends is not a stream of etcd's")
            self._check_cluster(result, False)
            yield result

    def close(self) -> None:
        """Close the connection, and those of streams; a later call opens another."""
        for stream in list(self._streams):
            stream.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- one exchange -------------------------------------------------------------------------------------------------

    def _send(self, path: str, request: Fields, until: float, writes: bool) -> http.client.HTTPResponse:
        if self._connection is None:
            self.connect()
        connection = self._connection
        assert connection is not None
        try:
            self._limit(until)
            connection.request("POST", f"/v3/{path}", json.dumps(request).encode(), self._headers)
            self._limit(until)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._lost(error, writes) from error

    def _read_all(self, response: http.client.HTTPResponse, until: float, writes: bool) -> bytes:
        parts = []
        try:
            while True:
                self._limit(until)
                part = response.read1(_CHUNK_BYTES)
                if not part:
                    break
                parts.append(part)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._lost(error, writes) from error
        response.close()  # so that the connection takes the next request
        return b"".join(parts)

    def _limit(self, until: float) -> None:
        """Let the next wait end at that time."""
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        if self._connection is not None and self._connection.sock is not None:
            self._connection.sock.settimeout(None if left == math.inf else left)

    def _lost(self, error: Exception, writes: bool) -> KeeperError:
        if isinstance(error, TimeoutError):
            return RequestTimeout(f"{self.url} did not answer in time", applied=None if writes else False)
        return Unavailable(
            f"the connection to {self.url} was lost: {_reason(error)}", applied=None if writes else False
        )

    def _tls_context(self) -> Any:
        import ssl

        context = ssl.create_default_context(cafile=self._tls.pinned or self._tls.ca or None)
        if self._tls.pinned:
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self._tls.cert:
            context.load_cert_chain(self._tls.cert, self._tls.key or None)
        return context

    def _check_cluster(self, answer: Fields, writes: bool) -> None:
        if self.cluster:
            header = answer.get("header", {})
            id = _number_or_none(header.get("cluster_id")) if isinstance(header, dict) else None
            if id is None:
                raise self._no_gateway(writes)
            found = id % (1 << 64)
            if found and found != self.cluster % (1 << 64):
                raise Unavailable(f"{self.url} serves the cluster of id {found:x}, not {self.cluster:x}", applied=None)

    def _no_gateway(self, writes: bool) -> KeeperError:
        """Somebody else is there. What it did, nobody knows."""
        self.close()
        return Unavailable(f"what answers at {self.url} is not a gateway of etcd's", applied=None if writes else False)

    def _error(self, said: Fields, writes: bool) -> KeeperError:
        """The typed error for what a gateway answered: a status of gRPC, and a text."""
        text = str(said.get("message") or said.get("error") or "it gave no reason").removeprefix("etcdserver: ")
        code = _number_or_none(said.get("code") or said.get("grpc_code"))
        if code is None:
            return self._no_gateway(writes)
        return error_of(code, text, self.url, writes)


def error_of(code: int, text: str, url: str, writes: bool) -> KeeperError:
    """The typed error for a status of gRPC and etcd's text.

    Args:
        code: the status.
        text: without etcd's prefix.
        url: who said it.
        writes: whether the call would have changed something.
    """
    message = f"{text} ({url})"
    if "has been compacted" in text:
        return CompactedError(0)  # the gateway does not say where history begins; the caller finds out
    for part, kind in _BY_TEXT:
        if part in text:
            return kind(message)
    if code in (4, 14):
        if "no leader" in text:
            return Unavailable(message)
        return RequestTimeout(message, applied=None if writes else False)
    return _BY_CODE.get(code, KeeperError)(message)


_BY_TEXT: tuple[tuple[str, type[KeeperError]], ...] = (
    ("future revision", FutureRevisionError),
    ("lease not found", LeaseNotFound),
    ("space exceeded", NoSpace),
    ("too many requests", Unavailable),
    ("request is too large", RequestTooLarge),
    ("permission denied", PermissionDenied),
    ("authentication failed", AuthFailed),
    ("user name is empty", AuthFailed),
    ("invalid auth token", AuthFailed),
)
_BY_CODE: dict[int, type[KeeperError]] = {
    3: InvalidArgument,
    5: InvalidArgument,
    7: PermissionDenied,
    8: RequestTooLarge,
    9: InvalidArgument,
    11: InvalidArgument,
    16: AuthFailed,
}


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
