"""The hubs of this process: found, shared, opened and closed.

Handles hold a :class:`Share` of a hub. When the last share is gone the hub stays for a while, idle, for the next
handle: Ray runs one task after another in a worker, each with handles of its own, and a session for each would cost
more than what the tasks do. Then it closes itself; at the end of the process all do.

A process opens one hub of a cluster at a time: who asks for it meanwhile (a thousand threads or coroutines may, with a
handle that was just unpickled) waits for that one, no longer than its own deadline.

A forked child starts with no hub at all, because the threads, locks and sessions of its parent's are not its own: its
handles find that their share was made in another process, and would open a new one, if Ray worked there.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import msgspec

from ...errors import ClusterMismatch, ClusterNotFound, KeeperError, Unavailable
from ...limits import (
    CLIENT_BACKOFF,
    CLIENT_BACKOFF_SHARE,
    CLIENT_MAX_BACKOFF,
    CLIENT_MAX_REFRESH_INTERVAL,
    CLIENT_REFRESH_INTERVAL,
    HUB_LINGER,
    MAX_IDLE_HUBS,
    Settings,
    decode_settings,
)
from ..protocol import AskStatus, MemberStatus, Reply, Status
from . import undisturbed
from .deadline import covering, time_left
from .hub import Hub, Transport

_random = random.SystemRandom()
_decode = msgspec.msgpack.Decoder(Reply).decode
_ASK_STATUS = msgspec.msgpack.encode(AskStatus())


class Share:
    """A handle's part in a hub; the hub is idle once the last one is gone."""

    __slots__ = ("__weakref__", "hub")

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        weakref.finalize(self, _let_go, hub).atexit = False


def _let_go(hub: Hub) -> None:
    if hub.process == os.getpid():
        hub.let_go()


class _Entry:
    """A hub of this process, and the share that its handles have together, while there are any."""

    def __init__(self, hub: Hub, share: Share) -> None:
        self.hub = hub
        self.share = weakref.ref(share)


class _Opening:
    """Held by whoever looks for a cluster of one name. The same thread may do so twice: a signal's handler might."""

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()


