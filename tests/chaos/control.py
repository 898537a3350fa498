"""What a campaign does to the control plane, and to single links: Ray's GCS and the supervisor stand still, two members
hear each other no more while both hear the third."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import ray

from lab.ray.faults import CLIENT, cut
from lab.ray.tools import is_stopped, wait_until
from raykeeper.actors.cluster.supervisor_handle import supervisor_name
from raykeeper.actors.naming import NAMESPACE

from .field import Fault, Field, NotNow
from .nemesis import how_cut, switched


def _stopped(pid: int, what: str) -> Fault:
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: is_stopped(pid), 30, "process stopped")
        yield what
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return True


def _gcs(session: str) -> int:
    """The process of a Ray session's GCS.

    Raises:
        NotNow: there is none.
    """
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/cmdline", encoding="utf-8", errors="replace") as file:
            command = file.read()
            if command.partition("\0")[0].endswith("/gcs_server") and session in command:
                return int(name)
    raise NotNow("no GCS was found")


def pause_gcs(field: Field) -> Fault:
    """Nothing can be looked up, started or restarted meanwhile; what runs goes on."""
    pid = _gcs(ray._private.worker._global_node.get_session_dir_path())
    return (yield from _stopped(pid, "SIGSTOP of Ray's GCS"))


def pause_supervisor(field: Field) -> Fault:
    try:
        actor = ray.get_actor(supervisor_name(field.cluster.name), namespace=NAMESPACE)
    except ValueError as error:
        raise NotNow(str(error)) from None
    return (yield from _stopped(ray.get(actor.pid.remote(), timeout=10), "SIGSTOP of the supervisor"))


def cut_link(field: Field) -> Fault:
    """Two members do not hear each other, and both hear all others: what is reachable is not transitive."""
    members = field.members()
    if len(members) < 3:
        raise NotNow("two links are needed")
    one, other = field.rng.sample(members, 2)
    if field.rng.random() < 0.5:
        one = field.leader()
        other = field.rng.choice([each for each in members if each.id != one.id])
    how = how_cut(field)
    return (
        yield from switched(
            field, f"the link of {one.name} and {other.name} is cut ({how})", cut([one.id], [other.id], how)
        )
    )


def clients_cut_off_from_one(field: Field) -> Fault:
    member, how = field.anyone(), how_cut(field)
    rules = cut([CLIENT], [member.id], how)
    return (yield from switched(field, f"clients cut off from {member.name} ({how})", rules))
