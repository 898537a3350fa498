"""A client's frames over Ray actor calls: the way that always works, on every Ray and between any two nodes.

Members are detached actors with well-known names; a frame is the argument of their method ``request``, the reply its
result. Results are taken by a callback, so no thread waits for any of them. ``max_task_retries=0`` on the members means
that Ray never repeats a call: repeating is the hub's business, which knows how to do it exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray

from ..ray_session import join_ray
from ..roster import member_actors
from ..seat import member_name
from .lane_frames import LaneOffer


class ActorTransport:
    """Finds the members of a cluster by their actors' names, and calls them.

    Args:
        name: of the cluster.

    Raises:
        ClusterNotFound: no Ray runs that this process could attach to.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._handles: dict[int, Any] = {}
        join_ray()
        self.refresh()

    @property
    def node(self) -> str:
        """The Ray node that this process is on."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def members(self) -> dict[int, str]:
        """Names of the members that have an actor, by member id, as last looked up."""
        return {member: member_name(member) for member in self._handles}

    def refresh(self) -> None:
        """Look up which members' actors there are.

        Raises:
            ClusterNotFound: this process has left Ray.
        """
        self._handles = member_actors(self._name)

    def send(self, member: int, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
        """Call the member's actor; ``done`` runs on Ray's callback thread.

        Raises:
            LookupError: no actor of that member is known.
        """
        self._call(member, "request", frame, done)

    def poll(self, member: int, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
        """Call the member's method for polls of watches, which has threads of its own to wait on; else as ``send``."""
        self._call(member, "watch", frame, done)

    def offer(self, member: int) -> Future[LaneOffer | None]:
        """Ask a member for a lane; it has none to offer where there are to be none."""
        future: Future[LaneOffer | None] = self._method(member, "lane").remote().future()
        return future

    def close(self) -> None:
        """There is nothing to close: the actors are Ray's."""

    def _method(self, member: int, name: str) -> Any:
        handle = self._handles.get(member)
        if handle is None:
            raise LookupError(f"no actor of member {member_name(member)} is known")
        if not ray.is_initialized():  # or the call would start a Ray of its own
            raise LookupError("this process has left Ray")
        return getattr(handle, name)

    def _call(self, member: int, name: str, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
        def finished(future: Future[bytes]) -> None:
            error = future.exception()
            if error is None:
                done(future.result())
            else:
                done(error if isinstance(error, Exception) else RuntimeError(repr(error)))

        self._bring(member, name, frame).add_done_callback(finished)

    def _bring(self, member: int, name: str, frame: bytes) -> Future[bytes]:
        """Have a member take a frame; the result is its reply. All that leaves for a member leaves here."""
        future: Future[bytes] = self._method(member, name).remote(frame).future()
        return future
