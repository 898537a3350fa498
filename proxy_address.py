"""Where a proxy listens and what clients are told, as they are written: in a spec, on the command line, and as URLs.

An address to listen on is ``HOST:PORT``, or ``HOST:FIRST-LAST`` for the first free port of a range; port 0 is any free
one. An address that clients are told is ``HOST``, or ``HOST:PORT``. An IPv6 address stands in brackets.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_MAX_PORT = 65535
_MAX_HOST = 253
"""Characters of a host's name in DNS."""


class ListenAddress(NamedTuple):
    """Where to listen: a host, and the first and last of the ports to try."""

    host: str
    first: int
    last: int

    @property
    def ports(self) -> range:
        """The ports to try, in this order."""
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{_bracketed(self.host)}:{ports}"


class AdvertisedAddress(NamedTuple):
    """What clients are told: a host, and a port, or ``None`` for the one that the proxy listens on."""

    host: str
    port: int | None


def read_listen_address(text: str) -> ListenAddress | None:
    """An address to listen on from its text; ``None`` if the text is not one."""
    host, colon, digits = text.rpartition(":")
    ports = _PORTS.fullmatch(digits)
    plain = _read_host(host)
    if not colon or plain is None or ports is None:
        return None
    first = int(ports[1])
    last = first if ports[2] is None else int(ports[2])
    if not first <= last <= _MAX_PORT or (first == 0 and last != 0):
        return None
    return ListenAddress(plain, first, last)


def read_advertised_address(text: str) -> AdvertisedAddress | None:
    """An address that clients are told from its text; ``None`` if the text is not one."""
    plain = _read_host(text)
    if plain is not None:
        return AdvertisedAddress(plain, None)
    found = read_listen_address(text)
    if found is None or found.first != found.last or found.first == 0:
        return None
    return AdvertisedAddress(found.host, found.first)


def client_url(
    advertised: AdvertisedAddress | None, bound: tuple[str, int], node_address: str, *, tls: bool = False
) -> str:
    """The URL that clients are told.

    Args:
        advertised: what an operator says; ``None`` for the address that is listened on, or, if that is all addresses of
            the machine, the node's.
        bound: the address that is listened on.
        node_address: IP address of this process's Ray node.
        tls: whether it speaks TLS.
    """
    host, port = bound
    if advertised is not None:
        return url_of(advertised.host, port if advertised.port is None else advertised.port, tls=tls)
    return url_of(node_address if _is_any(host) else host, port, tls=tls)


def url_of(host: str, port: int, *, tls: bool = False) -> str:
    """The URL of an address."""
    return f"{'https' if tls else 'http'}://{_bracketed(host)}:{port}"


def _read_host(text: str) -> str | None:
    """A host without its brackets; ``None`` if the text is not a host."""
    if text.startswith("[") and text.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            return None
    return text if len(text) <= _MAX_HOST and _NAME.fullmatch(text) else None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        return False
