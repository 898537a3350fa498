"""Watches the processes of a node on which no member runs, and reports those that are dead (decision 17).

A process that owns leases connects to a Unix socket, whose name and token an actor call has told it, and says which
session it has. The kernel says which process it is, and when it has ended, as for a member
(``transport/process_monitors.py``). A proxy has no state, so it asks the cluster who has opened that session: it was
the process with this id and this start, in this boot and this namespace, or nothing is watched. So no process can have
the session of another end with it.

One thread waits for sockets and processes; another asks the cluster and reports. A claim is a token and the number of a
session; the answer is one byte. Any user of the machine can connect, before it has shown a token. One whose processes
the proxy could not identify is sent away at once; others (of a proxy that is root) make way first.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import os
import queue
import secrets
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from ...limits import (
    DEATH_REPORT_PAUSE_S,
    DEATH_REPORT_S,
    MAX_EXPIRIES_AT_ONCE,
    MAX_UNAUTHENTICATED_LANES,
    MAX_WATCH_CLAIMS,
    MAX_WATCHED_PROCESSES,
    MONITOR_REFRESH_S,
    PROXY_ACCEPT_PAUSE_S,
)
from ...schema.client_identity import ClientIdentity
from ..logs import MemberLog
from ..proxy_claims import CLAIM, NOT_WATCHED, TOKEN_BYTES, WATCHED, WatchOffer
from ..this_process import ids_are_of, namespace_of, start_of
from ..transport.process_monitors import ProcessMonitors, open_process, peer_process, peer_user

_OWN_USER = os.getuid()


class _Peer:
    """A process at the other end of a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pid = peer_process(sock)
        self.foreign = peer_user(sock) not in (_OWN_USER, 0)
        """It is of another user, and not of root."""
        self.received = b""
        self.asked = 0
        """The session of the claim that is being checked, 0 for none."""
        self.authenticated = False


