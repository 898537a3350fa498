"""What Ray lists: its nodes, and the actors of a cluster; and questions to all members at once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

import ray

from ..errors import ClusterNotFound, Unavailable
from ..limits import POLL_PAUSE_S, STATUS_TIMEOUT_S
from ..schema.operator_frames import MemberStatus
from ..spec import RAYS_OWN
from .deadline import at_most, pause_between_checks
from .naming import NAMESPACE, SUPERVISOR, MemberSpec, actor_name, proxy_name
from .proxy_claims import WatchOffer
from .ray_attached import attached, staying_attached
from .ray_calls import check_not_forked, in_time
from .ray_view import RayNode

K = TypeVar("K")

_MEMBER = re.compile(r"m([1-9][0-9]*)")


def alive_nodes() -> list[RayNode]:
    """The nodes that Ray believes to be alive, ordered by address."""
    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    nodes = [
        RayNode(node["NodeID"], node["NodeManagerAddress"], frozenset(node["Resources"]) - RAYS_OWN)
        for node in in_time(attached(list_nodes))
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: (node.address, node.id))


def member_actors(cluster_name: str) -> dict[int, Any]:
    """Handles of the actors of a cluster's members, by member id, in any state.

    Raises:
        ClusterNotFound: this process is not attached to Ray.
        Unavailable: Ray did not answer before the deadline of the current call.
    """
    check_not_forked()
    if not ray.is_initialized():  # otherwise Ray would start one by itself
        raise ClusterNotFound("this process is not attached to a Ray cluster")
    found = {}
    for name in listed_actors(cluster_name):
        member = _MEMBER.fullmatch(name)
        if member is None:
            continue
        try:
            actor = in_time(attached(ray.get_actor), actor_name(cluster_name, name), namespace=NAMESPACE)
        except ValueError:
            continue  # gone since it was listed
        found[int(member[1])] = actor
    return dict(sorted(found.items()))


def supervisor_actor(cluster_name: str) -> Any:
    """The actor handle of a cluster's supervisor; ``None`` if there is none."""
    try:
        return in_time(attached(ray.get_actor), actor_name(cluster_name, SUPERVISOR), namespace=NAMESPACE)
    except ValueError:
        return None


def listed_actors(cluster_name: str) -> list[str]:
    """Short names of all actors of a cluster that Ray lists, in any state: members, supervisor, proxies.

    An actor that waits for a node to come back is among them, though it cannot answer.
    """
    prefix = actor_name(cluster_name, "")
    return [
        actor["name"][len(prefix) :]
        for actor in in_time(attached(ray.util.list_named_actors), all_namespaces=True)
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix)
    ]


def ask_all(handles: dict[int, Any], method: str, *arguments: Any, timeout: float = STATUS_TIMEOUT_S) -> dict[int, Any]:
    """Call a method of all members; returns the answers that came in time, by member."""
    return collect({member: getattr(handle, method).remote(*arguments) for member, handle in handles.items()}, timeout)


def collect(references: dict[K, Any], timeout: float) -> dict[K, Any]:
    """The results that are there in time and are not errors."""
    if references:
        ray.wait(list(references.values()), num_returns=len(references), timeout=at_most(timeout))
    results = {}
    for key, reference in references.items():
        try:
            results[key] = ray.get(reference, timeout=0)
        except (ray.exceptions.RayError, TimeoutError):
            continue
    return results


def ask_watch_offer(cluster_name: str, node: str) -> WatchOffer | None:
    """Ask the proxy of a node how it watches processes; ``None`` if there is no proxy, or if this process, over Ray
    Client, is on no node.

    For threads of ours: the user may call ``ray.shutdown()`` meanwhile.

    Raises:
        ClusterNotFound: this process has left Ray.
        Unavailable: Ray or the proxy does not answer before the deadline of the current call.
        RayError: the proxy cannot answer.
    """
    if ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
        return None
    try:
        name = actor_name(cluster_name, proxy_name(node))
        proxy: Any = in_time(attached(ray.get_actor), name, namespace=NAMESPACE)
    except ValueError:
        return None
    with staying_attached():
        future: Future[WatchOffer | None] = proxy.watch_offer.remote().future()
    try:
        return future.result(at_most(STATUS_TIMEOUT_S))
    except FutureTimeoutError as error:
        raise Unavailable("the proxy of this node did not answer in time") from error


def settled_statuses(handles: dict[int, Any], timeout: float) -> dict[int, MemberStatus]:
    """The status of each member that answers, once none is still opening its data, or at the timeout."""
    deadline = time.monotonic() + timeout
    while True:
        statuses: dict[int, MemberStatus] = ask_all(handles, "status")
        if not any(status.is_starting for status in statuses.values()) or time.monotonic() >= deadline:
            return statuses
        pause_between_checks(POLL_PAUSE_S)


def actors_gone(names: Iterable[str]) -> bool:
    """Whether no actor of these names remains in the namespace."""
    actors = in_time(attached(ray.util.list_named_actors), all_namespaces=True)
    listed = {actor["name"] for actor in actors if actor["namespace"] == NAMESPACE}
    return listed.isdisjoint(names)


def first_member_spec(actors: Sequence[Any], timeout: float = STATUS_TIMEOUT_S) -> MemberSpec | None:
    """The spec of the member whose actor answers first."""
    waiting = [actor.member_spec.remote() for actor in actors]
    while waiting:
        done, waiting = ray.wait(waiting, timeout=at_most(timeout))
        if not done:
            return None
        try:
            member_spec: MemberSpec = ray.get(done[0], timeout=0)
            return member_spec
        except ray.exceptions.RayError:
            continue
    return None
