"""The address at which a member listens for lanes from other nodes."""

from __future__ import annotations

import fcntl
import socket
import struct

from ..logs import MemberLog

_SIOCGIFADDR = 0x8915
"""netdevice(7)."""
_ADDRESS = slice(20, 24)
"""Where the answer has the IPv4 address: after the name, and after family and port."""


def lane_host(interface: str, node_address: str, log: MemberLog) -> str:
    """The address of a network interface, or the node's own if none is named.

    Returns:
        An address; empty, with a warning in the log, if there is no such interface or it has no IPv4 address.
    """
    if not interface:
        return node_address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", interface.encode()))
        except OSError as error:
            log.warning("lane_interface %s has no address: %s; other nodes use actor calls", interface, error)
            return ""
    return socket.inet_ntoa(answer[_ADDRESS])
