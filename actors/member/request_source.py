"""From where a request came, for the audit log.

Of a lane the kernel says it. Of an actor call Ray does not say who has made it, so there is only what its process says
of itself with the call (``AsUser.client``): which process, on which host, of which job. Where it says nothing, and the
request has a session, it is what the client said when it opened that. It is marked as a hint, because a process that
may call an actor may say anything.
"""

from __future__ import annotations

from ...schema.client_identity import ClientIdentity, is_bounded
from ...schema.frames import BareRequest, Close, KeepAlive, KeepLeases, Open, Writes
from ...store.state.machine import State
from ..transport.lane_server import Lane

ACTOR_CALL = "an actor call"


def source_of(state: State, request: BareRequest, lane: Lane | None, said: ClientIdentity | None = None) -> str:
    """For people, on one line. Any thread.

    Args:
        lane: on which the request came; ``None`` for an actor call.
        said: what came with the call.
    """
    if lane is not None:
        return lane.source
    identity = said or (request.client if isinstance(request, Open) else _client(state, request))
    if identity is None or not is_bounded(identity):
        return ACTOR_CALL
    return f"{ACTOR_CALL} that says it is {_described(identity)}"


def _client(state: State, request: BareRequest) -> ClientIdentity | None:
    if isinstance(request, Writes):
        session = request.commands.session
    elif isinstance(request, KeepAlive | Close | KeepLeases):
        session = request.session
    else:
        return None
    record = state.clients.get(session)
    return None if record is None else record.identity


def _described(identity: ClientIdentity) -> str:
    """A client chooses these texts: a line break in one must not look like another line."""
    parts = [f"process {identity.pid} on {identity.host!a}"]
    for name, text in (("node", identity.node), ("job", identity.job), ("actor", identity.actor)):
        if text:
            parts.append(f"{name} {text!a}")
    return ", ".join(parts)
