"""The member actors of a cluster, as Ray lists them, and questions to all of them at once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import ray

from ..errors import ClusterNotFound, RequestTimeout
from ..limits import POLL_PAUSE_S, STATUS_TIMEOUT_S
from ..schema.frames import MemberStatus
from .deadline import at_most, time_left
from .naming import NAMESPACE, actor_name
from .ray_attached import attached
from .ray_calls import check_not_forked, in_time

K = TypeVar("K")

_MEMBER = re.compile(r"m([1-9][0-9]*)")


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


def settled_statuses(handles: dict[int, Any], timeout: float) -> dict[int, MemberStatus]:
    """The status of each member that answers, once none is still opening its data, or at the timeout."""
    deadline = time.monotonic() + timeout
    while True:
        statuses: dict[int, MemberStatus] = ask_all(handles, "status")
        if all(status.role != "starting" for status in statuses.values()) or time.monotonic() >= deadline:
            return statuses
        pause_between_checks(POLL_PAUSE_S)


def wait_for(condition: Callable[[], bool], deadline: float) -> bool:
    """Wait until the condition holds; False if it does not before ``deadline`` (by ``time.monotonic``)."""
    while not condition():
        if time.monotonic() >= deadline:
            return False
        pause_between_checks(POLL_PAUSE_S)
    return True


def pause_between_checks(seconds: float) -> None:
    """Wait before a condition is checked again.

    Raises:
        RequestTimeout: the deadline of the current call has passed: there is no further check.
    """
    if not time_left():
        raise RequestTimeout("the time for this call is over; what it has started may still take effect", applied=None)
    time.sleep(at_most(seconds))


def actors_gone(names: Iterable[str]) -> bool:
    """Whether no actor of these names remains in the namespace."""
    actors = in_time(attached(ray.util.list_named_actors), all_namespaces=True)
    listed = {actor["name"] for actor in actors if actor["namespace"] == NAMESPACE}
    return listed.isdisjoint(names)
