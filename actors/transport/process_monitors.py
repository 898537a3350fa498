"""Which processes a member would notice the death of, and what ends with each. Without I/O: the owner waits, and opens.

A process opens a lane over a Unix socket, and says which session is its own. The kernel says which process it is: not
by what the process says, but by the credentials of the socket, as of the moment when it connected (``SO_PEERCRED``).
From that id a descriptor of the process is made (``pidfd_open``), which becomes readable when the process has ended,
all its threads included, and never before. So no id of a process is remembered, compared, or sent anywhere.

**Only that is certain.** The end of the lane is not: the process may have closed it, or replaced its program
(``exec``). It says only that the process may need no monitoring any more, so that is ended after a while. And if the id
was given to another process between connecting and here, then the one that connected is dead, and the descriptor is of
the other: its death comes too late, never too early.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Callable

from ...limits import MAX_SESSIONS_MONITORED, MONITOR_LINGER_S

_CREDENTIALS = struct.Struct("3i")


def peer_process(sock: object) -> int:
    """The id of the process that has connected a Unix socket to this one, as the kernel knows it; 0 if it cannot tell:
    the process is in a namespace that this one does not see."""
    return max(0, _credentials(sock)[0])


def peer_user(sock: object) -> int:
    """The id of the user whose process has connected a Unix socket to this one, as the kernel knows it; -1 if it
    cannot tell."""
    return _credentials(sock)[1]


def _credentials(sock: object) -> tuple[int, int]:
    """Process and user."""
    if not isinstance(sock, socket.socket) or sock.family != socket.AF_UNIX:
        return 0, -1
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return 0, -1
    pid, user, _ = _CREDENTIALS.unpack(credentials)
    return pid, user


def open_process(pid: int) -> int:
    """A descriptor that becomes readable when the process has ended.

    Raises:
        ProcessLookupError: there is no such process.
        OSError: there can be none: an old kernel, a sandbox, no descriptor left.
    """
    if not hasattr(os, "pidfd_open"):
        raise OSError("this platform has no descriptors of processes")
    return os.pidfd_open(pid)


class _Monitored:
    """One process at the other end of one lane."""

    __slots__ = ("fd", "sessions")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.sessions: set[int] = set()


class ProcessMonitors:
    """The processes that are monitored.

    Args:
        open_process, close: make and end a descriptor of a process.
    """

    def __init__(
        self, open_process: Callable[[int], int] = open_process, close: Callable[[int], None] = os.close
    ) -> None:
        self._open_process = open_process
        self._close = close
        self._by_lane: dict[object, _Monitored] = {}
        self._by_fd: dict[int, _Monitored] = {}
        self._lingering: deque[tuple[float, _Monitored]] = deque()
        """Those whose lane has ended, and until when they are monitored."""

    def __len__(self) -> int:
        return len(self._by_fd)

    def monitor(self, lane: object, pid: int, session: int) -> int:
        """The process at the other end of a lane has this session.

        Returns:
            The descriptor to wait for.

        Raises:
            ProcessLookupError: the process is dead.
            OSError: it cannot be monitored.
        """
        known = self._by_lane.get(lane)
        if known is None:
            if not pid:
                raise OSError("the process cannot be seen from here")
            known = _Monitored(self._open_process(pid))
            self._by_lane[lane] = self._by_fd[known.fd] = known
        if len(known.sessions) >= MAX_SESSIONS_MONITORED and session not in known.sessions:
            raise OSError("a process has only so many sessions")
        known.sessions.add(session)
        return known.fd

    def lane_ended(self, lane: object, now: float) -> None:
        """A lane has ended. Its process may live on."""
        known = self._by_lane.pop(lane, None)
        if known is not None:
            self._lingering.append((now + MONITOR_LINGER_S, known))

    def process_ended(self, fd: int) -> tuple[int, ...]:
        """A descriptor has become readable: the sessions that end with the process; none if it is not known."""
        known = self._by_fd.get(fd)
        if known is None:
            return ()
        self._forget(known)
        return tuple(sorted(known.sessions))

    def forget_lane(self, lane: object) -> None:
        """Do not monitor the process of a lane."""
        known = self._by_lane.get(lane)
        if known is not None:
            self._forget(known)

    def expire(self, now: float) -> None:
        """Forget processes whose lanes ended a while ago."""
        while self._lingering and self._lingering[0][0] <= now:
            self._forget(self._lingering.popleft()[1])

    def close(self) -> None:
        """Forget all."""
        for known in list(self._by_fd.values()):
            self._forget(known)
        self._lingering.clear()

    def _forget(self, known: _Monitored) -> None:
        if self._by_fd.get(known.fd) is known:
            del self._by_fd[known.fd]
            self._close(known.fd)
        for lane in [lane for lane, other in self._by_lane.items() if other is known]:
            del self._by_lane[lane]
