"""A client's frames over Ray actor calls: the way that always works, on every Ray and between any two nodes.

Members are detached actors with well-known names; a frame is the argument of their method ``request``, the reply its
result. Results are taken by a callback, so no thread waits for any of them. ``max_task_retries=0`` on the members means
that Ray never repeats a call: repeating is the hub's business, which knows how to do it exactly once.

**Who calls Ray.** A frame may be handed in on any thread: a caller's, the hub's timer, or the one on which Ray itself
delivers results. Over Ray Client (``ray://``) the last of these is the only thread that takes anything in, so whoever
asks Ray for something there waits for itself, for ever. So all frames of a process leave by one thread of ours, and no
deadline depends on how long Ray takes to accept one. That Ray tells who the members are is :mod:`directory`'s part.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray

from ...limits import MAX_RAY_CALLS_WAITING
from ..client.undisturbed import OurThread
from ..ray_calls import check_not_forked, in_time
from ..ray_session import join_ray
from ..seat import member_name
from .directory import directory
from .lane_frames import LaneOffer

Done = Callable[[bytes | Exception], None]


class _Caller:
    """The one thread of this process that hands frames to Ray."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Done]] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._started = False

    def hand_in(self, call: Callable[[], None], failed: Done) -> None:
        """Have ``call`` run soon; ``failed`` is told if it raises.

        Raises:
            BufferError: too many wait: Ray does not take them.
        """
        if self._calls.qsize() >= MAX_RAY_CALLS_WAITING:
            raise BufferError("Ray does not take any calls")
        self._calls.put((call, failed))
        if not self._started:
            with self._starting:
                if not self._started:
                    threading.Thread(target=self._run, name="raykeeper-calls", daemon=True).start()
                    self._started = True

    def _run(self) -> None:
        thread = OurThread()
        while True:
            thread.rest()  # while it is in Ray, too, where it may stay for long
            call, failed = self._calls.get()
            try:
                call()
            except Exception as error:  # Ray's, of many kinds
                failed(error)
            del call, failed  # they keep a hub


_caller = _Caller()


def _in_child() -> None:
    global _caller
    _caller = _Caller()


os.register_at_fork(after_in_child=_in_child)


def _node() -> str:
    node: str = ray.get_runtime_context().get_node_id()
    return node


class ActorTransport:
    """Finds the members of a cluster by their actors' names, and calls them.

    Args:
        name: of the cluster.

    Raises:
        ClusterNotFound: no Ray runs that this process could attach to.
        ForkedProcess: Ray does not work in this process.
        Unavailable: Ray did not answer before the deadline of what runs here.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._handles: dict[int, Any] = {}
        join_ray()
        self.node: str = in_time(_node)
        """Id of the Ray node that this process is on (over Ray Client: that its server is on)."""
        self._handles = directory.look(name, fresh=True)

    def members(self) -> dict[int, str]:
        """Names of the members that have an actor, by member id, as last looked up."""
        return {member: member_name(member) for member in self._handles}

    def refresh(self) -> None:
        """Look up which members' actors there are; one look serves all hubs of the process.

        Raises:
            ClusterNotFound: this process has left Ray.
        """
        self._handles = directory.look(self._name)

    def valid(self) -> bool:
        """Whether this process is attached to the same Ray as when this was made."""
        check_not_forked()
        return ray.is_initialized() and in_time(_node) == self.node

    def send(self, member: int, frame: bytes, done: Done) -> None:
        """Call the member's actor; ``done`` runs on Ray's callback thread.

        Raises:
            LookupError: no actor of that member is known.
        """
        self._call(member, "request", frame, done)

    def poll(self, member: int, frame: bytes, done: Done) -> None:
        """Call the member's method for polls of watches, which has threads of its own to wait on; else as ``send``."""
        self._call(member, "watch", frame, done)

    def offer(self, member: int) -> Future[LaneOffer | None]:
        """Ask a member for a lane; it has none to offer where there are to be none. May block as long as Ray does."""
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

    def _call(self, member: int, name: str, frame: bytes, done: Done) -> None:
        check_not_forked()
        if member not in self._handles:
            raise LookupError(f"no actor of member {member_name(member)} is known")

        def finished(future: Future[bytes]) -> None:
            error = future.exception()
            if error is None:
                done(future.result())
            else:
                done(error if isinstance(error, Exception) else RuntimeError(repr(error)))

        _caller.hand_in(lambda: self._bring(member, name, frame).add_done_callback(finished), done)

    def _bring(self, member: int, name: str, frame: bytes) -> Future[bytes]:
        """Have a member take a frame; the result is its reply. All that leaves for a member leaves here."""
        future: Future[bytes] = self._method(member, name).remote(frame).future()
        return future