_hubs: dict[tuple[str, int], _Entry] = {}
_openings: weakref.WeakValueDictionary[str, _Opening] = weakref.WeakValueDictionary()
_hubs_lock = threading.RLock()
linger = HUB_LINGER
"""Seconds that an idle hub stays."""


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
        timeout: seconds for all that this does.
        cluster: the id that the cluster must have; ``None`` takes the one that is there.

    Raises:
        ClusterNotFound: no such cluster, or no Ray, to be found.
        ClusterMismatch: the cluster of that name has another id.
        ForkedProcess: Ray does not work in this process.
        Unavailable: its members, or Ray, do not answer in time.
    """
    if cluster is not None:
        share = _find(name, cluster)
        if share is not None:
            return share
    with covering(timeout):
        try:
            with _one_at_a_time(name):
                return _open_hub(name, cluster)
        except KeeperError as error:
            error.applied = False  # nothing was asked of the cluster yet
            raise


@contextlib.contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    with undisturbed.here, _hubs_lock:
        opening = _openings.get(name)
        if opening is None:
            _openings[name] = opening = _Opening()
    if not opening.lock.acquire(timeout=min(time_left(), threading.TIMEOUT_MAX)):
        raise Unavailable(f"no member of cluster {name} has answered this process in time")
    try:
        yield
    finally:
        opening.lock.release()


def _open_hub(name: str, cluster: int | None) -> Share:
    near: set[int] = set()
    if cluster is not None and (share := _find(name, cluster)) is not None:
        return share  # somebody else has opened it meanwhile
    share = _find_by_name(name) if cluster is None else None
    if share is not None:
        with contextlib.suppress(KeeperError), covering(CLIENT_REFRESH_INTERVAL):  # else look anew
            if _ask_who(name, share.hub.transport, None, set()).cluster == share.hub.cluster:
                return share
    transport = make_transport(name)
    status = _ask_who(name, transport, cluster, near)
    share = _find(name, status.cluster)
    if share is not None:
        transport.close()
        return share
    with undisturbed.here, _hubs_lock:
        entry = _hubs.get((name, status.cluster))
        share = entry.share() if entry is not None else None
        if share is not None:  # somebody else was faster just now
            transport.close()
            return share
        hub = Hub(
            name,
            status.cluster,
            transport,
            leader=status.leader,
            settings=_settings(status),
            near=near,
            stays=_stays,
        )
        share = Share(hub)
        _hubs[name, status.cluster] = _Entry(hub, share)
        # Last in, first out: hubs say goodbye before Ray, imported by now, ends itself.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
        return share


def _find(name: str, cluster: int) -> Share | None:
    """A share in the hub that there is."""
    with undisturbed.here, _hubs_lock:
        entry = _hubs.get((name, cluster))
        return None if entry is None else _share(entry)


def _find_by_name(name: str) -> Share | None:
    """A share in a hub of a cluster of that name, which may not be the one that goes by it now."""
    with undisturbed.here, _hubs_lock:
        found = [entry for (known, _), entry in _hubs.items() if known == name]
        share = _share(found[-1]) if found else None
    return share if share is not None and share.hub.transport.valid() else None


def _share(entry: _Entry) -> Share:
    """With the lock held."""
    share = entry.share()
    if share is None:
        share = Share(entry.hub)
        entry.share = weakref.ref(share)
    return share


def _stays(hub: Hub, now: float) -> float:
    """Until when a hub stays that was let go: 0 if it goes at once (and is known here no more), for ever if it is in
    use again. Asked on the hub's own thread."""
    with undisturbed.here, _hubs_lock:
        entry = _hubs.get((hub.name, hub.cluster))
        if entry is None or entry.hub is not hub:
            return 0.0
        if entry.share() is not None:
            return math.inf
        idle = [each.hub for each in _hubs.values() if each.share() is None]
        idle.sort(key=lambda each: each.idle_since)
        until = hub.idle_since + linger
        if now < until and hub in idle[-MAX_IDLE_HUBS:]:
            for other in idle[:-MAX_IDLE_HUBS]:
                other.wake()  # it looks again, and goes
            return until
        del _hubs[hub.name, hub.cluster]
        return 0.0


def _ask_who(name: str, transport: Transport, cluster: int | None, near: set[int]) -> MemberStatus:
    """Ask all members for their status until one that serves answers; those that live on this process's own node are
    added to ``near``, also when they answer later. The deadline is that of what runs here.

    While none serves, the pauses grow with the outage and are drawn at random, and Ray is asked who the members are
    more seldom still: a thousand processes that begin in an outage are as patient as a thousand hubs."""
    here = transport.node
    begun = time.monotonic()
    look_at, longest_look = begun + _random.uniform(0, CLIENT_REFRESH_INTERVAL), CLIENT_REFRESH_INTERVAL
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
                status = answers.get(timeout=min(1.0, time_left()))
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
        left = time_left()
        if left <= CLIENT_BACKOFF:
            raise (ClusterMismatch if foreign else Unavailable)(f"cluster {name!r}: {problem}")
        longest = max(CLIENT_BACKOFF, CLIENT_BACKOFF_SHARE * (time.monotonic() - begun))
        # However long the pause, there is another attempt in good time before the end.
        time.sleep(min(_random.uniform(0.5, 1.0) * min(longest, CLIENT_MAX_BACKOFF), left / 2))
        if (now := time.monotonic()) >= look_at:
            transport.refresh()
            longest_look = min(CLIENT_MAX_REFRESH_INTERVAL, 2 * longest_look)
            look_at = now + _random.uniform(0, longest_look)


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
    with undisturbed.here, _hubs_lock:
        hubs = [entry.hub for entry in _hubs.values()]
        _hubs.clear()
    for hub in hubs:
        if hub.process == os.getpid():
            hub.close()


def _forget_all() -> None:
    """In a forked child: the hubs' threads, sessions and locks belong to the parent."""
    global _hubs_lock
    _hubs_lock = threading.RLock()
    _hubs.clear()
    _openings.clear()


os.register_at_fork(after_in_child=_forget_all)
