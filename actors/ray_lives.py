"""The lives of actors, jobs and drivers, as Ray's control service tells them.

What it tells is Ray's belief: it may call an actor dead whose process still runs, on a node that is cut off, or just
after ``ray.kill``. What is certain comes from the kernel (``client/life_monitor.py``). But Ray alone knows whether an
actor is dead for good, or will be restarted.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import ray

from ..errors import ClusterNotFound, InvalidArgument
from .ray_attached import attached, staying_attached
from .ray_calls import in_time

LifeKind = Literal["actor", "job", "driver"]


class Life(NamedTuple):
    """What a lease may be bound to: an actor, by its id; a job, or its driver, by the id of the job."""

    kind: LifeKind
    id: str

    def __str__(self) -> str:
        return f"the driver of job {self.id}" if self.kind == "driver" else f"{self.kind} {self.id}"


class RayProcess(NamedTuple):
    """A process of Ray's.

    Attributes:
        node: the id of its Ray node, in hexadecimal.
        pid: its id, as it sees it.
        restarts: how often the actor was restarted before; always 0 for a driver.
    """

    node: str
    pid: int
    restarts: int


class LifeStatus(NamedTuple):
    """What Ray says of a life.

    Attributes:
        over: whether it is dead for good.
        alive: whether its process runs; neither holds while it is started, or started again.
        process: its latest process.
        restartable: whether Ray may start it again.
    """

    over: bool
    alive: bool
    process: RayProcess
    restartable: bool


def life_of(bound_to: object) -> Life:
    """The life that a user names: a handle of an actor, ``"job"`` or ``"driver"``.

    Raises:
        InvalidArgument: it is none of these; or this process is in no job of Ray's, or is Ray's client.
    """
    if not ray.is_initialized():
        raise InvalidArgument("a lease can be bound to an actor, a job or a driver only in a process of Ray's")
    if ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
        raise InvalidArgument("over Ray Client a lease cannot be bound to an actor, a job or a driver")
    if isinstance(bound_to, ray.actor.ActorHandle):
        return Life("actor", bound_to._actor_id.hex())
    if bound_to == "job" or bound_to == "driver":
        return Life(bound_to, ray.get_runtime_context().get_job_id())
    raise InvalidArgument(f"a lease cannot be bound to a {type(bound_to).__name__}")


def is_this_process(life: Life) -> bool:
    """Whether this process is that actor, or the driver of that job."""
    if life.kind == "actor":
        return this_actor() == life.id
    context = ray.get_runtime_context()
    return ray._private.worker.global_worker.mode == ray.SCRIPT_MODE and context.get_job_id() == life.id


def this_actor() -> str:
    """The id of the actor that this process is, in hexadecimal; empty if it is none."""
    if not ray.is_initialized() or ray._private.worker.global_worker.mode != ray.WORKER_MODE:
        return ""
    return ray.get_runtime_context().get_actor_id() or ""


def kill_actor(actor: Any) -> None:
    """End an actor as if its process had crashed: Ray restarts it if it may.

    Raises:
        ClusterNotFound: this process has left Ray.
        Unavailable: Ray did not answer before the deadline of the current call.
    """
    in_time(attached(ray.kill), actor, no_restart=False)


def this_node() -> str:
    """The id of the Ray node that this process is on.

    Raises:
        ClusterNotFound: this process has left Ray.
    """
    with staying_attached():  # asked by threads of ours
        node: str = ray.get_runtime_context().get_node_id()
    return node


def look_at(life: Life) -> LifeStatus | None:
    """What Ray says of a life now; ``None`` if it does not know of it (yet, or any longer).

    Raises:
        ClusterNotFound: this process has left Ray.
        Unavailable: Ray did not answer before the deadline of the current call.
    """
    return in_time(_actor_status if life.kind == "actor" else _job_status, life.id)


def _accessor() -> Any:
    """Ray's connection to its control service, which is not part of its public interface."""
    try:
        return ray._private.state.state._connect_and_get_accessor()
    except ray.exceptions.RaySystemError as error:
        raise ClusterNotFound("this process has left its Ray cluster") from error


def _messages() -> Any:
    """Ray's own messages, in which its control service answers."""
    from ray.core.generated import gcs_pb2

    return gcs_pb2


def _actor_status(id: str) -> LifeStatus | None:
    told = _accessor().get_actor_info(ray.ActorID(bytes.fromhex(id)))
    if told is None:
        return None
    kind = _messages().ActorTableData
    actor = kind.FromString(told)
    return LifeStatus(
        actor.state == kind.DEAD,
        actor.state == kind.ALIVE,
        RayProcess(actor.address.node_id.hex(), actor.pid, actor.num_restarts),
        actor.max_restarts != 0,
    )


def _job_status(id: str) -> LifeStatus | None:
    for told in _accessor().get_job_table(skip_submission_job_info_field=True, skip_is_running_tasks_field=True):
        job = _messages().JobTableData.FromString(told)
        if job.job_id.hex() == id:
            process = RayProcess(job.driver_address.node_id.hex(), job.driver_pid, 0)
            return LifeStatus(job.is_dead, not job.is_dead, process, False)
    return None
