"""The proxies of a cluster from outside: starting them, stopping them.

Each is an actor on one node, named after its cluster and its node, so that two clusters on one Ray do not collide, and
no node gets two of one cluster. It is tied to the node itself, not to a resource: Ray restarts it there, and nowhere
else, and forgets it with the node.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...limits import PROXY_HOST_STOP_S, STOP_TIMEOUT_S
from ..deadline import at_most, wait_for
from ..discovery import actors_gone, collect
from ..naming import NAMESPACE, actor_name, proxy_name
from ..proxy.proxy_actor import ProxyActor, ProxySpec, encode_proxy_spec
from ..proxy.proxy_lookup import proxy_actors
from ..ray_attached import attached
from ..ray_calls import in_time
from ..ray_env import FAST_DEATH
from .spawn import INCARNATION


def start_proxy(spec: ProxySpec, node: str) -> None:
    """Start a proxy on a node, unless there is one of its name, in a process that has run nothing else."""
    environment = {INCARNATION: secrets.token_hex(8)}
    if os.environ.get(FAST_DEATH) != "0":
        environment[FAST_DEATH] = "0"
    with suppress(ray.exceptions.ActorAlreadyExistsError, ValueError):
        actor = ProxyActor.options(
            name=actor_name(spec.cluster_name, spec.name),
            namespace=NAMESPACE,
            lifetime="detached",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": environment},
        )
        in_time(actor.remote, encode_proxy_spec(spec))


def stop_proxies(cluster_name: str, nodes: Iterable[str] | None = None, *, graceful: bool = True) -> None:
    """End the proxies on some nodes (``None``: all), and return when they are gone.

    Args:
        graceful: let them deregister, and let calls end for a moment.
    """
    actors = proxy_actors(cluster_name)
    chosen = {node: actor for node, actor in actors.items() if nodes is None or node in nodes}
    if graceful:
        collect({node: actor.stop.remote() for node, actor in chosen.items()}, at_most(PROXY_HOST_STOP_S + 1))
    for actor in chosen.values():
        in_time(attached(ray.kill), actor, no_restart=True)
    names = [actor_name(cluster_name, proxy_name(node)) for node in chosen]
    wait_for(lambda: actors_gone(names), time.monotonic() + STOP_TIMEOUT_S)
