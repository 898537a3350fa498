"""A client of plain HTTP for tests of a proxy's port."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from typing import NamedTuple

from lab.patience import PATIENCE


class Reply(NamedTuple):
    """An answer; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def request(
    endpoint: str, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """One request on a connection of its own."""
    client = http.client.HTTPConnection(endpoint, timeout=PATIENCE)
    try:
        client.request(method, target, body, dict(headers or {}))
        reply = client.getresponse()
        return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
    finally:
        client.close()
