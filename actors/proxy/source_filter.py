"""Has the kernel drop a part of the connections that one address begins, where most of them come to no request.

To accept a connection and to close it takes tens of microseconds, and a flood of thousands a second a tenth of the
loop's time. A program on the listening socket (classic BPF, which needs no privilege) sees each packet before there is
a connection; those that are accepted inherit it, and get no SYNs. It drops so many SYNs of an address that floods that
about as many connections are left as a proxy lets in. TCP tries these again by itself: a client that shares the flood's
address waits for longer, one from elsewhere does not.

A flood is more than ``PROXY_SOURCE_PER_S`` connections of one address a second that end without a request. Those that
wait to be let in, or give up meanwhile, do not count, however many they are; nor do those that are closed as their time
is over, since they came long ago. How many an address begins is known
from how many have ended so, and from the part that was kept. So the part follows the flood, and the program is removed
within two sweeps after the last of the flood have ended. Where there is not the time to accept all that come, fewer end
than come: there it is the address that most of those are of that have ended so.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import logging
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Mapping

from ...limits import (
    MAX_FILTERED_SOURCES,
    MIN_PROXY_USELESS,
    PROXY_LEAST_KEPT_FRACTION,
    PROXY_SOURCE_PER_S,
)
from ..logs import MemberLog

_ATTACH_FILTER, _DETACH_FILTER = 26, 27
"""SO_ATTACH_FILTER and SO_DETACH_FILTER of asm-generic/socket.h, which Python does not name."""
_LOAD_BYTE, _LOAD_WORD, _AND, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x30, 0x20, 0x54, 0x15, 0x35, 0x06
_IP_HEADER = 0xFFF00000
"""Offsets from here count from the IP header, others from that of TCP."""
_RANDOM = 0xFFFFF000 + 56
_TCP_FLAGS, _SYN, _SYN_OR_ACK = 13, 0x02, 0x12
_IPV4_SOURCE, _IPV6_SOURCE = _IP_HEADER + 12, _IP_HEADER + 8
_KEEP, _DROP = 0xFFFFFFFF, 0
_NO_FILTERS = frozenset({errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.ENOSYS})
"""Of a kernel that has none of them, or allows none. Another error, for want of memory, may pass."""


def syn_filter(family: int, kept: Mapping[str, float]) -> bytes:
    """The program that keeps a part of the SYNs of some sources, and all other packets.

    Args:
        family: AF_INET or AF_INET6; sources of the other are left out.
        kept: the part, by source as ``source_of_address`` names it.
    """
    lines = [(_LOAD_BYTE, 0, 0, _TCP_FLAGS), (_AND, 0, 0, _SYN_OR_ACK), (_IF_EQUAL, 1, 0, _SYN), (_RETURN, 0, 0, _KEEP)]
    for source, part in kept.items():
        network = ipaddress.ip_network(source)
        chance = [
            (_LOAD_WORD, 0, 0, _RANDOM),
            (_IF_AT_LEAST, 0, 1, min(_KEEP, int(part * 2**32))),
            (_RETURN, 0, 0, _DROP),
            (_RETURN, 0, 0, _KEEP),
        ]
        words = struct.unpack(f">{len(network.network_address.packed) // 4}I", network.network_address.packed)
        if network.version == 4 and family == socket.AF_INET:
            lines += [(_LOAD_WORD, 0, 0, _IPV4_SOURCE), (_IF_EQUAL, 0, len(chance), words[0]), *chance]
        elif network.version == 6 and family == socket.AF_INET6:
            lines += [
                (_LOAD_WORD, 0, 0, _IPV6_SOURCE),
                (_IF_EQUAL, 0, 2 + len(chance), words[0]),
                (_LOAD_WORD, 0, 0, _IPV6_SOURCE + 4),
                (_IF_EQUAL, 0, len(chance), words[1]),
                *chance,
            ]
    lines.append((_RETURN, 0, 0, _KEEP))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Put a program on a socket, in place of another. Raises ``OSError``."""
    held = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(held)))


def detach_filter(sock: socket.socket) -> None:
    """Remove the program of a socket. Raises ``OSError``."""
    sock.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)


class SourceFilter:
    """See the module. All on one thread.

    Args:
        listeners: the sockets that listen.
        log: for an operator.
    """

    def __init__(self, listeners: Iterable[socket.socket], log: MemberLog) -> None:
        self._listeners = listeners
        self._log = log
        self._useless: Counter[str] = Counter()
        self._kept: dict[str, float] = {}
        self._works = True
        self._said_that_it_cannot = False
        self.floods = False
        """Whether an address flooded in the last sweep, filtered or not."""

    @property
    def kept(self) -> Mapping[str, float]:
        """The part of their connections that is kept, of those sources of which not all are."""
        return self._kept

    def count_useless(self, source: str) -> None:
        """A connection has ended without a request, and not because it had to wait."""
        if source:  # the address of one that was reset is not always known any more
            self._useless[source] += 1

    def review(self, seconds: float, serving: bool, starved: bool = False) -> None:
        """Look at what came.

        Args:
            seconds: since the last time.
            serving: whether there are others whom a flood would hold up; otherwise all are kept.
            starved: whether there was not the time to accept all that came.
        """
        useless, self._useless = self._useless, Counter()
        rates: dict[str, float] = {}
        kept: dict[str, float] = {}
        if serving and seconds > 0:
            # What an address begins in a second, if all were kept.
            rates = {source: count / seconds / self._kept.get(source, 1.0) for source, count in useless.items()}
        for source in sorted(rates, key=lambda source: -rates[source])[:MAX_FILTERED_SOURCES]:
            part = PROXY_SOURCE_PER_S / rates[source]
            if starved and useless[source] >= MIN_PROXY_USELESS and 2 * useless[source] > useless.total():
                part = PROXY_LEAST_KEPT_FRACTION
            if part < 1:
                kept[source] = max(part, PROXY_LEAST_KEPT_FRACTION)
        self.floods = bool(kept)
        before = self._kept
        self._keep(kept)
        if self._kept and not before:
            source = next(iter(kept))
            self._log.log(
                logging.WARNING,
                "%s begins %d connections a second without a request: %d%% of them are kept",
                source,
                int(rates[source]),
                int(100 * kept[source]),
            )

    def _keep(self, kept: dict[str, float]) -> None:
        if not self._works or kept == self._kept:
            return
        if kept:
            try:
                for listener in self._listeners:
                    attach_filter(listener, syn_filter(listener.family, kept))
            except OSError as error:
                self._works = error.errno not in _NO_FILTERS
                self._say_that_it_cannot(next(iter(kept)), error)
                kept = {}
        if not kept:
            for listener in self._listeners:
                with contextlib.suppress(OSError):  # it has none
                    detach_filter(listener)
        self._kept = kept

    def _say_that_it_cannot(self, source: str, error: OSError) -> None:
        if not self._said_that_it_cannot:
            self._said_that_it_cannot = True
            self._log.log(logging.WARNING, "connections of %s flood, and cannot be filtered: %s", source, error)
