"""Changes of the members for a proxy that must not load what makes them: each is a Ray task, in a process of its own.

They start and stop actors and write to disks, for which a task loads the package as any program does that administers
a cluster. It takes a second or two until it runs, and such calls are rare.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import ray

from ...errors import KeeperError
from ..leader_call import administer_as, as_the_cluster
from ..logs import MemberLog
from ..naming import member_name
from .etcd_errors import from_keeper_error
from .rpc_status import RpcError

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
        self._promoting: set[asyncio.Task[None]] = set()

    async def add_member(self, learner: bool) -> int:
        """Add a member anywhere, as a learner; its id, once the configuration has it. Unless it is to stay one, another
        task makes it a voter when it has caught up."""
        added: int = await self._run("_add_learner", node=None, voter=not learner)
        if not learner:
            promoting = asyncio.ensure_future(self._promote(added))
            self._promoting.add(promoting)  # the loop itself holds tasks weakly
            promoting.add_done_callback(self._promoting.discard)
        return added

    async def _promote(self, member: int) -> None:
        try:
            await self._run("_promote_once_caught_up", id=member)
        except RpcError as error:  # the supervisor does it, if the member is still there
            self._log.warning("%s did not become a voter: %s", member_name(member), error.text)

    async def remove_member(self, member: int) -> None:
        """Remove a member for good."""
        await self._run("remove_member", id=member)

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
