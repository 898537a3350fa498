"""What this process is: its identity as a client, and the Ray task that runs on a thread.

Ray is asked only where it runs in this process, and is not loaded for it. Over Ray Client this process is on no node,
and in a forked child Ray answers nothing; there the operating system alone is asked.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import time
from typing import Any

from ..schema.client_identity import ClientIdentity, cut

_WORKER_MODE = 1
"""``ray.WORKER_MODE``."""
_STARTED = 19
"""The place of the start in what follows the name in ``/proc/<pid>/stat``, which is field 2."""


def this_client() -> ClientIdentity:
    """Who this process is, as the cluster keeps it with its session."""
    node, address, job, actor, actor_id = _in_ray()
    boot, namespace = ids_are_of()
    return ClientIdentity(
        host=cut(socket.gethostname()),
        pid=os.getpid(),
        started=start_of(os.getpid()),
        boot=boot,
        pid_namespace=namespace,
        node=cut(node),
        address=cut(address),
        job=cut(job),
        actor=cut(actor),
        actor_id=cut(actor_id),
        since=time.time(),
        program=cut(_program()),
    )


@functools.cache
def ids_are_of() -> tuple[str, int]:
    """Which boot of which machine, and which namespace, the process ids that this process sees are of: ids of another
    mean other processes."""
    return cut(_read("/proc/sys/kernel/random/boot_id").strip()), _inode("/proc/self/ns/pid")


def start_of(pid: int) -> int:
    """When a process of this host was started, in clock ticks since the boot; 0 if there is none, or if the system
    does not say."""
    # The name, in parentheses, may hold anything, also spaces and parentheses.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[_STARTED]) if len(fields) > _STARTED and fields[_STARTED].isdigit() else 0


def namespace_of(pid: int) -> int:
    """The namespace that a process of this host counts its processes in; 0 if there is none, or it may not be seen."""
    return _inode(f"/proc/{pid}/ns/pid")


def current_task() -> str:
    """The name of the Ray task that runs on this thread, or in this coroutine; empty if there is none."""
    worker = _worker()
    if worker is None or worker.mode != _WORKER_MODE:
        return ""
    try:
        return cut(_ray().get_runtime_context().get_task_name() or "")
    except Exception:  # a thread of the user's, or another version of Ray
        return ""


def _in_ray() -> tuple[str, str, str, str, str]:
    """Node, its address, job, actor, and the actor's id, as far as there are any."""
    node = address = job = actor = actor_id = ""
    worker = _worker()
    if worker is None:
        return node, address, job, actor, actor_id
    context = _ray().get_runtime_context()
    with contextlib.suppress(Exception):  # what this version of Ray does not tell is not known
        node, job = context.get_node_id(), context.get_job_id()
        address = worker.node_ip_address
    if worker.mode == _WORKER_MODE:
        with contextlib.suppress(Exception):
            actor_id = context.get_actor_id() or ""
            if actor_id:
                actor = context.get_actor_name() or f"{_class_name(worker)} {actor_id[:8]}"
    return node, address, job, actor, actor_id


def _class_name(worker: Any) -> str:
    """The class of the actor that this process is."""
    instances = list(worker.actors.values())
    return type(instances[0]).__name__ if instances else current_task().partition(".")[0]


def _worker() -> Any:
    """Ray's object for this process; ``None`` where Ray does not run in it. Nothing is loaded for it."""
    module = sys.modules.get("ray._private.worker")
    worker = getattr(module, "global_worker", None)
    return worker if getattr(worker, "mode", None) is not None and not _forked else None


def _ray() -> Any:
    return sys.modules["ray"]


_forked = False
"""Whether this process is the forked child of one in which Ray ran."""


def _in_child() -> None:
    global _forked
    _forked = _worker() is not None or _forked


os.register_at_fork(after_in_child=_in_child)


def _program() -> str:
    """The program of this process, without its arguments, which may be secret."""
    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0
