"""TLS for lanes between nodes, with Ray's certificates or others.

Whether a process uses TLS follows its environment, as with Ray: ``RAY_USE_TLS=1`` and the files that Ray names
(``RAY_TLS_SERVER_CERT``, ``RAY_TLS_SERVER_KEY``, ``RAY_TLS_CA_CERT``), or ``RAYKEEPER_LANE_CERT``,
``RAYKEEPER_LANE_KEY`` and ``RAYKEEPER_LANE_CA`` instead, with or without Ray's switch. Both ends show a certificate of
that authority. An offer has the fingerprint of the member's certificate, and came by an actor call, so no other process
with a certificate of the same authority can stand in between. Files are read again when they change. Where TLS is
wanted and cannot be had, nothing is sent in the clear: frames go by actor calls.

Lanes within a node are Unix sockets, and have no TLS.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol


class TlsUnusable(Exception):
    """TLS is wanted, and its files are not there or are wrong."""


class TlsFiles(NamedTuple):
    """Paths of PEM files."""

    certificate: str
    key: str
    authority: str


_OWN = ("RAYKEEPER_LANE_CERT", "RAYKEEPER_LANE_KEY", "RAYKEEPER_LANE_CA")
_RAYS = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")


class LaneSocket(Protocol):
    """What a lane needs of a socket that does not block: as :class:`socket.socket`."""

    def fileno(self) -> int:
        """The descriptor."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Send some of the data now; returns how many bytes. Raises ``BlockingIOError`` if none can be sent."""

    def recv(self, size: int, /) -> bytes:
        """What has arrived, at most that many bytes; empty at the end. Raises ``BlockingIOError`` if nothing has."""

    def shutdown(self, how: int, /) -> None:
        """End one direction, or both."""

    def close(self) -> None:
        """Close it."""


def tls_files(environment: Mapping[str, str]) -> TlsFiles | None:
    """The files that the environment names; ``None`` if it does not want TLS.

    Raises:
        TlsUnusable: it names some of them only.
    """
    given = [environment.get(name, "") for name in _OWN]
    names = _OWN
    if not any(given):
        if environment.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
            return None
        names = _RAYS
        given = [environment.get(name, "") for name in _RAYS]
    if not all(given):
        missing = ", ".join(name for name, value in zip(names, given, strict=True) if not value)
        raise TlsUnusable(f"{missing} is not set")
    return TlsFiles(*given)


def file_stamps(paths: Iterable[str]) -> tuple[tuple[int, int, int] | None, ...]:
    """What tells whether files have changed: written over, or replaced by others. ``None`` for one that is not to be
    seen.

    A file that is written over twice within one tick of the kernel's clock may have the stamp that it had half written:
    so what could not be read must be read again, whatever the stamps are.
    """
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            seen = os.stat(path)
            found.append((seen.st_mtime_ns, seen.st_ino, seen.st_size))
        except OSError:
            found.append(None)
    return tuple(found)


class ServerTls:
    """The server's side of a process that wants TLS. Any thread."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._stamps: tuple[tuple[int, int, int] | None, ...] = ()
        self._context: ssl.SSLContext | None = None
        self._fingerprint = b""

    def context(self) -> tuple[ssl.SSLContext, bytes]:
        """The context for new lanes, and the certificate's fingerprint; of the files as they are now.

        Raises:
            TlsUnusable: they cannot be read, or do not belong together.
        """
        with self._lock:
            try:
                stamps = file_stamps(self._files)
                if self._context is None or stamps != self._stamps:
                    context = _context(ssl.PROTOCOL_TLS_SERVER, self._files)
                    self._fingerprint = _fingerprint_of_file(self._files.certificate)
                    self._context, self._stamps = context, stamps
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                raise TlsUnusable(f"{', '.join(self._files)}: {error}") from error
            return self._context, self._fingerprint


def wrap_client(sock: socket.socket, files: TlsFiles, fingerprint: bytes) -> ssl.SSLSocket:
    """Open TLS on a connected socket that has a timeout.

    Raises:
        TlsUnusable: this process's files cannot be read, or the other side's certificate is not the expected one.
        OSError: the handshake failed.
    """
    try:
        context = _context(ssl.PROTOCOL_TLS_CLIENT, files)
    except (OSError, ValueError) as error:
        raise TlsUnusable(f"{', '.join(files)}: {error}") from error
    wrapped = context.wrap_socket(sock)
    shown = wrapped.getpeercert(binary_form=True) or b""
    if hashlib.sha256(shown).digest() != fingerprint:
        wrapped.close()
        raise TlsUnusable("the certificate is not that of the member which made the offer")
    return wrapped


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # the fingerprint says more, and addresses in a cluster change
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.authority)
    return context


def _fingerprint_of_file(path: str) -> bytes:
    """Of the first certificate in a PEM file, which is the one that is shown."""
    with open(path, encoding="ascii") as file:
        text = file.read()
    end = text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
    der = ssl.PEM_cert_to_DER_cert(text[text.index(ssl.PEM_HEADER) : end])
    return hashlib.sha256(der).digest()


class TlsSocket:
    """An end of an open TLS connection, for :class:`lane.Connection`: it does not block, and any thread may use it.

    OpenSSL's object for a connection is not for two threads at once, and ``ssl`` lets others run meanwhile, so a lock
    does. Without read-ahead OpenSSL takes whole records from the kernel, and a read of 16 KiB or more empties one: what
    has arrived is never hidden from epoll.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._fd = sock.fileno()
        sock.setblocking(False)

    def fileno(self) -> int:
        """Of the socket below."""
        return self._fd

    def send(self, data: bytes | memoryview, /) -> int:
        """As ``socket.send``. After ``BlockingIOError`` the same bytes must come again first."""
        with self._lock:
            try:
                return self._sock.send(data)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                raise BlockingIOError from None

    def recv(self, size: int, /) -> bytes:
        """As ``socket.recv``."""
        with self._lock:
            try:
                return self._sock.recv(size)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise BlockingIOError from None
            except ssl.SSLZeroReturnError:
                return b""

    def shutdown(self, how: int, /) -> None:
        """As ``socket.shutdown``: of the connection below, whose end the other side sees."""
        with self._lock:
            socket.socket.shutdown(self._sock, how)

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._sock.close()
