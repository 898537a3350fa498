"""Asks Ray for what a status needs beside the members' word: nodes, the supervisor's word, proxies (``RayView``).

``Cluster.status`` does, and each proxy for the shells on its node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from ...errors import Unavailable
from ...limits import STATUS_TIMEOUT_S
from ...schema.answers import RangeAnswer, RangePart
from ...schema.auth_operations import ROOT
from ...schema.frames import AsUser, LoggedIn, Login, Read, ReadReply, Reads, Refusal, Refused, Reply, Request
from ...schema.key_spaces import RESERVED_SPACE
from ...schema.operations import KeyRange, Range
from ..actor_access import ActorAccess, as_the_cluster
from ..client.view import prefix_end
from ..deadline import at_most
from ..discovery import alive_nodes, collect, first_member_spec, supervisor_actor
from ..naming import MemberSpec, member_name, proxy_name
from ..ray_view import ProxyInfo, RayView, encode_ray_view
from .proxy_lookup import proxy_actors
from .proxy_registry import PROXIES, ProxyEntry, read_entry

if TYPE_CHECKING:
    from .proxy_actor import ProxyStatus

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


def view_ray(cluster_name: str, cluster: int, placement: Sequence[str] | None = None) -> RayView:
    """See the module; an actor that does not answer within ``STATUS_TIMEOUT_S`` is left out, or said not to.

    Args:
        cluster: the cluster's id.
        placement: as in its spec; ``None`` to ask a member.

    Raises:
        ClusterNotFound: this process is not attached to Ray.
        Unavailable: Ray does not answer before the deadline of the current call.
    """
    access = ActorAccess(cluster_name)
    members = access.members()
    nodes = alive_nodes()  # first: silent actors may take all the time there is
    supervisor, proxies = supervisor_actor(cluster_name), proxy_actors(cluster_name)
    asked = {proxy_name(node): actor.status.remote() for node, actor in proxies.items()}
    if supervisor is not None:
        asked |= {"alarms": supervisor.alarms.remote(), "situation": supervisor.situation.remote()}
    if placement is None:
        spec: MemberSpec | None = first_member_spec(list(members.values()))
        placement = () if spec is None else spec.placement
    answers: dict[str, Any] = collect(asked, STATUS_TIMEOUT_S)
    situation = answers.get("situation")
    statuses = {node: answers.get(proxy_name(node)) for node in proxies}
    return RayView(
        nodes=tuple(nodes),
        placement=tuple(placement),
        alarms=tuple(answers.get("alarms", ())),
        situation=None if situation is None else tuple(situation),
        proxies=proxy_infos(proxies, statuses, registered_proxies(access, members, cluster)),
    )


class RayForShells:
    """What a proxy does by Ray for the shells on its node, which can call no actor (``RelayRay``).

    Args:
        cluster_name, cluster: the cluster.
    """

    def __init__(self, cluster_name: str, cluster: int) -> None:
        self._cluster_name = cluster_name
        self._cluster = cluster

    def view_ray(self) -> bytes:
        """See ``RelayRay``. Raises as the function of this name."""
        found = view_ray(self._cluster_name, self._cluster)
        return encode_ray_view(replace(found, proxies=tuple(replace(each, actor=None) for each in found.proxies)))

    def move_leader(self, leader: int, target: int) -> None:
        """See ``RelayRay``."""
        access = ActorAccess(self._cluster_name)
        if leader not in access.members() or not access.move_leader(leader, target):
            raise Unavailable(f"{member_name(leader)} does not hand over leadership")


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


def registered_proxies(
    access: ActorAccess, members: Mapping[int, Any], cluster: int, timeout: float = STATUS_TIMEOUT_S
) -> list[ProxyEntry]:
    """The entries of the directory, as the first member that answers has them; it may lag.

    Args:
        members: their actors.
        cluster: the cluster's id.
    """
    space = RESERVED_SPACE + PROXIES.encode() + b"/"
    reads = Reads(cluster, timeout, True, (Read(Range(KeyRange(space, prefix_end(space)))),))

    def ask(member: int, request: Request) -> Reply | None:
        for _, answer in access.ask({member: _encode(request)}, at_most(timeout)):
            with suppress(msgspec.MsgspecError):
                return _decode(answer)
        return None

    for member, answer in access.ask(dict.fromkeys(members, _encode(reads)), at_most(timeout)):
        with suppress(Unavailable, msgspec.MsgspecError):
            reply: Reply | None = _decode(answer)
            if isinstance(reply, Refused) and reply.refusal is Refusal.NO_USER:
                reply = ask(member, Login(cluster, timeout, ROOT, token=as_the_cluster(members[member])))
                if isinstance(reply, LoggedIn):
                    reply = ask(member, AsUser(reply.token, reads))
            if isinstance(reply, ReadReply) and isinstance(reply.answers[0], (RangeAnswer, RangePart)):
                entries = (read_entry(item.value) for item in reply.answers[0].items)
                return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.url)
    return []
