"""The proxies of a cluster, as they report themselves and as they are registered: what ``Cluster.proxies`` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import ray

from ...errors import Unavailable
from ...limits import STATUS_TIMEOUT_S
from ...schema.answers import RangeAnswer, RangePart
from ...schema.auth_operations import ROOT
from ...schema.frames import AsUser, LoggedIn, Login, Read, ReadReply, Reads, Refusal, Refused, Reply, Request
from ...schema.key_spaces import RESERVED_SPACE
from ...schema.operations import KeyRange, Range
from ..client.view import prefix_end
from ..deadline import at_most
from ..leader_call import as_the_cluster
from ..proxy.proxy_actor import ProxyStatus
from ..proxy.proxy_registry import PROXIES, ProxyEntry, read_entry
from .proxy_handle import proxy_name

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


@dataclass(frozen=True)
class ProxyInfo:
    """The status of one proxy.

    Attributes:
        name: of its actor, without the cluster's; "foreground" for one that `raykeeper proxy` runs.
        url: what etcd's clients reach it by; empty while it does not serve.
        node: id of the Ray node that it runs on.
        pid: of its process, 0 if unknown.
        member: id of the member that it speaks for, 0 if it does not serve.
        connections: how many are open; ``None`` if unknown.
        why_not_serving: empty if it serves.
        actor: its Ray actor handle, ``None`` for one in the foreground.
    """

    name: str
    url: str
    node: str = ""
    pid: int = 0
    member: int = 0
    connections: int | None = None
    why_not_serving: str = ""
    actor: Any = None


def proxy_infos(
    actors: Mapping[str, Any], statuses: Mapping[str, ProxyStatus | None], registered: Sequence[ProxyEntry]
) -> tuple[ProxyInfo, ...]:
    """All proxies: actors by their node, then those in the foreground that are registered.

    Args:
        actors: by node, like ``statuses``.
        registered: the entries of the directory.
    """
    found = []
    for node in sorted(actors):
        status, name = statuses.get(node), proxy_name(node)
        if status is None:
            found.append(ProxyInfo(name, "", node, why_not_serving="it does not answer", actor=actors[node]))
            continue
        found.append(
            ProxyInfo(
                name,
                status.url,
                status.node,
                status.pid,
                status.member,
                status.connections,
                status.why_not_serving,
                actors[node],
            )
        )
    for entry in registered:
        if not entry.name:
            found.append(ProxyInfo("foreground", entry.url, entry.node, entry.pid, entry.member))
    return tuple(found)


def registered_proxies(actors: Sequence[Any], cluster: int, timeout: float = STATUS_TIMEOUT_S) -> list[ProxyEntry]:
    """The entries of the directory, as the first of some members that answers has them; it may lag.

    Args:
        actors: of members.
        cluster: the cluster's id.
    """
    space = RESERVED_SPACE + PROXIES.encode() + b"/"
    reads = Reads(cluster, timeout, True, (Read(Range(KeyRange(space, prefix_end(space)))),))

    def ask(actor: Any, request: Request) -> Reply:
        reply: Reply = _decode(ray.get(actor.request.remote(_encode(request)), timeout=at_most(timeout)))
        return reply

    for actor in actors:
        try:
            reply = ask(actor, reads)
            if isinstance(reply, Refused) and reply.refusal is Refusal.NO_USER:
                reply = ask(actor, Login(cluster, timeout, ROOT, token=as_the_cluster(actor)))
                if isinstance(reply, LoggedIn):
                    reply = ask(actor, AsUser(reply.token, reads))
        except (ray.exceptions.RayError, TimeoutError, Unavailable, msgspec.MsgspecError):
            continue
        if isinstance(reply, ReadReply) and isinstance(reply.answers[0], (RangeAnswer, RangePart)):
            entries = (read_entry(item.value) for item in reply.answers[0].items)
            return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.url)
    return []
