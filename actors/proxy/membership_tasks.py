"""Changes of the members for a proxy that must not load what makes them: each is a Ray task, in a process of its own.

They start and stop actors and write to disks, for which a task loads the package as any program does that administers
a cluster. It takes a second or two until it runs, and such calls are rare.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import ray

from ...errors import KeeperError
from ...limits import MAX_MEMBERSHIP_ATTEMPTS, MEMBERSHIP_PAUSE_S
from ..actor_access import as_the_cluster
from ..leader_call import administer_as
from ..logs import MemberLog
from ..naming import member_name
from .etcd_errors import TIMED_OUT, from_keeper_error
from .rpc_status import RpcCode, RpcError

T = TypeVar("T")

_remote: Any = ray.remote


class MembershipTasks:
    """See the module.

    Args:
        cluster_name: the cluster's.
        log: the proxy's.
    """

    def __init__(self, cluster_name: str, log: MemberLog) -> None:
        self._cluster_name = cluster_name
        self._log = log
        self._under_way: set[asyncio.Task[Any]] = set()
        """They go on without their callers. The loop itself holds tasks weakly."""

    async def add_member(self, learner: bool) -> int:
        """Add a member anywhere, as a learner; its id, once the configuration has it. Unless it is to stay one, another
        task makes it a voter when it has caught up: also if the caller has given up meanwhile."""
        return await asyncio.shield(self._begin(self._add(learner)))

    async def _add(self, learner: bool) -> int:
        added: int = await self._run("_add_learner", node=None, voter=not learner)
        if not learner:
            self._begin(self._promote(added))
        return added

    async def _promote(self, member: int) -> None:
        await self._repeat("_promote_once_caught_up", member, "%s is not a voter yet: %s")

    async def remove_member(self, member: int, leave: Coroutine[Any, Any, object]) -> None:
        """Return once ``leave`` has taken a member out of the configuration. A task ends its process and deletes its
        data: also if the caller has given up meanwhile, and if it is not known whether the member has left. The task
        does nothing to a member that is in the configuration."""
        await asyncio.shield(self._begin(self._remove(member, leave)))

    async def _remove(self, member: int, leave: Coroutine[Any, Any, object]) -> None:
        try:
            await leave
        except RpcError as error:
            if error.text == TIMED_OUT.text:  # it may leave later
                self._begin(self._clear(member))
            raise
        self._begin(self._clear(member))

    async def _clear(self, member: int) -> None:
        await self._repeat("_clear_left_member", member, "the data of %s is not deleted yet: %s")

    async def _repeat(self, change: str, member: int, failed: str) -> None:
        """Make a change that nobody waits for, again while the cluster is not available. If the proxy ends before it is
        made, the supervisor makes it."""
        said = ""
        for _ in range(MAX_MEMBERSHIP_ATTEMPTS):  # each of them may wait for minutes
            try:
                await self._run(change, id=member)
                return
            except RpcError as error:
                if (why := str(error.__cause__ or error)) != said:
                    said = why
                    self._log.warning(failed, member_name(member), why)
                if error.code is not RpcCode.UNAVAILABLE:  # it has left, say
                    return
            await asyncio.sleep(MEMBERSHIP_PAUSE_S)

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # its caller may be gone
            self._log.warning("a change of the members failed: %s", error)

    async def move_leader(self, member: int) -> None:
        """Hand leadership to a member."""
        await self._run("move_leader", id=member)

    async def _run(self, change: str, **arguments: Any) -> Any:
        task = _remote(num_cpus=0, max_retries=0)(_change)
        try:
            result = await task.remote(_PACKAGE, self._cluster_name, change, arguments)
        except ray.exceptions.RayError as error:
            result = KeeperError(f"the task that changes the members failed: {error}", applied=None)
        if isinstance(result, KeeperError):
            raise from_keeper_error(result) from result
        return result


_PACKAGE = __name__.rpartition(".actors.")[0]


def _change(package: str, cluster_name: str, change: str, arguments: dict[str, Any]) -> Any:
    """Runs in the task: what ``Cluster`` does by that name, as the cluster itself, since the proxy has checked that its
    client may. Only an id goes back; an error is returned, because Ray would give it another class, without its
    outcome."""
    try:
        administer_as(cluster_name, as_the_cluster)
        found = importlib.import_module(package).attach(cluster_name)
        result = getattr(found, change)(**arguments)
        return result if isinstance(result, int) else None
    except KeeperError as error:
        return error
