"""Administration of a running cluster from outside: commands that go through its log, and changes of its membership.

The leader accepts them. Here it is found, by its own word or by that of other members, and asked again until the
deadline. That is safe because every such command is idempotent: to ask twice is to ask once. So all that may remain
unknown, when no answer comes in time, is whether the command has taken effect already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import msgspec

from ..errors import (
    AuthFailed,
    ClusterMismatch,
    ClusterNotFound,
    InvalidArgument,
    KeeperError,
    NoSpace,
    NotCaughtUp,
    PermissionDenied,
    RequestTimeout,
    Unavailable,
)
from ..limits import ADMINISTRATION_CALL_TIMEOUT_S, CLIENT_SHORT_BACKOFF_S
from ..raft.messages import MemberChange
from ..schema.answers import Answer, Failed, Reason
from ..schema.commands import Administration, ClusterEvent
from ..schema.frames import AsUser, Refusal, Refused, Reply, Written
from ..schema.operator_frames import (
    Administer,
    AskClients,
    AskEvents,
    ChangeMembership,
    ClientsListed,
    ClientStatus,
    EventsListed,
)
from .deadline import at_most, pause_between_checks
from .member_access import MemberAccess, access_to
from .naming import member_name
from .this_process import this_client

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode

TokenSource = Callable[[Any], bytes]
"""Gives the token of the user for whom this process administers a cluster; empty for nobody. It is given the actor of
the member that is asked."""

_sources: dict[str, TokenSource] = {}
"""By the cluster's name."""


def administer_as(cluster_name: str, source: TokenSource | None) -> None:
    """From now on this process administers a cluster as the user, or the cluster, whose tokens these are; as nobody,
    for ``None``."""
    if source is None:
        _sources.pop(cluster_name, None)
    else:
        _sources[cluster_name] = source


def administer(
    cluster_name: str,
    cluster: int,
    command: Administration,
    deadline: float,
    source: TokenSource | None = None,
) -> Answer:
    """Have a command applied by the cluster, and return its answer.

    Args:
        cluster: id of the cluster.
        command: idempotent, as they all are.
        deadline: by ``time.monotonic``.
        source: for whom; ``None`` is for whom this process administers the cluster.

    Raises:
        Unavailable: no leader could be asked in time; the command had no effect.
        RequestTimeout: a member was asked, and whether the command had an effect is unknown.
        ClusterMismatch: the cluster that runs under this name has another id.
        ClusterNotFound: no member of it runs.
        InvalidArgument: the members refuse the command.
    """
    frame = partial(Administer, cluster, command=command)
    return _ask_leader(cluster_name, frame, deadline, Written, source).answers[0]


def change_membership(
    cluster_name: str, cluster: int, changes: Sequence[MemberChange], deadline: float, context: bytes = b""
) -> Answer:
    """Change the configuration; returns once the change is in effect (or was before), or with ``Failed``.

    For arguments and errors see :func:`administer`.
    """
    frame = partial(ChangeMembership, cluster, changes=tuple(changes), context=context)
    return _ask_leader(cluster_name, frame, deadline, Written).answers[0]


def ask_clients(cluster_name: str, cluster: int, deadline: float) -> list[ClientStatus]:
    """Who the clients of a cluster are, by the ids of their sessions.

    For arguments and errors see :func:`administer`.
    """
    clients: list[ClientStatus] = []
    while True:
        after = clients[-1].session if clients else 0
        frame = partial(AskClients, cluster, after=after)
        answer = _ask_leader(cluster_name, frame, deadline, ClientsListed)
        clients += answer.clients
        if not answer.more or not answer.clients:
            return clients


def ask_client(
    cluster_name: str, cluster: int, session: int, deadline: float, source: TokenSource
) -> ClientStatus | None:
    """Who the client with that session is; ``None`` if there is no such session.

    For arguments and errors see :func:`administer`.
    """
    frame = partial(AskClients, cluster, after=session - 1)
    clients = _ask_leader(cluster_name, frame, deadline, ClientsListed, source).clients
    return next((client for client in clients if client.session == session and client.open), None)


def ask_events(cluster_name: str, cluster: int, after: int, deadline: float) -> tuple[tuple[int, ClusterEvent], ...]:
    """What has happened to a cluster: number and event, oldest first, of those after a number.

    For the other arguments and errors see :func:`administer`.
    """
    return _ask_leader(cluster_name, partial(AskEvents, cluster, after=after), deadline, EventsListed).events


