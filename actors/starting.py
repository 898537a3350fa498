"""Starting the actor of one member: named, detached, and pinned to where its data lies."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import Any

import ray

from ..limits import PIN_AMOUNT
from .member import MemberActor
from .ray_calls import in_time
from .seat import NAMESPACE, Seat, actor_name, encode_seat
from .sites import FAST_DEATH

INCARNATION = "RAYKEEPER_INCARNATION"
"""Environment variable that tells processes apart, and nothing else."""


def start_actor(seat: Seat, *, fast_death: bool = False, fresh: bool = True) -> None:
    """Start a member's actor, if there is none of its name; whoever is first wins.

    It runs as soon as a node offers its pin, and whenever one does again.

    Args:
        fast_death: the processes of Ray's nodes have ``FAST_DEATH`` set by themselves.
        fresh: in a process that has loaded no code yet: Ray likes to take one that has run tasks, perhaps with the code
            of before an upgrade.
    """
    environment: dict[str, str] = {}
    if not fast_death and os.environ.get(FAST_DEATH) != "0":
        environment[FAST_DEATH] = "0"
    if fresh:
        environment[INCARNATION] = secrets.token_hex(8)
    options: dict[str, Any] = {"runtime_env": {"env_vars": environment}} if environment else {}
    with suppress(ray.exceptions.ActorAlreadyExistsError):
        actor = MemberActor.options(
            name=actor_name(seat.cluster_name, seat.name),
            namespace=NAMESPACE,
            lifetime="detached",
            resources={seat.pin: PIN_AMOUNT},
            **options,
        )
        in_time(actor.remote, encode_seat(seat))
