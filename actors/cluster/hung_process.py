"""Ends the process of a member that hangs, on its own node, where it is certain which process that is.

A process that is stopped, or that waits in a system call, dies of SIGKILL as soon as the kernel lets it, and Ray starts
the actor again on the same data: that loses nothing, as no crash of a member does. What must not happen is that another
process is killed. So the process is not looked up by what anybody once said about it:

1. The member is asked on its own node. If it answers, what hangs is not the member, but what lies between. If it is
   opening its data, an end would only have it begin again.
2. The kernel says which process has the lock on the member's folder: ``/proc/<pid>/fdinfo`` shows the locks that were
   taken through an open file, whatever the file system. Where several processes share that open file, after a fork,
   none is ended.
3. A descriptor of the process is made (``pidfd_open``), and 2. is asked again: so the descriptor is of a process that
   had the lock while it existed, and the signal goes by the descriptor. An id that was given again does no harm.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from typing import Any

import msgspec
import ray

from ...errors import Unavailable
from ...limits import HUNG_ASK_S, HUNG_END_S, STUCK_TURN_S
from ...schema.operator_frames import MemberStatus
from ...store.data_dir import DataDir
from ...store.data_lock import lock_path
from ...store.engine.rocks import RocksDisk
from ..naming import NAMESPACE, actor_name


class HungProcess(msgspec.Struct, frozen=True):
    """What became of the process of a member that hangs.

    Attributes:
        pid: of the process that holds the lock on the member's folder; 0 if that is none, or not certain.
        state: its state, as the kernel names it: "T (stopped)", "D (disk sleep)".
        ended: whether it is dead.
        left: why it was left alone; empty if it was not.
        here: whether it was looked for on a node that has the member's data.
    """

    pid: int = 0
    state: str = ""
    ended: bool = False
    left: str = ""
    here: bool = True

    def __str__(self) -> str:
        if self.left:
            return f"{self.left}, so its process was left alone"
        if not self.pid:
            return "no process is known for certain to hold the lock on its folder"
        if self.ended:
            return f"its process {self.pid} was in state {self.state}; it is dead now"
        return f"its process {self.pid}, in state {self.state}, does not end: it waits in the kernel"


def end_hung_member(base: str, cluster_name: str, cluster: int, name: str) -> HungProcess:
    """Runs on a member's node, or on one that may be it: end its process unless it answers there.

    Args:
        base: the parent of the member's folder.
        name: of the member.

    Raises:
        Unavailable: this system does not let the process be found, or ended.
    """
    status = _ask(cluster_name, name)
    if status is not None and status.stuck_for < STUCK_TURN_S:
        return HungProcess(left="it answers on its own node")
    identity = DataDir.read_identity(RocksDisk(), os.path.join(base, name))
    if identity is None or identity.cluster != cluster or identity.name != name:
        return HungProcess(here=False)
    return end_holder(base, name, spare=status.pid if status is not None and status.is_starting else 0)


def end_holder(base: str, name: str, spare: int = 0) -> HungProcess:
    """End the process that holds the lock on a member's folder, and wait briefly until it is dead.

    Args:
        spare: a process that is left alone.

    Raises:
        Unavailable: this system does not let the process be found, or ended.
    """
    if not hasattr(os, "pidfd_open"):
        raise Unavailable("this system has no descriptors of processes")
    holder = _holder(lock_path(base, name))
    if not holder:
        return HungProcess()
    if holder == spare:
        return HungProcess(holder, state_of(holder), left="it is opening its data still")
    try:
        descriptor = os.pidfd_open(holder)
    except ProcessLookupError:
        return HungProcess()
    except OSError as error:
        raise Unavailable(f"process {holder} cannot be ended: {error.strerror}") from None
    try:
        state = state_of(holder)
        if _holder(lock_path(base, name)) != holder:
            return HungProcess()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return HungProcess(holder, state, ended=bool(poll.poll(HUNG_END_S * 1000)))
    except PermissionError as error:
        raise Unavailable(f"process {holder} cannot be ended: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _ask(cluster_name: str, name: str) -> MemberStatus | None:
    """What the member says of itself, here; ``None`` if it says nothing."""
    try:
        actor: Any = ray.get_actor(actor_name(cluster_name, name), namespace=NAMESPACE)
        status: MemberStatus = ray.get(actor.status.remote(), timeout=HUNG_ASK_S)
    except (ValueError, TimeoutError, ray.exceptions.RayError):
        return None
    return status


def _holder(path: str) -> int:
    """The process that holds a lock on a file; 0 if there is none that can be seen, or more than one."""
    try:
        wanted = os.stat(path)
    except FileNotFoundError:
        return 0
    holders = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _holds(int(pid), wanted)]
    return holders[0] if len(holders) == 1 else 0


def _holds(pid: int, wanted: os.stat_result) -> bool:
    """Whether a process has taken, or inherited, a lock through one of its open files."""
    with suppress(OSError):  # it is not ours, or has just ended
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if not os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), wanted):
                    continue
                with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as file:
                    if any(line.startswith("lock:") and "FLOCK" in line for line in file):
                        return True
    return False


def state_of(pid: int) -> str:
    """A process's state as the kernel names it: "S (sleeping)"; empty if it is gone."""
    with suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("State:"):
                return line.partition(":")[2].strip()
    return ""
