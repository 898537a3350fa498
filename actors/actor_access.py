"""Access to a cluster's members by calls of their actors (``MemberAccess``), and the cluster's own token from them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import ray

from ..errors import KeeperError, Unavailable
from ..limits import ADMINISTRATION_CALL_TIMEOUT_S, STATUS_TIMEOUT_S
from ..schema.operator_frames import MemberStatus
from .deadline import at_most
from .discovery import ask_all, member_actors


class ActorAccess:
    """See ``MemberAccess``.

    Args:
        cluster_name: the cluster's.
    """

    def __init__(self, cluster_name: str) -> None:
        self._cluster_name = cluster_name
        self._actors: dict[int, Any] = {}

    def members(self) -> Mapping[int, Any]:
        """See ``MemberAccess``."""
        self._actors = member_actors(self._cluster_name)
        return self._actors

    def ask(self, frames: Mapping[int, bytes], patience: float) -> Iterator[tuple[int, bytes]]:
        """See ``MemberAccess``."""
        until = time.monotonic() + patience
        asked = {self._actors[member].request.remote(frame): member for member, frame in frames.items()}
        waiting = list(asked)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, until - time.monotonic()))
            if not done:
                return
            for reference in done:
                with suppress(ray.exceptions.RayError, TimeoutError):
                    yield asked[reference], ray.get(reference, timeout=0)

    def statuses(self, members: Mapping[int, Any], patience: float) -> dict[int, MemberStatus]:
        """See ``MemberAccess``. Members have threads of their own for this call, however many clients ask them."""
        return ask_all(dict(members), "status", timeout=patience)

    def move_leader(self, leader: int, target: int) -> bool:
        """See ``MemberAccess``."""
        try:
            ray.get(self._actors[leader].move_leader.remote(target), timeout=at_most(STATUS_TIMEOUT_S))
        except (KeeperError, ray.exceptions.RayError, TimeoutError):
            return False
        return True


def as_the_cluster(member: Any) -> bytes:
    """The token of the cluster itself: of its supervisor. Any process that may call the members' actors gets one: it
    can run code as the members' operating system user anyway.

    Raises:
        Unavailable: the member does not answer.
    """
    try:
        token: bytes = ray.get(member.own_token.remote(), timeout=at_most(ADMINISTRATION_CALL_TIMEOUT_S))
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise Unavailable(f"a member does not answer: {error}", applied=False) from None
    return token


def cluster_token(cluster_name: str) -> bytes:
    """A token of the cluster itself, from any member; empty if users are not needed.

    Raises:
        Unavailable: no member answers.
    """
    for member in member_actors(cluster_name).values():
        with suppress(Unavailable):
            return as_the_cluster(member)
    raise Unavailable(f"no member of {cluster_name} answers", applied=False)
