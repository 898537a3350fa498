"""TLS on a proxy's port, with the meaning of etcd's flags of the same names.

Files are read again when they change, for the connections that come after; a change that cannot be read is logged, and
the files before it stay in use. A client's certificate says which user it is, by its common name, where the cluster has
users and the client shows no token (etcd: ``--client-cert-auth``).
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable

from ...limits import MAX_PROXY_HANDSHAKES, PROXY_ACCEPT_PAUSE_S, PROXY_GREETING_S, ProxyTls
from ..logs import MemberLog


class ProxyTlsContext:
    """The context of new connections.

    Raises:
        OSError: the files cannot be read, or do not belong together. The message names them.
    """

    def __init__(self, files: ProxyTls, log: MemberLog) -> None:
        self._files = files
        self._log = log
        self._stamps = self._stamp()
        self._context = self._load()

    def current(self) -> ssl.SSLContext:
        """Of the files as they are now."""
        try:
            stamps = self._stamp()
            if stamps != self._stamps:
                self._stamps = stamps
                self._context = self._load()
        except OSError as error:
            self._log.warning("the certificate before the change stays in use: %s", error)
        return self._context

    def _stamp(self) -> tuple[tuple[int, int] | None, ...]:
        found: list[tuple[int, int] | None] = []
        for path in filter(None, (self._files.cert_file, self._files.key_file, self._files.trusted_ca_file)):
            try:
                seen = os.stat(path)
                found.append((seen.st_mtime_ns, seen.st_ino))
            except OSError:
                found.append(None)
        return tuple(found)

    def _load(self) -> ssl.SSLContext:
        files = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            context.load_cert_chain(files.cert_file, files.key_file)
            if files.trusted_ca_file:
                context.load_verify_locations(files.trusted_ca_file)
                context.verify_mode = ssl.CERT_REQUIRED if files.client_cert_auth else ssl.CERT_OPTIONAL
        except OSError as error:  # ssl.SSLError is one
            named = ", ".join(filter(None, (files.cert_file, files.key_file, files.trusted_ca_file)))
            raise OSError(error.errno, f"TLS with {named}: {error.strerror or error}") from error
        return context


def common_name(transport: asyncio.BaseTransport) -> str:
    """The common name in the certificate that a client has shown; empty if it has shown none."""
    shown = transport.get_extra_info("peercert") or {}
    for part in shown.get("subject", ()):
        for name, value in part:
            if name == "commonName":
                return str(value)
    return ""


class TlsAcceptor:
    """Accepts connections under TLS. asyncio's own server does not say how many handshakes are under way: here they are
    few, and one more ends the oldest.

    Args:
        loop: the one that serves.
        tls: the context.
        protocol: makes the protocol of a connection, once its handshake is done.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, tls: ProxyTlsContext, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self._loop = loop
        self._tls = tls
        self._protocol = protocol
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: dict[asyncio.Task[None], None] = {}
        """Oldest first."""

    async def listen(self, host: str, port: int, backlog: int) -> tuple[str, int]:
        """Begin to accept; returns the first address. Raises ``OSError`` if an address cannot be had."""
        flags = socket.AI_PASSIVE
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                sock = socket.socket(family, socket.SOCK_STREAM)
                self._sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(address)
                sock.listen(backlog)
                sock.setblocking(False)
        except OSError:
            self.close()
            raise
        self._accepting = [self._loop.create_task(self._accept(sock)) for sock in self._sockets]
        bound = self._sockets[0].getsockname()
        return bound[0], bound[1]

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = await self._loop.sock_accept(listener)
            except OSError:  # out of descriptors, say
                await asyncio.sleep(PROXY_ACCEPT_PAUSE_S)
                continue
            if len(self._handshakes) >= MAX_PROXY_HANDSHAKES:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            task = self._loop.create_task(self._shake_hands(sock))
            self._handshakes[task] = None
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)

    async def _shake_hands(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._protocol, sock, ssl=self._tls.current(), ssl_handshake_timeout=PROXY_GREETING_S
            )
        except (
            OSError,
            asyncio.TimeoutError,
        ):  # the client speaks no TLS, trusts us not, or shows what we do not trust
            sock.close()

    def close(self) -> None:
        """Accept no more."""
        for task in [*self._accepting, *self._handshakes]:
            task.cancel()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
