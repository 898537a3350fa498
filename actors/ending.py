"""Giving a cluster up on purpose: its actors, its data and its markers, on every node that can be reached.

What is deleted is of one cluster id; data of another one under the same name is not touched. Where a node was away, the
others keep a marker that says that the cluster is destroyed, so that what is left there counts for nothing when the
node comes back (``recovery.py``), and does not hold up a new cluster of that name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from ..errors import ClusterMismatch, ClusterNotFound
from ..limits import STOP_TIMEOUT, SURVEY_TIMEOUT
from . import sites
from .evidence import newest_marker
from .markers import Marker
from .placement import Node, PackageMissing, alive_nodes, run_where_possible
from .ray_calls import in_time
from .roster import ask_all, gone, listed_actors, member_actors, wait_for
from .seat import Seat, actor_name, member_name
from .sites import Site
from .supervisor import Charge, ask_supervisor, decode_charge, stop_supervisor


def stop_members(cluster_name: str) -> None:
    """Stop the supervisor and all members of a cluster, for good; also those that wait for a node to come back."""
    stop_supervisor(cluster_name)
    actors = member_actors(cluster_name)
    ask_all(actors, "stop", timeout=STOP_TIMEOUT)
    for actor in actors.values():
        in_time(ray.kill, actor, no_restart=True)
    names = [actor_name(cluster_name, member_name(member)) for member in actors]
    wait_for(lambda: gone(names), time.monotonic() + STOP_TIMEOUT)


def delete_data(cluster_name: str, cluster: int, data_dir: str) -> None:
    """Delete data and markers of one cluster id on every node that is alive; its members must be stopped.

    Raises:
        Unavailable: a node did not answer, or a process there still holds the data. The others are done.
    """
    nodes = {node.id: node for node in alive_nodes()}
    answers = _ask(nodes, cluster_name, data_dir)
    found = {id: site for id, site in answers.items() if isinstance(site, Site)}
    silent = any(not isinstance(answer, (Site, PackageMissing)) for answer in answers.values())
    remains = _remains(nodes, found, cluster_name, cluster, silent)
    arguments = (data_dir, cluster_name, cluster, STOP_TIMEOUT, remains)
    results = run_where_possible(nodes, sites.clear_all, dict.fromkeys(nodes, arguments), SURVEY_TIMEOUT)
    for result in results.values():
        # On a node that cannot load the package no member has lived.
        if isinstance(result, Exception) and not isinstance(result, PackageMissing):
            raise result


def discard(cluster_name: str, cluster: int | None, data_dir: str) -> int:
    """Give up a cluster that nobody can bring back, or what is left of one: see ``raykeeper.discard``."""
    nodes = {node.id: node for node in alive_nodes()}
    answers = _ask(nodes, cluster_name, data_dir)
    for answer in answers.values():
        if not isinstance(answer, (Site, PackageMissing)):
            raise answer
    found = {id: site for id, site in answers.items() if isinstance(site, Site)}
    running = _running(cluster_name)
    destroyed = {marker.cluster for site in found.values() for marker in site.markers if marker.destroyed}
    ids = set().union(*(site.ids() for site in found.values()), running) - (destroyed if cluster is None else set())
    listed = listed_actors(cluster_name)
    if cluster is None:
        if len(ids) > 1:
            found_ids = ", ".join(f"{id:x}" for id in sorted(ids))
            raise ClusterMismatch(
                f"there are traces of {len(ids)} clusters of the name {cluster_name}: say which by its id: {found_ids}"
            )
        cluster = next(iter(ids), 0)
    # Neither actors that wait for a node nor data that cannot be read say of which cluster they are.
    waiting = bool(listed) and not running
    damaged = any(place.damage for site in found.values() for place in site.found)
    known = ids - destroyed
    if cluster not in ids and (known or not waiting) and not (damaged and not cluster):
        raise ClusterNotFound(
            f"nothing of cluster {cluster_name}" + (f" (id {cluster:x})" if cluster else "") + " was found in its "
            f"folder in {data_dir} on the Ray nodes that are alive, nor does Ray list an actor of it"
            + (f"; there are traces of {', '.join(f'id {id:x}' for id in sorted(known))}" if known else "")
        )
    # Actors that do not answer are of the one cluster that there are traces of, if there are such.
    if running == {cluster} or (waiting and known <= {cluster} and cluster not in destroyed):
        stop_members(cluster_name)
    if cluster or damaged:
        delete_data(cluster_name, cluster, data_dir)
    return cluster


def _running(cluster_name: str) -> set[int]:
    """Ids of the clusters whose members or supervisor answer."""
    seats: dict[int, Seat] = ask_all(member_actors(cluster_name), "seat")
    running = {seat.cluster for seat in seats.values()}
    charge: Any = ask_supervisor(cluster_name, "charge")
    if isinstance(charge, bytes):
        charged: Charge = decode_charge(charge)
        running.add(charged.cluster)
    return running


def _ask(nodes: dict[str, Node], cluster_name: str, data_dir: str) -> dict[str, Any]:
    """What each node holds under a name, or why it does not say."""
    return run_where_possible(nodes, sites.survey, dict.fromkeys(nodes, (data_dir, cluster_name)), SURVEY_TIMEOUT)


def _remains(
    nodes: dict[str, Node], found: dict[str, Site], cluster_name: str, cluster: int, silent: bool
) -> Marker | None:
    """The marker of a destroyed cluster, if a node that is away may hold something of it: one where a member was last
    (those it names), one that is ``silent``, or any that Ray misses."""
    addresses = {node.address for node in nodes.values()}
    newest = newest_marker([each for site in found.values() for each in site.markers if each.cluster == cluster])
    pins = {pin for node in nodes.values() for pin in node.resources}
    known = newest.members if newest is not None else ()
    members = tuple(member for member in known if member.address not in addresses and member.pin not in pins)
    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    missed = silent or any(node["NodeManagerAddress"] not in addresses for node in in_time(list_nodes))
    if not cluster or (not members and not missed):
        return None
    return Marker(cluster_name, cluster, members, 0 if newest is None else newest.version + 1, destroyed=True)
