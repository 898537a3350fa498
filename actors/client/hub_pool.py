"""The hubs of this process: opened, shared and closed.

Handles hold a :class:`HubShare` of a hub. When the last share is gone, the hub stays open for a while for the next
handle: Ray runs one task after another in a worker, each with its own handles, and a session for each would cost more
than the task. Then the hub closes itself; at the end of the process all hubs close.

A process opens one hub of a cluster at a time: other callers (a thousand threads or coroutines may share a handle that
was just unpickled) wait for it, each no longer than its own deadline.

A forked child starts without hubs, because the threads, locks and sessions of its parent's hubs are not its own. Its
handles notice that their share was made in another process, and try to open a new hub, which fails: Ray does not work
in a forked child.
"""

from __future__ import annotations

import atexit
import contextlib
import hmac
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
    CLIENT_BACKOFF_FRACTION,
    CLIENT_BACKOFF_S,
    CLIENT_MAX_BACKOFF_S,
    CLIENT_MAX_REFRESH_INTERVAL_S,
    CLIENT_REFRESH_INTERVAL_S,
    HUB_LINGER_S,
    MAX_IDLE_HUBS,
    Settings,
    decode_settings,
)
from ...schema.frames import Reply
from ...schema.operator_frames import AskStatus, MemberStatus, Status
from .. import finalizer_guard
from ..deadline import covering, time_left
from ..this_process import this_client
from ..transport.client_transport import ClientTransport
from .hub import Hub
from .login import Credentials, UserLogin

_random = random.SystemRandom()
_decode = msgspec.msgpack.Decoder(Reply).decode
_ASK_STATUS = msgspec.msgpack.encode(AskStatus())


class HubShare:
    """What keeps a hub in use: its handles and watches hold the same one. When it is gone, the hub may close."""

    __slots__ = ("__weakref__", "hub")

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        weakref.finalize(self, _share_gone, hub).atexit = False


def _share_gone(hub: Hub) -> None:
    if hub.process == os.getpid():
        hub.mark_unused()


class _PooledHub:
    """A hub of this process, and the share that its handles hold, while there are any."""

    def __init__(self, hub: Hub, share: HubShare) -> None:
        self.hub = hub
        self.share = weakref.ref(share)


class _Opening:
    """Held while one caller looks for a cluster. Re-entrant, because a signal handler may look in the same thread."""

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()


_Whose = tuple[str, str]
"""A user and a purpose; empty for none."""
_hubs: dict[tuple[str, int, _Whose], _PooledHub] = {}
"""By the cluster's name and id, and by whose it is."""
_openings: weakref.WeakValueDictionary[str, _Opening] = weakref.WeakValueDictionary()
_hubs_lock = threading.RLock()
linger = HUB_LINGER_S
"""Seconds that an unused hub stays open."""


def _actor_transport(name: str) -> ClientTransport:
    from ..transport.client_actor import ActorTransport  # Ray is loaded only when it is needed
    from ..transport.client_lanes import LaneTransport
    from ..transport.lane import HAS_LANES

    calls = ActorTransport(name)
    return LaneTransport(calls) if HAS_LANES else calls


make_transport: Callable[[str], ClientTransport] = _actor_transport
"""Makes the transport of a hub from the cluster's name."""


def open_hub(name: str, timeout: float, cluster: int | None = None, credentials: Credentials | None = None) -> HubShare:
    """A share in this process's hub for a cluster, which is opened if there is none.

    Args:
        timeout: seconds for all that this does.
        cluster: the id that the cluster must have; ``None`` accepts any.
        credentials: of the user whose hub it is; ``None`` for none.

    Raises:
        AuthFailed: there is no such user, or this is not its password.
        ClusterNotFound: there is no cluster of that name, or no Ray.
        ClusterMismatch: the cluster of that name has another id.
        ForkedProcess: this process is a forked child, in which Ray does not work.
        Unavailable: neither the members nor Ray answer in time.
    """
    if cluster is not None:
        share = _find(name, cluster, _whose(credentials))
        if share is not None and _is_proven(share.hub, credentials):
            return share
    with covering(timeout):
        try:
            with _one_at_a_time(name):
                share = _open_hub(name, cluster, credentials)
                if credentials is not None:
                    _prove(share.hub, credentials)
                return share
        except KeeperError as error:
            error.applied = False  # no request was sent yet
            raise


