"""TLS on a proxy's port, with the meaning of etcd's flags of the same names.

Files are read again when they change, for the connections that come after; a change that cannot be read is logged, and
the files before it stay in use. A client's certificate says which user it is, by its common name, where the cluster has
users and the client shows no token (etcd: ``--client-cert-auth``).
"""

from __future__ import annotations

import asyncio
import ssl
import time

from ...limits import PROXY_TLS_RETRY_S, ProxyTls
from ..logs import MemberLog
from ..transport.lane_tls import file_stamps
from .loop_share import LoopShare


class ProxyTlsContext:
    """The context of new connections.

    Raises:
        OSError: the files cannot be read, or do not belong together. The message names them.
    """

    def __init__(self, files: ProxyTls, log: MemberLog) -> None:
        self._files = files
        self._log = log
        self._paths = [path for path in (files.cert_file, files.key_file, files.trusted_ca_file) if path]
        self._object = ssl.SSLObject
        self._stamps: tuple[tuple[int, int, int] | None, ...] | None = file_stamps(self._paths)
        """Of the files that are in use; ``None`` after some that could not be..."""
        self._failed: tuple[tuple[tuple[int, int, int] | None, ...], float] | None = None
        """... which these are, and until when they are not tried again, unless they change: each handshake looks."""
        self._context = self._load()

    def measure(self, share: LoopShare) -> None:
        """Spend what handshakes take, which asyncio makes."""

        class MeasuredHandshake(ssl.SSLObject):
            def do_handshake(self) -> None:
                began = share.clock()
                try:
                    super().do_handshake()
                finally:
                    share.spend(began)

        self._context.sslobject_class = self._object = MeasuredHandshake

    def current(self) -> ssl.SSLContext:
        """Of the files as they are now."""
        try:
            stamps = file_stamps(self._paths)
            if stamps == self._stamps:
                return self._context
            now = time.monotonic()
            if self._failed is None or self._failed[0] != stamps or self._failed[1] <= now:
                self._stamps, self._failed = None, (stamps, now + PROXY_TLS_RETRY_S)
                self._context = self._load()
                self._stamps, self._failed = stamps, None
        except OSError as error:
            self._log.warning("the certificate before the change stays in use: %s", error)
        return self._context

    def _load(self) -> ssl.SSLContext:
        files = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslobject_class = self._object
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            context.load_cert_chain(files.cert_file, files.key_file)
            if files.trusted_ca_file:
                context.load_verify_locations(files.trusted_ca_file)
                context.verify_mode = ssl.CERT_REQUIRED if files.client_cert_auth else ssl.CERT_OPTIONAL
        except OSError as error:  # ssl.SSLError is one
            named = ", ".join(self._paths)
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
