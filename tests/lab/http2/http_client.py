"""Clients of plain HTTP, in both of its versions, for tests of a proxy's port."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from typing import NamedTuple

import h2.config
import h2.connection
import h2.events

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


def request_by_http2(
    endpoint: str, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Reply:
    """The same over HTTP/2, with prior knowledge. The body must fit into one window."""
    fields = [(":method", method), (":scheme", "http"), (":path", target), (":authority", endpoint)]
    fields += [(name.lower(), value) for name, value in (headers or {}).items()]
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    connection.send_headers(1, fields)
    connection.send_data(1, body, end_stream=True)
    answered: dict[str, str] = {}
    content = bytearray()
    host, _, port = endpoint.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as sock:
        while True:
            sock.sendall(connection.data_to_send())
            data = sock.recv(65536)
            assert data, "the connection has ended before the answer"
            for event in connection.receive_data(data):
                assert not isinstance(event, h2.events.StreamReset), f"reset: {event.error_code}"
                if isinstance(event, h2.events.ResponseReceived):
                    answered = {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, h2.events.DataReceived):
                    content += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, 1)
                elif isinstance(event, h2.events.StreamEnded):
                    return Reply(int(answered[":status"]), answered, bytes(content))
