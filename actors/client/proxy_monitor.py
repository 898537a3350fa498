"""Has a proxy of this node notice the death of this process, where no member runs (``proxy/process_watch.py``).

A thread of the hub's looks for the proxy's actor, which tells the name of a socket, connects, and says which session
this process has. The connection stays open as long as the process lives: its end proves nothing, and only makes
the proxy forget this process after a while. Where there is no proxy, the pauses between two looks for one
grow.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import time
from collections.abc import Callable

from ...limits import PROXY_LOOK_MAX_S, PROXY_MONITOR_S
from ..background import LazyThread
from ..deadline import covering
from ..one_thread import NoThreadLeft
from ..proxy_claims import CLAIM, WATCHED, WatchOffer


class ProxyMonitor:
    """The hub's connection to the proxy of its node.

    Args:
        name: of the cluster.
        node: the id of the Ray node of this process; empty for none.
        monitored: called with the session for which the proxy watches this process, 0 for none; on a thread of its own.
        ask: asks the proxy of a node for its offer; ``None`` if there is none.
    """

    def __init__(
        self,
        name: str,
        node: str,
        monitored: Callable[[int], None],
        ask: Callable[[str, str], WatchOffer | None] | None = None,
    ) -> None:
        self._name = name
        self._node = node
        self._monitored = monitored
        self._ask = ask or _ask_proxy
        self._claims: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread = LazyThread(self._run, f"raykeeper-watched-{name}")
        self._sock: socket.socket | None = None
        self._session = 0
        """For which the proxy watches."""
        self._not_before = 0.0
        self._pause = 0.0

    def claim(self, session: int) -> None:
        """Have this process watched, with that session. Never blocks, and is safe under any lock."""
        if self._node:
            if self._claims.empty():
                self._claims.put(session)
            with contextlib.suppress(NoThreadLeft):  # the next claim tries again: it is made whenever a lease is kept
                self._thread.ensure_started()

    def close(self) -> None:
        """Be watched no more; the proxy learns it after a while. Never blocks."""
        self._claims.put(-1)

    def _run(self) -> None:
        while (session := self._claims.get()) >= 0:
            if self._sock is not None and session == self._session and self._is_open(self._sock):
                self._monitored(session)
                continue
            now = time.monotonic()
            if now < self._not_before:
                continue
            if self._connect(session):
                self._pause, self._session = 0.0, session
            else:
                self._end()
                self._pause = min(max(1.0, 2 * self._pause), PROXY_LOOK_MAX_S)
                self._not_before = time.monotonic() + self._pause
            self._monitored(self._session)
        self._end()

    def _connect(self, session: int) -> bool:
        """Connect to the proxy and claim the session; whether it watches."""
        self._end()
        try:
            offer = self._ask(self._name, self._node)
            if offer is None:
                return False
            name, token = offer
            self._sock = sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(PROXY_MONITOR_S)
            sock.connect(f"\0{name}")
            sock.sendall(CLAIM.pack(token, session))
            watched = sock.recv(1) == WATCHED
            sock.setblocking(False)
            return watched
        except Exception:  # Ray's are of many kinds: it may be shutting down, or the proxy
            return False

    def _is_open(self, sock: socket.socket) -> bool:
        try:
            return bool(sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _end(self) -> None:
        self._session = 0
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()


def _ask_proxy(cluster_name: str, node: str) -> WatchOffer | None:
    from ..discovery import ask_watch_offer  # Ray is loaded only when it is needed

    with covering(PROXY_MONITOR_S):
        return ask_watch_offer(cluster_name, node)
