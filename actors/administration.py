"""Administration of a running cluster from outside: commands that go through its log, and changes of its membership.

Whoever leads takes them; here it is found, by its own word or by that of the others, and asked again until the
deadline. That is safe because every such command is idempotent: to ask twice for something is to ask once. So the only
thing that a caller cannot know, when nobody answers in time, is whether it has happened already.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import ray

from ..errors import (
    ClusterMismatch,
    ClusterNotFound,
    InvalidArgument,
    KeeperError,
    NoSpace,
    NotCaughtUp,
    RequestTimeout,
    Unavailable,
)
from ..limits import ADMINISTRATION_PATIENCE, CLIENT_SHORT_BACKOFF
from ..store.commands import Administration, Answer, Failed, Reason
from .client.deadline import at_most
from .protocol import Administer, ChangeMembership, Refusal, Refused, Reply, Written
from .raft.messages import Change
from .roster import member_actors, pause
from .seat import member_name

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode


def administer(cluster_name: str, cluster: int, command: Administration, deadline: float) -> Answer:
    """Have a command applied by the cluster, and return what that answered.

    Args:
        cluster: id of the cluster.
        command: idempotent, as they all are.
        deadline: by ``time.monotonic``.

    Raises:
        Unavailable: no leader could be asked in time; nothing happened.
        RequestTimeout: it was asked, and whether anything happened is unknown.
        ClusterMismatch: the cluster that runs under this name has another id.
        ClusterNotFound: no member of it runs.
        InvalidArgument: the members do not take the command.
    """
    return _ask_leader(cluster_name, lambda left: Administer(cluster, left, command), deadline)


def change(cluster_name: str, cluster: int, changes: Sequence[Change], deadline: float, context: bytes = b"") -> Answer:
    """Change the configuration; returns once the change is in effect (or was already), or with ``Failed``.

    For arguments and errors see :func:`administer`.
    """
    return _ask_leader(cluster_name, lambda left: ChangeMembership(cluster, left, tuple(changes), context), deadline)


def expect(answer: Answer) -> Answer:
    """The answer, unless it is a failure.

    Raises:
        KeeperError: the one that the failure stands for, with ``applied`` ``False``.
    """
    if not isinstance(answer, Failed):
        return answer
    if answer.reason is Reason.NOT_CAUGHT_UP:
        raise NotCaughtUp(answer.message)
    if answer.reason is Reason.NO_SPACE:
        raise NoSpace(answer.message)
    if answer.reason in (Reason.NO_QUORUM, Reason.FULL, Reason.CHANGED):
        raise Unavailable(answer.message or answer.reason.name)
    raise InvalidArgument(answer.message or f"the cluster refused it: {answer.reason.name}")


def _ask_leader(cluster_name: str, frame: Any, deadline: float) -> Answer:
    """Ask whoever leads, until it answers; ``frame`` makes the request from the seconds that are left."""
    hint = 0
    unknown = False
    problem = "no member answered"
    while True:
        handles = member_actors(cluster_name)
        if not handles:
            raise ClusterNotFound(f"no cluster {cluster_name} runs in this Ray cluster")
        hint = hint if hint in handles else 0
        for member in sorted(handles, key=lambda member: member != hint):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if hint and member != hint:
                continue
            patience = at_most(min(left, ADMINISTRATION_PATIENCE))
            reply = _call(handles[member], _encode(frame(patience)), patience)
            if isinstance(reply, Written):
                return reply.answers[0]
            if not isinstance(reply, Refused):
                unknown, hint = True, 0
                problem = f"{member_name(member)} did not answer"
                continue
            problem = f"{member_name(member)}: {reply.message or reply.refusal.name.lower().replace('_', ' ')}"
            if reply.refusal is Refusal.WRONG_CLUSTER:
                raise ClusterMismatch(f"cluster {cluster_name} has another id: it is not the one that was meant")
            if reply.refusal is Refusal.INVALID:
                raise InvalidArgument(reply.message)
            unknown = unknown or reply.refusal in (Refusal.LOST, Refusal.TIMED_OUT)
            hint = reply.leader if reply.refusal is not Refusal.NOT_SERVING and reply.leader in handles else 0
            if hint and hint != member:
                break  # ask it next
        if time.monotonic() >= deadline:
            raise _late(problem, unknown)
        pause(min(CLIENT_SHORT_BACKOFF, max(0.0, deadline - time.monotonic())))


def _late(problem: str, unknown: bool) -> KeeperError:
    if unknown:
        return RequestTimeout(f"whether the cluster did it is unknown: {problem}", applied=None)
    return Unavailable(f"no leader could be asked: {problem}")


def _call(handle: Any, frame: bytes, patience: float) -> Written | Refused | None:
    """One request; ``None`` if no answer to it came, and it may have been taken."""
    try:
        reply = _decode(ray.get(handle.request.remote(frame), timeout=patience))
    except (ray.exceptions.RayError, TimeoutError, msgspec.MsgspecError):
        return None
    return reply if isinstance(reply, (Written, Refused)) else None