@contextlib.contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    with finalizer_guard.gc_deferred, _hubs_lock:
        opening = _openings.get(name)
        if opening is None:
            _openings[name] = opening = _Opening()
    if not opening.lock.acquire(timeout=min(time_left(), threading.TIMEOUT_MAX)):
        raise Unavailable(f"no member of cluster {name} has answered this process in time")
    try:
        yield
    finally:
        opening.lock.release()


def _is_proven(hub: Hub, credentials: Credentials | None) -> bool:
    """Whether a hub's user has been proven by the same means."""
    if credentials is None or hub.login is None:
        return True
    known = hub.login.credentials
    if hub.login.refused:
        return False
    if credentials.cluster_token is not None:
        return known.cluster_token is not None
    if credentials.password is not None:
        return known.password is not None and hmac.compare_digest(
            credentials.password.encode(errors="replace"), known.password.encode(errors="replace")
        )
    if credentials.password_file:
        return known.password_file == credentials.password_file
    return bool(credentials.token) and credentials.token in (known.token, hub.login.token)


def _prove(hub: Hub, credentials: Credentials) -> None:
    """Log in with these credentials, if the hub's user was proven by others: nobody gets a user's hub by its name. The
    newest are kept: the password may have been changed. Raises as :func:`open_hub`."""
    if hub.login is None or _is_proven(hub, credentials):
        return
    login = UserLogin(credentials, hub.transport, hub.name, hub.cluster)
    login.log_in()
    hub.login.adopt(login)


def _open_hub(name: str, cluster: int | None, credentials: Credentials | None) -> HubShare:
    """Find the cluster, and share or open its hub.

    A hub that is found by its name alone may be of a cluster that has been replaced by another of the same name. So its
    members are asked for their cluster id once, briefly, before the hub is shared."""
    near: set[int] = set()
    whose = _whose(credentials)
    if cluster is not None and (share := _find(name, cluster, whose)) is not None:
        return share  # another thread opened it in the meantime
    share = _find_by_name(name, whose) if cluster is None else None
    if share is not None:
        with contextlib.suppress(KeeperError), covering(CLIENT_REFRESH_INTERVAL_S):  # otherwise look it up again
            if _find_serving_member(name, share.hub.transport, None, set()).cluster == share.hub.cluster:
                return share
    transport = make_transport(name)
    status = _find_serving_member(name, transport, cluster, near)
    share = _find(name, status.cluster, whose)
    if share is not None:
        transport.close()
        return share
    login = None
    if credentials is not None:
        login = UserLogin(credentials, transport, name, status.cluster)
        try:
            login.log_in()
        except BaseException:
            transport.close()
            raise
    client = this_client()
    with finalizer_guard.gc_deferred, _hubs_lock:
        entry = _hubs.get((name, status.cluster, whose))
        share = entry.share() if entry is not None else None
        if share is not None:  # another thread was faster
            transport.close()
            return share
        hub = Hub(
            name,
            status.cluster,
            transport,
            leader=status.leader,
            settings=_settings(status),
            near=near,
            login=login,
            keep_until=_keep_until,
            client=client,
        )
        share = HubShare(hub)
        _hubs[name, status.cluster, whose] = _PooledHub(hub, share)
        # Exit handlers run last in, first out: hubs must close before Ray, imported by now, shuts down.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
        return share


def _whose(credentials: Credentials | None) -> _Whose:
    return ("", "") if credentials is None else (credentials.user, credentials.purpose)


def _find(name: str, cluster: int, whose: _Whose) -> HubShare | None:
    """A share in the hub of that name, id and user, if there is one."""
    with finalizer_guard.gc_deferred, _hubs_lock:
        entry = _hubs.get((name, cluster, whose))
        return None if entry is None else _share(entry)


