"""Asks all members of a cluster who loads them; ``actors/client/load_tables.py`` puts the answers together."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import AuthFailed, KeeperError, PermissionDenied, Unavailable
from ...limits import DEFAULT_TIMEOUT_S, LOAD_ROWS, STATUS_TIMEOUT_S
from ...schema.frames import Refusal, Refused, Reply
from ...schema.operator_frames import AskLoad, LoadShown
from ..client.load_tables import ClusterTop, merged
from ..deadline import at_most
from ..leader_call import ask_each
from ..naming import member_name


def cluster_load(cluster_name: str, cluster: int, limit: int, timeout: float = DEFAULT_TIMEOUT_S) -> ClusterTop:
    """Ask all members, and add up what they say.

    Args:
        cluster: id of the cluster.
        limit: clients, and prefixes, at most.
        timeout: seconds.

    Raises:
        PermissionDenied, AuthFailed, Unavailable: no member said anything.
    """
    patience = at_most(min(timeout, STATUS_TIMEOUT_S))
    replies = ask_each(cluster_name, AskLoad(cluster, patience, LOAD_ROWS), patience)
    shown = {member: reply for member, (reply, _) in replies.items() if isinstance(reply, LoadShown)}
    if not shown:
        raise _refusal([reply for reply, _ in replies.values()], cluster_name)
    silent = tuple(member_name(member) for member in sorted(set(replies) - set(shown)))
    return merged(shown, silent, limit)


def _refusal(replies: Iterable[Reply | None], cluster_name: str) -> KeeperError:
    """Why no member has answered."""
    for reply in replies:
        if isinstance(reply, Refused):
            kind = _DENIALS.get(reply.refusal, Unavailable)
            return kind(reply.message or f"the members refuse it: {reply.refusal.name}", applied=False)
    return Unavailable(f"no member of cluster {cluster_name} answers", applied=False)


_DENIALS: dict[Refusal, type[KeeperError]] = {
    Refusal.DENIED: PermissionDenied,
    Refusal.NO_USER: AuthFailed,
    Refusal.BAD_TOKEN: AuthFailed,
}
