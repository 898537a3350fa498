"""Giving a cluster up on purpose: its actors, its data and its markers, on every node that can be reached.

Only what belongs to one cluster id is deleted; data of another under the same name is not touched. If a node is away,
the others keep a marker that says that the cluster is destroyed. What is left on that node then counts for nothing when
it comes back (``launch_rule.py``), and does not prevent a new cluster of that name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from ...errors import ClusterMismatch, ClusterNotFound, Unavailable
from ...limits import STOP_TIMEOUT_S, SURVEY_TIMEOUT_S
from ..deadline import wait_for
from ..discovery import actors_gone, alive_nodes, ask_all, listed_actors, member_actors
from ..naming import MemberSpec, actor_name, member_name
from ..ray_attached import attached
from ..ray_calls import in_time
from ..ray_view import RayNode
from . import node_storage
from .evidence import newest_marker
from .markers import Marker
from .node_storage import NodeInventory
from .proxy_handle import stop_proxies
from .ray_nodes import PackageMissing, run_where_possible
from .supervisor_handle import ask_supervisor, stop_supervisor
from .supervisor_spec import SupervisorSpec, decode_supervisor_spec


class _CannotList(Unavailable):
    """A node that has answered, and whose disk refuses to tell what it holds."""


def stop_members(cluster_name: str) -> None:
    """Stop the supervisor, the proxies and all members of a cluster for good, even those that wait for a node to come
    back. Proxies go before the members, so that they can deregister and their calls can end."""
    stop_supervisor(cluster_name)
    stop_proxies(cluster_name)
    actors = member_actors(cluster_name)
    ask_all(actors, "stop", timeout=STOP_TIMEOUT_S)
    for actor in actors.values():
        in_time(attached(ray.kill), actor, no_restart=True)
    names = [actor_name(cluster_name, member_name(member)) for member in actors]
    wait_for(lambda: actors_gone(names), time.monotonic() + STOP_TIMEOUT_S)


def delete_data(cluster_name: str, cluster: int, data_dir: str) -> None:
    """Delete data and markers of one cluster id on every node that is alive; its members must be stopped.

    Raises:
        Unavailable: a node did not answer, or a process there still holds the data. It is deleted on the others.
        UnusableFolder: the same if the disk of a node refuses to be read or written.
    """
    for error in _delete_data(cluster_name, cluster, data_dir).values():
        raise error


def _delete_data(cluster_name: str, cluster: int, data_dir: str) -> dict[str, Exception]:
    """As ``delete_data``, but returns the errors, by node."""
    nodes = {node.id: node for node in alive_nodes()}
    answers = _ask(nodes, cluster_name, data_dir)
    found = {id: inventory for id, inventory in answers.items() if isinstance(inventory, NodeInventory)}
    silent = any(not isinstance(answer, (NodeInventory, PackageMissing)) for answer in answers.values())
    remains = _remains(nodes, found, cluster_name, cluster, silent)
    arguments = (data_dir, cluster_name, cluster, STOP_TIMEOUT_S, remains)
    results = run_where_possible(nodes, node_storage.delete_cluster, dict.fromkeys(nodes, arguments), SURVEY_TIMEOUT_S)
    # No member has lived on a node that cannot load the package.
    return {
        id: result
        for id, result in results.items()
        if isinstance(result, Exception) and not isinstance(result, PackageMissing)
    }


def discard(cluster_name: str, cluster: int | None, data_dir: str) -> int:
    """Give up a cluster that cannot be brought back, or what is left of one: see ``raykeeper.discard``.

    What runs under the name is stopped only if it is certainly of the id that is given up. A node that answers and
    cannot list its folder keeps nothing of a cluster that is named by its id, and of which there are traces elsewhere,
    from being given up on the other nodes: its disk may be why there is no majority. What is left there counts for
    nothing (``_remains``), and is said in the end.
    """
    nodes = {node.id: node for node in alive_nodes()}
    answers = _ask(nodes, cluster_name, data_dir)
    refused = {id: answer for id, answer in answers.items() if isinstance(answer, _CannotList)}
    for id, answer in answers.items():
        if not isinstance(answer, (NodeInventory, PackageMissing)) and (cluster is None or id not in refused):
            raise answer
    found = {id: inventory for id, inventory in answers.items() if isinstance(inventory, NodeInventory)}
    running = _running(cluster_name)
    destroyed = {marker.cluster for inventory in found.values() for marker in inventory.markers if marker.destroyed}
    ids = set().union(*(inventory.ids() for inventory in found.values()), running) - (
        destroyed if cluster is None else set()
    )
    listed = listed_actors(cluster_name)
    if cluster is None:
        if len(ids) > 1:
            found_ids = ", ".join(f"{id:x}" for id in sorted(ids))
            raise ClusterMismatch(
                f"there are traces of {len(ids)} clusters named {cluster_name}: say which by its id: {found_ids}"
            )
        cluster = next(iter(ids), 0)
    # Neither actors that wait for a node nor unreadable data tell which cluster they belong to.
    waiting = bool(listed) and not running
    damaged = any(place.damage for inventory in found.values() for place in inventory.found)
    known = ids - destroyed
    if refused and cluster not in ids:
        raise next(iter(refused.values()))
    if cluster not in ids and (known or not waiting) and not (damaged and not cluster):
        raise ClusterNotFound(
            f"nothing of cluster {cluster_name}" + (f" (id {cluster:x})" if cluster else "") + " was found in its "
            f"folder in {data_dir} on the Ray nodes that are alive, nor does Ray list an actor of it"
            + (f"; there are traces of {', '.join(f'id {id:x}' for id in sorted(known))}" if known else "")
        )
    # Actors that do not answer belong to the one cluster that left traces, if there is one.
    if running == {cluster} or (waiting and known <= {cluster} and cluster not in destroyed):
        stop_members(cluster_name)
    if cluster or damaged:
        failed = _delete_data(cluster_name, cluster, data_dir)
        for id, error in failed.items():
            if id not in refused:
                raise error
        for id in failed:
            raise Unavailable(f"{refused[id]}. On the other nodes cluster {cluster_name} (id {cluster:x}) was given up")
    return cluster


def _running(cluster_name: str) -> set[int]:
    """Ids of the clusters whose members or supervisor answer."""
    member_specs: dict[int, MemberSpec] = ask_all(member_actors(cluster_name), "member_spec")
    running = {member_spec.cluster for member_spec in member_specs.values()}
    encoded: Any = ask_supervisor(cluster_name, "supervisor_spec")
    if isinstance(encoded, bytes):
        spec: SupervisorSpec = decode_supervisor_spec(encoded)
        running.add(spec.cluster)
    return running


def _ask(nodes: dict[str, RayNode], cluster_name: str, data_dir: str) -> dict[str, Any]:
    """What each node holds under a name, or the error for one that does not say."""
    asked = dict.fromkeys(nodes, (data_dir, cluster_name))
    answers = run_where_possible(nodes, node_storage.survey, asked, SURVEY_TIMEOUT_S)
    for id, answer in answers.items():
        if isinstance(answer, NodeInventory) and answer.problem:
            answers[id] = _CannotList(f"Ray node {nodes[id].address} cannot tell what it holds: {answer.problem}")
    return answers


def _remains(
    nodes: dict[str, RayNode], found: dict[str, NodeInventory], cluster_name: str, cluster: int, silent: bool
) -> Marker | None:
    """The marker of a destroyed cluster, if a node that is away may hold something of it: one where a member was last
    (the marker names those), one that did not answer (``silent``), or any that Ray misses. ``None`` otherwise."""
    addresses = {node.address for node in nodes.values()}
    newest = newest_marker(
        [each for inventory in found.values() for each in inventory.markers if each.cluster == cluster]
    )
    pins = {pin for node in nodes.values() for pin in node.resources}
    known = newest.members if newest is not None else ()
    members = tuple(member for member in known if member.address not in addresses and member.pin not in pins)
    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    missed = silent or any(node["NodeManagerAddress"] not in addresses for node in in_time(attached(list_nodes)))
    if not cluster or (not members and not missed):
        return None
    return Marker(cluster_name, cluster, members, 0 if newest is None else newest.version + 1, destroyed=True)
