"""Where a proxy listens and what clients are told, as they are written: in a spec, on the command line, and as URLs;
and ranges of ports, which lanes have, too.

An address to listen on is ``HOST:PORT``, or ``HOST:FIRST-LAST`` for the first free port of a range; port 0 is any free
one. An address that clients are told is ``HOST``, or ``HOST:PORT``. An IPv6 address stands in brackets.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_ORIGIN = re.compile(r"https?://[^/\s?#@]+")
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


def port_range(text: str) -> range | None:
    """The ports that ``FIRST-LAST`` or one number means, an empty range for an empty text; ``None`` for other texts."""
    if not text:
        return range(0)
    found = _PORTS.fullmatch(text)
    if found is None:
        return None
    first, last = int(found[1]), int(found[2] or found[1])
    return range(first, last + 1) if 0 < first <= last <= _MAX_PORT else None


def read_listen_address(text: str) -> ListenAddress | None:
    """An address to listen on from its text; ``None`` if the text is not one."""
    host, _, digits = text.rpartition(":")
    ports = range(1) if digits == "0" else port_range(digits)
    plain = _read_host(host)
    return ListenAddress(plain, ports[0], ports[-1]) if plain is not None and ports else None


def read_advertised_address(text: str) -> AdvertisedAddress | None:
    """An address that clients are told from its text; ``None`` if the text is not one."""
    plain = _read_host(text)
    if plain is not None:
        return AdvertisedAddress(plain, None)
    found = read_listen_address(text)
    if found is None or found.first != found.last or found.first == 0:
        return None
    return AdvertisedAddress(found.host, found.first)


def is_origin(text: str) -> bool:
    """Whether a text names where web pages come from (RFC 6454): ``SCHEME://HOST[:PORT]``; or ``*``, all of them."""
    return text == "*" or _ORIGIN.fullmatch(text) is not None


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
