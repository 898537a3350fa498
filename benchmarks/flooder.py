"""A flood of connections that show nothing, by one process: ``python benchmarks/flooder.py HOST PORT RATE``.

It begins as many connections a second as it is told, keeps up to a thousand of them open, and closes the oldest for
each new one. A quarter of them say nothing, and the others something that means nothing, the beginning of a request of
HTTP/1.1, or that of a connection of HTTP/2. It ends with its stdin, and prints how many it has
begun, how many were accepted by then, and how many the other side has closed.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque

KEPT = 1000
STEP_S = 0.005
SAYS = (b"", b"x" * 64, b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))


class Flooder:
    """See the module."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._open: dict[int, socket.socket] = {}
        self._order: deque[int] = deque()
        self._epoll = select.epoll()
        self.begun = self.accepted = self.closed = 0

    def begin(self) -> None:
        """One more connection."""
        sock = socket.socket()
        sock.setblocking(False)
        self.begun += 1
        if sock.connect_ex(self._address) not in (0, 115):  # EINPROGRESS
            sock.close()
            return
        self._open[sock.fileno()] = sock
        self._order.append(sock.fileno())
        self._epoll.register(sock.fileno(), select.EPOLLOUT)
        if len(self._order) > KEPT:
            self._end(self._order.popleft())

    def look(self) -> None:
        """What has become of them."""
        for fd, events in self._epoll.poll(0, 4096):
            if events & (select.EPOLLHUP | select.EPOLLERR | select.EPOLLIN):
                self.closed += 1
                self._order.remove(fd)
                self._end(fd)
                continue
            self.accepted += 1
            self._epoll.modify(fd, select.EPOLLIN)
            try:
                self._open[fd].send(SAYS[self.accepted % len(SAYS)])
            except OSError:
                continue

    def _end(self, fd: int) -> None:
        self._open.pop(fd).close()


def main() -> None:
    """See the module."""
    host, port, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    flooder, began = Flooder(host, port), time.monotonic()
    while not select.select([0], [], [], 0)[0]:  # until its end
        due = int((time.monotonic() - began) * rate)
        for _ in range(min(200, due - flooder.begun)):
            flooder.begin()
        flooder.look()
        time.sleep(STEP_S)
    print(flooder.begun, flooder.accepted, flooder.closed, time.monotonic() - began)


if __name__ == "__main__":
    main()
