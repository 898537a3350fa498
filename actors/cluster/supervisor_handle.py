"""A cluster's supervisor from outside: starting it, asking it, stopping it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import msgspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...limits import STATUS_TIMEOUT_S, STOP_TIMEOUT_S
from ..deadline import at_most, wait_for
from ..discovery import actors_gone, supervisor_actor
from ..naming import NAMESPACE, SUPERVISOR, actor_name
from ..ray_attached import attached
from ..ray_calls import in_time
from . import supervisor_actor as supervisor_actor_module
from .supervisor_spec import SupervisorSpec, decode_supervisor_spec, encode_supervisor_spec


def supervisor_name(cluster_name: str) -> str:
    """The name of a cluster's supervisor in ``NAMESPACE``."""
    return actor_name(cluster_name, SUPERVISOR)


def ask_supervisor(cluster_name: str, method: str, timeout: float = STATUS_TIMEOUT_S) -> Any:
    """The answer of a cluster's supervisor; ``None`` if there is none, or it does not answer in time."""
    with suppress(ray.exceptions.RayError, TimeoutError):
        actor = supervisor_actor(cluster_name)
        return None if actor is None else ray.get(getattr(actor, method).remote(), timeout=at_most(timeout))
    return None


def start_supervisor(spec: SupervisorSpec, near: str = "") -> None:
    """Start a cluster's supervisor, if there is none. One with another spec, perhaps left by an earlier cluster of the
    same name, is replaced.

    Args:
        near: id of a node to start it on if possible: one that certainly can load it. It may run on any node.
    """
    if _start(spec, near):
        return
    with suppress(ray.exceptions.RayError, TimeoutError):
        actor = supervisor_actor(spec.cluster_name)
        if actor is not None:
            there = decode_supervisor_spec(ray.get(actor.supervisor_spec.remote(), timeout=at_most(STATUS_TIMEOUT_S)))
            if msgspec.structs.replace(there, members=spec.members) == spec:
                return
        stop_supervisor(spec.cluster_name)
        _start(spec, near)


def actor_class() -> type:
    """The class of the actor; from now on it is sent by value."""
    by_value: Any = ray.cloudpickle.register_pickle_by_value  # which has no types
    by_value(supervisor_actor_module)
    return supervisor_actor_module.SupervisorActor


def _start(spec: SupervisorSpec, near: str) -> bool:
    """Create the actor; False if one of its name exists. It is detached and restarted without limit, because nothing
    else would start it again."""
    actor: Any = ray.remote(actor_class())
    where = {"scheduling_strategy": NodeAffinitySchedulingStrategy(near, soft=True)} if near else {}
    try:
        options = actor.options(
            name=supervisor_name(spec.cluster_name),
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=8,
            **where,
        )
        in_time(options.remote, encode_supervisor_spec(spec))
    except (ray.exceptions.ActorAlreadyExistsError, ValueError):
        return False
    return True


def stop_supervisor(cluster_name: str) -> bool:
    """End a cluster's supervisor for good, and return when it is gone; False if there was none."""
    name = supervisor_name(cluster_name)
    try:
        actor = in_time(attached(ray.get_actor), name, namespace=NAMESPACE)
    except ValueError:
        return False
    with suppress(ray.exceptions.RayError, TimeoutError):
        ray.get(actor.stop.remote(), timeout=at_most(STATUS_TIMEOUT_S))
    in_time(attached(ray.kill), actor, no_restart=True)
    wait_for(lambda: actors_gone([name]), time.monotonic() + STOP_TIMEOUT_S)
    return True
