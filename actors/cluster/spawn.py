"""Starting the actor of one member: named, detached, and pinned to the node with its data."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import Any

import ray

from ...limits import PIN_AMOUNT
from ..member.member_actor import MemberActor
from ..naming import NAMESPACE, MemberSpec, actor_name, encode_member_spec, member_name
from ..ray_calls import in_time
from ..ray_env import FAST_DEATH

INCARNATION = "RAYKEEPER_INCARNATION"
"""Environment variable whose only use is that it differs, which makes Ray start a new process."""


def start_actor(member_spec: MemberSpec, *, fast_death: bool = False, fresh: bool = True) -> None:
    """Start a member's actor, unless one of its name exists.

    It runs as soon as a node offers its pin, and Ray restarts it whenever one does again.

    Args:
        fast_death: the processes of Ray's nodes have ``FAST_DEATH`` set already.
        fresh: run it in a new process. Ray prefers one that has run tasks, which may have loaded the code from before
            an upgrade.
    """
    assert member_spec.pin, "an actor that is not pinned could start where its data is not"
    assert os.path.isabs(member_spec.folder), member_spec.folder
    assert os.path.basename(member_spec.folder) == member_spec.name == member_name(member_spec.member), member_spec
    environment: dict[str, str] = {}
    if not fast_death and os.environ.get(FAST_DEATH) != "0":
        environment[FAST_DEATH] = "0"
    if fresh:
        environment[INCARNATION] = secrets.token_hex(8)
    options: dict[str, Any] = {"runtime_env": {"env_vars": environment}} if environment else {}
    with suppress(ray.exceptions.ActorAlreadyExistsError):
        actor = MemberActor.options(
            name=actor_name(member_spec.cluster_name, member_spec.name),
            namespace=NAMESPACE,
            lifetime="detached",
            resources={member_spec.pin: PIN_AMOUNT},
            **options,
        )
        in_time(actor.remote, encode_member_spec(member_spec))
