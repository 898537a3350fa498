"""Starting the actor of one member: named, detached, and pinned to where its data lies."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import ray

from ..limits import PIN_AMOUNT
from .member import MemberActor
from .seat import NAMESPACE, Seat, actor_name, encode_seat
from .sites import FAST_DEATH


def start_actor(seat: Seat, *, fast_death: bool = False) -> None:
    """Start a member's actor, if there is none of its name; whoever is first wins.

    It runs as soon as a node offers its pin, and whenever one does again.

    Args:
        fast_death: the processes of Ray's nodes have ``FAST_DEATH`` set by themselves.
    """
    options: dict[str, Any] = {}
    if not fast_death and os.environ.get(FAST_DEATH) != "0":
        options["runtime_env"] = {"env_vars": {FAST_DEATH: "0"}}
    with suppress(ray.exceptions.ActorAlreadyExistsError):
        MemberActor.options(
            name=actor_name(seat.cluster_name, seat.name),
            namespace=NAMESPACE,
            lifetime="detached",
            resources={seat.pin: PIN_AMOUNT},
            **options,
        ).remote(encode_seat(seat))