def expect(answer: Answer) -> Answer:
    """The answer, unless it is a failure.

    Raises:
        KeeperError: the error that the failure stands for, with ``applied`` ``False``.
    """
    if not isinstance(answer, Failed):
        return answer
    if answer.reason is Reason.NOT_CAUGHT_UP:
        raise NotCaughtUp(answer.message)
    if answer.reason is Reason.NO_SPACE:
        raise NoSpace(answer.message)
    if answer.reason in (Reason.NO_USER, Reason.BAD_TOKEN):
        raise AuthFailed(answer.message or answer.reason.name)
    if answer.reason is Reason.DENIED:
        raise PermissionDenied(answer.message or answer.reason.name)
    if answer.reason in (Reason.NO_QUORUM, Reason.FULL, Reason.CHANGED):
        raise Unavailable(answer.message or answer.reason.name)
    raise InvalidArgument(answer.message or f"the cluster refused it: {answer.reason.name}")


R = TypeVar("R", Written, ClientsListed, EventsListed)


def _ask_leader(
    cluster_name: str,
    frame: Callable[[float], Any],
    deadline: float,
    kind: type[R],
    source: TokenSource | None = None,
) -> R:
    """Ask the leader until it answers; ``frame`` makes the request from the seconds that are left.

    ``unknown`` stays set once a request may have been accepted: from then on a failure is a ``RequestTimeout``, even if
    a later member refuses the request.
    """
    hint = 0
    unknown = False
    problem = "no member answered"
    access = access_to(cluster_name)
    while True:
        handles = access.members()
        if not handles:
            raise ClusterNotFound(f"no cluster {cluster_name} runs in this Ray cluster")
        hint = hint if hint in handles else 0
        for member in sorted(handles, key=lambda member: member != hint):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if hint and member != hint:
                continue
            patience = at_most(min(left, ADMINISTRATION_CALL_TIMEOUT_S))
            request = _with_token(cluster_name, handles[member], frame(patience), source)
            reply = _call(access, member, request, patience)
            if isinstance(reply, kind):
                return reply
            if not isinstance(reply, Refused):
                unknown, hint = True, 0
                problem = f"{member_name(member)} did not answer"
                continue
            problem = f"{member_name(member)}: {reply.message or reply.refusal.name.lower().replace('_', ' ')}"
            if reply.refusal is Refusal.WRONG_CLUSTER:
                raise ClusterMismatch(
                    f"the members named after cluster {cluster_name} belong to a cluster with another id than the one "
                    "that was asked for"
                )
            if reply.refusal is Refusal.INVALID:
                raise InvalidArgument(reply.message)
            if reply.refusal in (Refusal.NO_USER, Refusal.BAD_TOKEN, Refusal.DENIED):
                denied = PermissionDenied if reply.refusal is Refusal.DENIED else AuthFailed
                raise denied(reply.message, applied=None if unknown else False)
            unknown = unknown or reply.refusal in (Refusal.LOST, Refusal.TIMED_OUT)
            hint = reply.leader if reply.refusal is not Refusal.NOT_SERVING and reply.leader in handles else 0
            if hint and hint != member:
                break  # ask it next
        if time.monotonic() >= deadline:
            raise _deadline_error(problem, unknown)
        pause_between_checks(min(CLIENT_SHORT_BACKOFF_S, max(0.0, deadline - time.monotonic())))


def ask_each(
    cluster_name: str, frame: Any, patience: float, only: int | None = None
) -> dict[int, tuple[Reply | None, float]]:
    """Send one request to all members at once, or to one. Each reply stands with the seconds that it took; ``None`` for
    one that did not come within ``patience`` seconds."""
    access = access_to(cluster_name)
    handles = access.members()
    chosen = {member: handle for member, handle in handles.items() if only in (None, member)}
    frames = {member: _with_token(cluster_name, handle, frame) for member, handle in chosen.items()}
    began = time.monotonic()
    replies: dict[int, tuple[Reply | None, float]] = dict.fromkeys(chosen, (None, patience))
    for member, reply in access.ask(frames, patience):
        with suppress(msgspec.MsgspecError):
            replies[member] = (_decode(reply), time.monotonic() - began)
    return replies


def token_for(cluster_name: str, member: Any, source: TokenSource | None = None) -> bytes:
    """The token with which this process administers a cluster, unless another source is given; empty for none."""
    source = source or _sources.get(cluster_name)
    try:
        return b"" if source is None else source(member)
    except Unavailable:  # asking it will tell
        return b""


def _with_token(cluster_name: str, member: Any, frame: Any, source: TokenSource | None = None) -> bytes:
    return _encode(AsUser(token_for(cluster_name, member, source), frame, this_client()))


def _deadline_error(problem: str, unknown: bool) -> KeeperError:
    if unknown:
        return RequestTimeout(f"whether the cluster did it is unknown: {problem}", applied=None)
    return Unavailable(f"no leader could be asked: {problem}")


def _call(access: MemberAccess, member: int, frame: bytes, patience: float) -> Reply | None:
    """Send one request; ``None`` if no answer came, and it may have been accepted."""
    for _, reply in access.ask({member: frame}, patience):
        with suppress(msgspec.MsgspecError):
            return _decode(reply)
    return None