class ProcessWatch:
    """See the module.

    Args:
        who: the process that has opened a session, as the cluster knows it; ``None`` if there is no such session. It
            may block, and raise ``KeeperError`` or any error of Ray's.
        end_sessions: have the cluster end these sessions, whose processes are dead; may block, and raise
            as that.
    """

    def __init__(
        self,
        who: Callable[[int], ClientIdentity | None],
        end_sessions: Callable[[tuple[int, ...]], None],
        log: MemberLog,
    ) -> None:
        self._who = who
        self._end_sessions = end_sessions
        self._log = log
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._name = f"raykeeper-watch-{secrets.token_hex(8)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(f"\0{self._name}")
        self._listener.listen(128)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._peers: dict[int, _Peer] = {}
        self._monitors = ProcessMonitors()
        self._to_ask: queue.Queue[_Peer | None] = queue.Queue(MAX_WATCH_CLAIMS)
        self._asked: deque[tuple[_Peer, int, bool]] = deque()
        self._dead: dict[int, float] = {}
        """Sessions to report, and until when to try. The asking thread's, filled through ``_ended``."""
        self._ended: deque[int] = deque()
        self._accept_at = math.inf
        """When connections are accepted again; infinity while they are."""
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name="watches processes", daemon=True),
            threading.Thread(target=self._run_asker, name="reports processes", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def offer(self) -> WatchOffer:
        """What a process must know to be watched."""
        return self._name, self._token

    def __len__(self) -> int:
        return len(self._monitors)

    def close(self) -> None:
        """Watch nothing any more; returns when the threads have seen it, but for one that asks the cluster."""
        self._closed = True
        os.eventfd_write(self._wake_fd, 1)
        with contextlib.suppress(queue.Full):
            self._to_ask.put_nowait(None)
        self._threads[0].join()

    # -- the thread that waits ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closed:
                now = time.monotonic()
                if self._accept_at <= now:
                    self._accept_at = math.inf
                    self._epoll.modify(self._listener, select.EPOLLIN)
                for fd, events in self._epoll.poll(max(0.0, min(MONITOR_REFRESH_S, self._accept_at - now))):
                    if fd == self._listener.fileno():
                        self._accept()
                    elif fd == self._wake_fd:
                        os.eventfd_read(self._wake_fd)
                    elif fd in self._peers:
                        self._read(self._peers[fd], events)
                    else:
                        self._ended.extend(self._monitors.process_ended(fd))
                        self._wake_asker()
                while self._asked:
                    self._answer(*self._asked.popleft())
                self._monitors.expire(time.monotonic())
        finally:
            self._listener.close()
            for peer in self._peers.values():
                peer.sock.close()
            self._monitors.close()
            self._epoll.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # it is gone
            return
        except OSError as error:  # no descriptor is left, say: the listener would be ready again at once
            self._log.debug("processes that want to be watched have to wait: %s", error)
            self._epoll.modify(self._listener, 0)
            self._accept_at = time.monotonic() + PROXY_ACCEPT_PAUSE_S
            return
        sock.setblocking(False)
        peer = _Peer(sock)
        # Only root can see which namespace the processes of others are in, without which none is watched.
        if not peer.pid or len(self._peers) >= MAX_WATCHED_PROCESSES or (peer.foreign and _OWN_USER):
            sock.close()
            return
        unauthenticated = [each for each in self._peers.values() if not each.authenticated]
        if len(unauthenticated) >= MAX_UNAUTHENTICATED_LANES:
            self._drop(next((each for each in unauthenticated if each.foreign), unauthenticated[0]))
        self._peers[sock.fileno()] = peer
        try:
            self._epoll.register(sock, select.EPOLLIN)
        except OSError:  # the kernel lets this user wait for no more
            self._drop(peer)

    def _read(self, peer: _Peer, events: int) -> None:
        try:
            data = peer.sock.recv(CLAIM.size - len(peer.received))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or peer.asked:  # gone; or it does not wait for its answer
            self._drop(peer)
            return
        peer.received += data
        if len(peer.received) < CLAIM.size:
            return
        token, session = CLAIM.unpack(peer.received)
        peer.received = b""
        if not hmac.compare_digest(token, self._token) or not session:
            self._drop(peer)
            return
        peer.authenticated, peer.asked = True, session
        try:
            self._to_ask.put_nowait(peer)
        except queue.Full:
            self._answer(peer, session, False)

    def _answer(self, peer: _Peer, session: int, known: bool) -> None:
        """Watch a process that has been checked, and tell it."""
        if self._peers.get(peer.sock.fileno()) is not peer:
            return
        peer.asked = 0
        watched = False
        if known:
            with contextlib.suppress(OSError):  # even if it is dead: its socket ends, and its TTLs count
                before = len(self._monitors)
                fd = self._monitors.monitor(peer, peer.pid, session)
                if len(self._monitors) > before:
                    self._epoll.register(fd, select.EPOLLIN)
                watched = True
        try:
            peer.sock.send(WATCHED if watched else NOT_WATCHED)
        except OSError:
            self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        if self._peers.pop(peer.sock.fileno(), None) is not None:
            self._monitors.lane_ended(peer, time.monotonic())
            peer.sock.close()

    # -- the thread that asks the cluster -----------------------------------------------------------------------------

    def _wake_asker(self) -> None:
        with contextlib.suppress(queue.Full):  # then it is awake
            self._to_ask.put_nowait(None)

    def _run_asker(self) -> None:
        pause = DEATH_REPORT_PAUSE_S
        while not self._closed:
            peer = None
            with contextlib.suppress(queue.Empty):
                peer = self._to_ask.get(timeout=pause if self._dead else None)
            now = time.monotonic()
            while self._ended:
                self._dead[self._ended.popleft()] = now + DEATH_REPORT_S
            self._dead = {session: until for session, until in self._dead.items() if until > now}
            if self._dead:
                pause = DEATH_REPORT_PAUSE_S if self._report() else min(2 * pause, MONITOR_REFRESH_S)
            if peer is not None:
                self._asked.append((peer, peer.asked, self._is_of(peer.pid, peer.asked)))
                with contextlib.suppress(OSError):
                    os.eventfd_write(self._wake_fd, 1)

    def _report(self) -> bool:
        """Report the first of the dead; whether that was done."""
        sessions = tuple(sorted(self._dead)[:MAX_EXPIRIES_AT_ONCE])
        try:
            self._end_sessions(sessions)
        except Exception as error:  # Ray's are of many kinds: it may be shutting down
            self._log.debug("the death of a process could not be reported: %s", error)
            return False
        for session in sessions:
            del self._dead[session]
        return True

    def _is_of(self, pid: int, session: int) -> bool:
        """Whether the process of that id, now, has opened that session."""
        try:
            who = self._who(session)
            fd = open_process(pid)
        except Exception as error:  # Ray's are of many kinds, and this thread must go on
            self._log.debug("process %d is not watched: %s", pid, error)
            return False
        try:
            started, namespace = start_of(pid), namespace_of(pid)
            if select.select([fd], [], [], 0)[0]:  # it ended meanwhile, so these may be of another
                return False
        finally:
            os.close(fd)
        told = (pid, started, ids_are_of()[0], namespace)
        return who is not None and told == (who.pid, who.started, who.boot, who.pid_namespace) and 0 not in told