def _find_by_name(name: str, whose: _Whose) -> HubShare | None:
    """A share in the newest hub of that name. The name may belong to another cluster by now."""
    with finalizer_guard.gc_deferred, _hubs_lock:
        found = [entry for (known, _, of), entry in _hubs.items() if (known, of) == (name, whose)]
        share = _share(found[-1]) if found else None
    return share if share is not None and share.hub.transport.valid() else None


def _share(entry: _PooledHub) -> HubShare:
    """With the lock held."""
    share = entry.share()
    if share is None:
        share = HubShare(entry.hub)
        entry.share = weakref.ref(share)
    return share


def _keep_until(hub: Hub, now: float) -> float:
    """Until when an unused hub stays open.

    0 closes it now, and it is no longer known here; infinity means that it is in use again. Asked by the hub's timer
    thread. Whether a hub is in use is decided under the lock under which shares are made, so no handle gets a share in
    a hub that closes. Of the unused hubs only the ``MAX_IDLE_HUBS`` latest stay.
    """
    with finalizer_guard.gc_deferred, _hubs_lock:
        key = hub.name, hub.cluster, _whose(None if hub.login is None else hub.login.credentials)
        entry = _hubs.get(key)
        if entry is None or entry.hub is not hub:
            return 0.0
        if entry.share() is not None:
            return math.inf
        idle = [each.hub for each in _hubs.values() if each.share() is None]
        idle.sort(key=lambda each: each.idle_since)
        until = hub.idle_since + linger
        if now < until and hub in idle[-MAX_IDLE_HUBS:]:
            for other in idle[:-MAX_IDLE_HUBS]:
                other.wake()  # its timer thread asks again, and closes it
            return until
        del _hubs[key]
        return 0.0


def _find_serving_member(name: str, transport: ClientTransport, cluster: int | None, near: set[int]) -> MemberStatus:
    """Ask all members for their status until one that serves answers, within the deadline of the running call.

    Members on this process's node are added to ``near``, even if they answer later. While no member serves, the pauses
    grow with the outage and are drawn at random, and the members are looked up in Ray less often still: a thousand
    processes that start during an outage must not burden it.

    Args:
        cluster: the id that the cluster must have; ``None`` accepts any.
    """
    here = transport.node
    begun = time.monotonic()
    look_at, longest_look = begun + _random.uniform(0, CLIENT_REFRESH_INTERVAL_S), CLIENT_REFRESH_INTERVAL_S
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
            raise ClusterNotFound(f"no cluster {name!r} runs in this Ray cluster: start it with raykeeper.launch")
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
                problem = status.why_not_serving if status is not None else "a member sent an unreadable reply"
            elif cluster is not None and status.cluster != cluster:
                foreign += 1
                problem = f"cluster {name!r} has the id {status.cluster:#x}, not {cluster:#x}"
            else:
                return status
        if foreign == len(members):
            raise ClusterMismatch(problem)
        left = time_left()
        if left <= CLIENT_BACKOFF_S:
            raise (ClusterMismatch if foreign else Unavailable)(f"cluster {name!r}: {problem}")
        longest = max(CLIENT_BACKOFF_S, CLIENT_BACKOFF_FRACTION * (time.monotonic() - begun))
        # At most half of the time that is left, so that there is another attempt before the end.
        time.sleep(min(_random.uniform(0.5, 1.0) * min(longest, CLIENT_MAX_BACKOFF_S), left / 2))
        if (now := time.monotonic()) >= look_at:
            transport.refresh()
            longest_look = min(CLIENT_MAX_REFRESH_INTERVAL_S, 2 * longest_look)
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
    with finalizer_guard.gc_deferred, _hubs_lock:
        hubs = [entry.hub for entry in _hubs.values()]
        _hubs.clear()
    for hub in hubs:
        if hub.process == os.getpid():
            hub.close()


def _forget_all() -> None:
    """In a forked child: the threads, sessions and locks of the hubs belong to the parent."""
    global _hubs_lock
    _hubs_lock = threading.RLock()
    _hubs.clear()
    _openings.clear()


os.register_at_fork(after_in_child=_forget_all)
