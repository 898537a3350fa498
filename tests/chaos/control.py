"""What a campaign does to the control plane, and to single links: Ray's GCS and the supervisor stand still or die, two
members hear each other no more while both hear the third."""

from __future__ import annotations

import os
import signal
import uuid
from contextlib import suppress
from typing import Any

import ray
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER

from lab.ray.faults import CLIENT, cut
from lab.ray.tools import is_alive, is_stopped, start_of, wait_until
from raykeeper.actors.cluster.supervisor_handle import supervisor_name
from raykeeper.actors.naming import NAMESPACE, actor_name

from .field import RECOVERY, Fault, Field, NotNow, kill
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


def kill_gcs(field: Field) -> Fault:
    """Ray's GCS dies, and comes back over what its Redis holds. Meanwhile what runs goes on, and nothing new begins;
    often a member or the supervisor dies then, too. Afterwards names are to be had again, old and new, and what has
    died is started again."""
    if not field.gcs_outlives:
        raise NotNow("Ray's GCS has no Redis, and would not come back to what it knew")
    head = ray._private.worker._global_node
    pid = _gcs(head.get_session_dir_path())
    started = start_of(pid)
    also, who = field.rng.choice(((0, "nothing else"), *_mortals(field)))
    try:
        head.kill_gcs_server()
        bit = not is_alive(pid, started)
        if also:
            kill(also)
        yield f"SIGKILL of Ray's GCS, and of {who}"
    finally:
        _start_gcs(head, pid, started)

    def back() -> bool:
        """Once the cluster is whole again."""
        wait_until(lambda: not _unknown(field), RECOVERY, lambda: f"Ray knows these names again: {_unknown(field)}")
        wait_until(lambda: _supervisor(field) not in (0, also), RECOVERY, "the supervisor is back")
        _new_name()
        return bit

    return back


def _start_gcs(head: Any, before: int, started: str) -> None:
    """Start it again, also if Ray failed halfway when it was to end the one before."""
    if is_alive(before, started):
        with suppress(ProcessLookupError):
            os.kill(before, signal.SIGKILL)
    wait_until(lambda: not is_alive(before, started), RECOVERY, "the GCS before is dead")
    head.all_processes.pop(PROCESS_TYPE_GCS_SERVER, None)
    head._gcs_address = head._gcs_client = None
    head.start_gcs_server()


def _mortals(field: Field) -> list[tuple[int, str]]:
    """Processes that may die while nobody can start them again: pid and what it is."""
    found = [(member.pid, member.name) for member in field.members()]
    if supervisor := _supervisor(field):
        found.append((supervisor, "the supervisor"))
    return found


def _supervisor(field: Field) -> int:
    """The supervisor's process, by its own word: one that is dead keeps its name until it is started again. 0 if it
    does not answer."""
    with suppress(ValueError, ray.exceptions.RayError, TimeoutError):
        actor = ray.get_actor(supervisor_name(field.cluster.name), namespace=NAMESPACE)
        return int(ray.get(actor.pid.remote(), timeout=10))
    return 0


def _unknown(field: Field) -> list[str]:
    """Names of the cluster's members, and its supervisor's, that Ray does not find."""
    names = [supervisor_name(field.cluster.name)]
    names += [actor_name(field.cluster.name, member.name) for member in field.cluster.members()]
    unknown = []
    for name in names:
        try:
            ray.get_actor(name, namespace=NAMESPACE)
        except (ValueError, ray.exceptions.RayError):
            unknown.append(name)
    return unknown


def _new_name() -> None:
    """An actor that is named now is found by its name, and answers. Each name is a new one: the actor before may not
    be dead yet."""

    class Echo:
        def say(self, word: str) -> str:
            return word

    kind: Any = ray.remote(num_cpus=0)(Echo)
    name = f"echo-{uuid.uuid4().hex}"
    made = kind.options(name=name).remote()
    try:
        assert ray.get(ray.get_actor(name).say.remote("here"), timeout=RECOVERY) == "here"
    finally:
        ray.kill(made)


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
