"""Who loads a cluster, and with what: the answers of its members (``actors/member/load_meter.py``), put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from ...schema.key_spaces import USER_SPACE
from ...schema.operator_frames import ClientLoad, Load, LoadShown
from ..naming import member_name
from .client_info import ClientInfo, client_info


class ClientTop(msgspec.Struct, frozen=True):
    """The load by one client, a second.

    Attributes:
        client: who it is; ``None`` if no member knows.
        source: what is known otherwise, for people.
        puts: puts, deletes and transactions.
        gets: reads, of one key or of many.
        events: of its watches.
        bytes: of all of these.
    """

    client: ClientInfo | None
    source: str
    puts: float
    gets: float
    events: float
    bytes: float


class PrefixTop(msgspec.Struct, frozen=True):
    """The load on the keys that begin with a prefix, a second; the fields are those of ``ClientTop``.

    Attributes:
        prefix: the first segment of the keys, with the slash after it; empty for keys without a slash, ``...`` for all
            that a member no longer tells apart.
        reserved: whether it is of what locks, queues and the like keep.
    """

    prefix: bytes
    reserved: bool
    puts: float
    gets: float
    events: float
    bytes: float


class SlowInfo(msgspec.Struct, frozen=True):
    """A request that took more than 100 ms.

    Attributes:
        member: the name of the member that served it.
        at: when it was answered, in seconds since 1970 by that member's clock.
        took: seconds.
        what: for people: kind and first key, and where the time went.
    """

    member: str
    at: float
    took: float
    what: str


class ClusterTop(msgspec.Struct, frozen=True):
    """What loads a cluster, as an average over the last five seconds; heaviest first.

    Attributes:
        clients, prefixes: by client and by prefix.
        slow: the last slow requests of each member, oldest first.
        silent: names of the members that did not answer, whose load is missing.
    """

    clients: tuple[ClientTop, ...]
    prefixes: tuple[PrefixTop, ...]
    slow: tuple[SlowInfo, ...]
    silent: tuple[str, ...]


def merged(shown: Mapping[int, LoadShown], silent: tuple[str, ...], limit: int) -> ClusterTop:
    """The members' answers, by member id, as one."""
    known = {
        (each.client.identity.host, each.client.identity.pid): each.session
        for answer in shown.values()
        for each in answer.clients
        if each.client is not None and each.client.identity is not None
    }
    clients: dict[object, tuple[ClientLoad, list[Load]]] = {}
    prefixes: dict[bytes, list[Load]] = {}
    for answer in shown.values():
        for row in answer.clients:
            session = row.session or known.get((answer.host, row.pid), 0)
            first, loads = clients.setdefault(session or (answer.host, row.pid, row.source), (row, []))
            if first.client is None and row.client is not None:
                clients[session] = (row, loads)
            loads.append(row.load)
        for prefix in answer.prefixes:
            prefixes.setdefault(prefix.prefix, []).append(prefix.load)
    client_rows = [
        ClientTop(
            None if row.client is None else client_info(row.client),
            row.source or (f"session {row.session}" if row.session else ""),
            *_added(loads),
        )
        for row, loads in clients.values()
    ]
    prefix_rows = [_prefix_row(prefix, loads) for prefix, loads in prefixes.items()]
    slow = [
        SlowInfo(member_name(member), each.at, each.took, each.what)
        for member, answer in shown.items()
        for each in answer.slow
    ]
    return ClusterTop(
        tuple(sorted(client_rows, key=_requests, reverse=True)[:limit]),
        tuple(sorted(prefix_rows, key=_requests, reverse=True)[:limit]),
        tuple(sorted(slow, key=lambda each: each.at)),
        silent,
    )


def _added(loads: Iterable[Load]) -> tuple[float, float, float, float]:
    """Writes, reads, events and bytes."""
    rows = [(load.writes, load.reads, load.events, load.bytes) for load in loads]
    writes, reads, events, size = (round(sum(column), 2) for column in zip(*rows, strict=True))
    return writes, reads, events, size


def _prefix_row(prefix: bytes, loads: Iterable[Load]) -> PrefixTop:
    if prefix.startswith(USER_SPACE):
        return PrefixTop(prefix[len(USER_SPACE) :], False, *_added(loads))
    return PrefixTop(prefix if prefix == b"..." else prefix[1:], prefix != b"...", *_added(loads))


def _requests(row: ClientTop | PrefixTop) -> float:
    return row.puts + row.gets + row.events
