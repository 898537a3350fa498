"""Who the clients are, read from the state by any thread: for ``AskClients``, and for questions about leases."""

from __future__ import annotations

from ...schema.frames import LeaseOwner
from ...schema.operator_frames import ClientStatus
from ...store.state.machine import State
from ..this_process import ids_are_of


def clients_of(state: State, after: int, most: int) -> tuple[tuple[ClientStatus, ...], bool]:
    """The clients that have a session, and those whose leases are there, by the ids of their sessions.

    Args:
        after: only those with a greater id.
        most: how many to return at most.

    Returns:
        The clients, and whether there are more after them.
    """
    known = {id for id in (*tuple(state.sessions), *tuple(state.clients)) if id > after}
    first = sorted(known)[:most]
    return tuple([status for id in first if (status := client_of(state, id)) is not None]), len(known) > most


def client_of(state: State, session: int) -> ClientStatus | None:
    """A client by the id of its session; ``None`` if neither the session nor a lease of it is there any more."""
    record, open = state.clients.get(session), state.sessions.get(session)
    if record is None and open is None:
        return None
    return ClientStatus(
        session,
        None if record is None else record.identity,
        open is not None,
        0 if record is None else record.leases,
        "" if open is None else open.user,
    )


def may_be_of(state: State, session: int, pid: int) -> bool:
    """Whether a session may be that of a process of this machine, whose id the kernel has given: no if the process that
    has opened it says that it is another. The ids of another machine, or of a container with ids of its own, cannot be
    compared."""
    record = state.clients.get(session)
    identity = None if record is None else record.identity
    if identity is None:
        return False
    return identity.pid == pid or (identity.boot, identity.pid_namespace) != ids_are_of()


def owner_of(state: State, lease: int) -> LeaseOwner | None:
    """Who made a lease; ``None`` if it is gone, or if that is not known."""
    record = state.leases.get(lease)
    client = None if record is None else client_of(state, record.session)
    return None if record is None or client is None else LeaseOwner(client, record.at, record.task)
