"""Who a client of the cluster is, as its users see it."""

from __future__ import annotations

from typing import Any

import msgspec

from ...schema.frames import LeaseOwner
from ...schema.operator_frames import ClientStatus


class ClientInfo(msgspec.Struct, frozen=True):
    """A process that is, or was, a client of the cluster. A text is empty, and a number 0, where it is not known.

    Attributes:
        session: the id of its session.
        host: the name of its host.
        pid: its process id, as it sees it: in a container that is not the host's.
        node: the id of the Ray node that it runs on, in hexadecimal; empty over Ray Client.
        address: the address of that node.
        job: the id of its Ray job.
        actor: if it is an actor, its name; without one, its class and the beginning of its id.
        program: what it runs, without arguments.
        user: the user that it is logged in as.
        since: when it connected, in seconds since 1970 by its own clock.
        open: whether it has its session: one that has been silent for ``session_ttl`` has lost it.
        leases: how many leases there are that it made in this session.
        started: when the process was started, in clock ticks since its host's boot.
        boot: the id of that boot. With ``pid`` and ``started`` it names the process for good.
    """

    session: int
    host: str = ""
    pid: int = 0
    node: str = ""
    address: str = ""
    job: str = ""
    actor: str = ""
    program: str = ""
    user: str = ""
    since: float = 0.0
    open: bool = True
    leases: int = 0
    started: int = 0
    boot: str = ""


class Owner(msgspec.Struct, frozen=True):
    """Who made a lease, and so who holds, or waits for, what hangs on it.

    Attributes:
        client: the process.
        task: the Ray task that made it; empty if there was none.
        since: when, in seconds since 1970 by that process's clock; 0 if it has not said.
    """

    client: ClientInfo
    task: str = ""
    since: float = 0.0


def client_info(status: ClientStatus) -> ClientInfo:
    """A client as its users see it."""
    who = status.identity
    if who is None:
        return ClientInfo(status.session, user=status.user, open=status.open, leases=status.leases)
    return ClientInfo(
        status.session,
        who.host,
        who.pid,
        who.node,
        who.address,
        who.job,
        who.actor,
        who.program,
        status.user,
        who.since,
        status.open,
        status.leases,
        who.started,
        who.boot,
    )


def client_fields(client: ClientInfo) -> dict[str, Any]:
    """A client as fields by name."""
    return {name: getattr(client, name) for name in client.__struct_fields__}


def owner_info(owner: LeaseOwner | None) -> Owner | None:
    """Who made a lease, as users see it."""
    return None if owner is None else Owner(client_info(owner.client), owner.task, owner.at)
