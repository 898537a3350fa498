"""The proxies of a cluster, as Ray lists their actors, and as they tell their status."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray

from ...limits import STATUS_TIMEOUT_S
from ..discovery import collect, listed_actors
from ..naming import NAMESPACE, actor_name
from ..ray_attached import attached
from ..ray_calls import in_time

if TYPE_CHECKING:
    from .proxy_actor import ProxyStatus

_PROXY = re.compile(r"proxy-([0-9a-f]+)")


def proxy_actors(cluster_name: str) -> dict[str, Any]:
    """Handles of the proxies that Ray lists, in any state, by the id of the node."""
    found = {}
    for name in listed_actors(cluster_name):
        match = _PROXY.fullmatch(name)
        if match is not None:
            with suppress(ValueError):  # gone since it was listed
                found[match[1]] = in_time(attached(ray.get_actor), actor_name(cluster_name, name), namespace=NAMESPACE)
    return found


def proxy_statuses(actors: Mapping[str, Any], timeout: float = STATUS_TIMEOUT_S) -> dict[str, ProxyStatus | None]:
    """The status of each proxy, by node; ``None`` if it does not answer."""
    answers: dict[str, Any] = collect({node: actor.status.remote() for node, actor in actors.items()}, timeout)
    return {node: answers.get(node) for node in actors}
