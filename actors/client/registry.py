"""The hubs of this process: found, shared, opened and closed.

Handles hold a :class:`Share` of a hub; when the last share is gone, the hub closes itself. A forked child starts with
no hub at all, because the threads, locks and sessions of its parent's are not its own: its handles find that their
share was made in another process, and open a new one.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable

import msgspec

from ...errors import ClusterMismatch, ClusterNotFound, Unavailable
from ...limits import CLIENT_MAX_BACKOFF, Settings, decode_settings
from ..protocol import AskStatus, MemberStatus, Reply, Status
from .hub import Hub, Transport, clock

_decode = msgspec.msgpack.Decoder(Reply).decode
_ASK_STATUS = msgspec.msgpack.encode(AskStatus())


class Share:
    """A handle's part in a hub; the hub goes when the last one does."""

    __slots__ = ("__weakref__", "hub")

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        weakref.finalize(self, _abandon, hub).atexit = False


def _abandon(hub: Hub) -> None:
    if hub.process == os.getpid():
        hub.abandon()


_hubs: dict[tuple[str, int], weakref.ref[Share]] = {}
_hubs_lock = threading.Lock()


def _actor_transport(name: str) -> Transport:
    from ..transport.client_calls import ActorTransport  # Ray is loaded only when it is needed
    from ..transport.client_lanes import LaneTransport
    from ..transport.lane_frames import HAS_LANES

    calls = ActorTransport(name)
    return LaneTransport(calls) if HAS_LANES else calls


make_transport: Callable[[str], Transport] = _actor_transport
"""Makes the transport of a hub from the cluster's name."""


def open_hub(name: str, timeout: float, cluster: int | None = None) -> Share:
    """The hub of this process for a cluster, started if need be.

    Args:
        timeout: seconds for finding out about the cluster.
        cluster: the id that the cluster must have; ``None`` takes the one that is there.

    Raises:
        ClusterNotFound: no such cluster, or no Ray, to be found.
        ClusterMismatch: the cluster of that name has another id.
        Unavailable: its members do not answer in time.
    """
    if cluster is not None:
        share = _find(name, cluster)
        if share is not None:
            return share
    transport = make_transport(name)
    near: set[int] = set()
    status = _ask_who(name, transport, timeout, cluster, near)
    with _hubs_lock:
        reference = _hubs.get((name, status.cluster))
        share = reference() if reference is not None else None
        if share is None:
            settings = _settings(status)
            share = Share(Hub(name, status.cluster, transport, leader=status.leader, settings=settings, near=near))
            _hubs[name, status.cluster] = weakref.ref(share)
            # Last in, first out: hubs say goodbye before Ray, imported by now, ends itself.
            atexit.unregister(_close_all)
            atexit.register(_close_all)
        else:
            transport.close()
        return share


def _find(name: str, cluster: int) -> Share | None:
    with _hubs_lock:
        reference = _hubs.get((name, cluster))
        return reference() if reference is not None else None


def _ask_who(name: str, transport: Transport, timeout: float, cluster: int | None, near: set[int]) -> MemberStatus:
    """Ask all members for their status until one that serves answers; those that live on this process's own node are
    added to ``near``, also when they answer later."""
    here = transport.node
    deadline = clock() + timeout
    pause = 0.02
    problem = "no member answers"
    while True:
        answers: queue.SimpleQueue[MemberStatus | Exception | None] = queue.SimpleQueue()

        def answered(answer: bytes | Exception, put: Callable[..., None] = answers.put) -> None:
            status = _status(answer) if isinstance(answer, bytes) else answer
            if isinstance(status, MemberStatus) and status.node and status.node == here:
                near.add(status.member)
            put(status)

        members = transport.members()
        if not members:
            raise ClusterNotFound(f"there is no cluster {name!r}")
        for member in members:
            try:
                transport.send(member, _ASK_STATUS, answered)
            except Exception as error:
                answers.put(error)
        foreign = 0
        for _ in members:
            try:
                status = answers.get(timeout=max(0.0, min(1.0, deadline - clock())))
            except queue.Empty:
                break
            if isinstance(status, Exception):
                problem = f"{type(status).__name__}: {str(status).partition(chr(10))[0]}"
            elif status is None or status.why_not_serving:
                problem = status.why_not_serving if status is not None else "a member answers what cannot be read"
            elif cluster is not None and status.cluster != cluster:
                foreign += 1
                problem = f"cluster {name!r} has the id {status.cluster:#x}, not {cluster:#x}"
            else:
                return status
        if foreign == len(members):
            raise ClusterMismatch(problem)
        if clock() + pause >= deadline:
            raise (ClusterMismatch if foreign else Unavailable)(f"cluster {name!r}: {problem}")
        time.sleep(pause)
        pause = min(CLIENT_MAX_BACKOFF, 2 * pause)
        transport.refresh()


def _status(reply: bytes) -> MemberStatus | None:
    try:
        answer = _decode(reply)
    except msgspec.MsgspecError:
        return None
    return answer.status if isinstance(answer, Status) else None


def _settings(status: MemberStatus) -> Settings:
    """The cluster's settings; the defaults if they cannot be read: members check everything again."""
    try:
        return decode_settings(status.settings) if status.settings else Settings()
    except msgspec.MsgspecError:
        return Settings()


def _close_all() -> None:
    with _hubs_lock:
        shares = [share for reference in _hubs.values() if (share := reference()) is not None]
        _hubs.clear()
    for share in shares:
        if share.hub.process == os.getpid():
            share.hub.close()


def _forget_all() -> None:
    """In a forked child: the hubs' threads, sessions and locks belong to the parent."""
    global _hubs_lock
    _hubs_lock = threading.Lock()
    _hubs.clear()


os.register_at_fork(after_in_child=_forget_all)
