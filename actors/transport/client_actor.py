"""A client's frames by Ray actor calls: the transport that always works, on every Ray and between any two nodes.

Members are detached actors with well-known names. A frame is the argument of their method ``request``, and the reply is
its result. A callback takes the result, so no thread waits for it. Members have ``max_task_retries=0``, so Ray never
repeats a call: the hub does that, and it knows how to do it exactly once.

One thread of the process makes all calls. A frame may be passed in on any thread: a caller's, the hub's timer, or the
one on which Ray delivers results. Over Ray Client (``ray://``) that last one is the only thread that receives anything,
so a call to Ray that waits there would wait forever. With a thread of ours, no deadline depends on how long Ray takes
to accept a frame either. Looking up the members is left to :mod:`directory`.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray

from ...errors import ClusterNotFound
from ...limits import MAX_RAY_CALLS_WAITING
from ...schema.said_by import encode_said, said_by
from ..background import LazyThread
from ..finalizer_guard import ServiceThread
from ..naming import member_name
from ..ray_attached import staying_attached
from ..ray_calls import check_not_forked, in_time
from ..ray_session import join_ray
from ..this_process import this_client
from .client_transport import OnOwnThreads, ReplyReceiver
from .directory import directory
from .lane import LaneOffer


class _Caller:
    """The one thread of this process that makes calls to members."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], ReplyReceiver]] = queue.SimpleQueue()
        self._thread = LazyThread(self._run, "raykeeper-calls")

    def hand_in(self, call: Callable[[], None], failed: ReplyReceiver) -> None:
        """Have ``call`` run soon; ``failed`` is called with the error if it raises.

        Raises:
            BufferError: too many calls wait: Ray does not accept them.
        """
        if self._calls.qsize() >= MAX_RAY_CALLS_WAITING:
            raise BufferError("Ray does not accept any calls")
        self._calls.put((call, failed))
        self._thread.ensure_started()

    def _run(self) -> None:
        thread = ServiceThread()
        while True:
            thread.idle()  # even while it is in Ray, which may take a long time
            call, failed = self._calls.get()
            try:
                call()
            except Exception as error:  # Ray's, of many kinds
                failed(error)
            del call, failed  # they keep a hub alive


_caller = _Caller()


def _in_child() -> None:
    global _caller
    _caller = _Caller()


os.register_at_fork(after_in_child=_in_child)


def _node() -> str:
    with staying_attached():
        node: str = ray.get_runtime_context().get_node_id()
    return node


class ActorTransport(OnOwnThreads):
    """Finds the members of a cluster by their actors' names, and calls them.

    Args:
        name: of the cluster.

    Raises:
        ClusterNotFound: there is no Ray that this process could attach to.
        ForkedProcess: Ray does not work in this process.
        Unavailable: Ray did not answer before the deadline of the present call.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._handles: dict[int, Any] = {}
        join_ray()
        self._said = encode_said(this_client())
        self.node: str = in_time(_node)
        """Id of the Ray node that this process is on (over Ray Client: that its server is on)."""
        self._handles = directory.member_handles(name, fresh=True)

    def members(self) -> dict[int, str]:
        """Names of the members that have an actor, by member id, as last looked up."""
        return {member: member_name(member) for member in self._handles}

    def refresh(self) -> None:
        """Look up which members' actors exist; one lookup serves all hubs of the process.

        Raises:
            ClusterNotFound: this process has left Ray.
        """
        self._handles = directory.member_handles(self._name)

    def valid(self) -> bool:
        """Whether this process is attached to the same Ray as when this was made."""
        check_not_forked()
        try:
            return in_time(_node) == self.node
        except ClusterNotFound:
            return False

    def send(self, member: int, frame: bytes, done: ReplyReceiver) -> None:
        """Call the member's actor; ``done`` runs on Ray's callback thread.

        Raises:
            LookupError: no actor of that member is known.
        """
        self._call(member, "request", frame, done)

    def poll(self, member: int, frame: bytes, done: ReplyReceiver) -> None:
        """Like ``send``, but by the member's method for polls of watches, which has threads of its own."""
        self._call(member, "watch", frame, done)

    def ask_for_lane(self, member: int) -> Future[LaneOffer | None]:
        """Ask a member for a lane; ``None`` if it offers none. May block as long as Ray does."""
        # Over Ray Client this process is on no node, whatever `node` says.
        over_ray_client: bool = ray.util.client.ray.is_connected()  # type: ignore[no-untyped-call]
        node = "" if over_ray_client else self.node
        with staying_attached():
            future: Future[LaneOffer | None] = self._method(member, "lane").remote(node).future()
        return future

    def close(self) -> None:
        """There is nothing to close: the actors are Ray's."""

    def _method(self, member: int, name: str) -> Any:
        handle = self._handles.get(member)
        if handle is None:
            raise LookupError(f"no actor of member {member_name(member)} is known")
        return getattr(handle, name)

    def _call(self, member: int, name: str, frame: bytes, done: ReplyReceiver) -> None:
        """Check here what can fail at once, and make the call on the caller thread; ``done`` gets everything else."""
        check_not_forked()
        if member not in self._handles:
            raise LookupError(f"no actor of member {member_name(member)} is known")

        def finished(future: Future[bytes]) -> None:
            error = future.exception()
            if error is None:
                done(future.result())
            else:
                done(error if isinstance(error, Exception) else RuntimeError(repr(error)))

        _caller.hand_in(lambda: self._send_call(member, name, frame).add_done_callback(finished), done)

    def _send_call(self, member: int, name: str, frame: bytes) -> Future[bytes]:
        """Call the member with a frame; the result is its reply. Every call to a member goes through here."""
        with staying_attached():
            future: Future[bytes] = self._method(member, name).remote(said_by(frame, self._said)).future()
        return future
