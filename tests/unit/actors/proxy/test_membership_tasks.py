"""A change of the members that a client has asked a proxy for goes on without the client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lab.patience import PATIENCE
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy import membership_tasks
from raykeeper.actors.proxy.etcd_errors import MEMBER_NOT_FOUND, NO_LEADER, TIMED_OUT
from raykeeper.actors.proxy.membership_tasks import MembershipTasks
from raykeeper.actors.proxy.rpc_status import RpcError


class Tasks(MembershipTasks):
    """Its tasks do nothing; their outcomes are given in advance."""

    def __init__(self, *later: RpcError | None) -> None:
        super().__init__("test", MemberLog("proxy", "test", "proxy"))
        self.begun, self.may_end, self.later = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.later.set()
        self.left = list(later)
        """Outcomes of what nobody waits for."""
        self.ran: list[str] = []

    async def _run(self, change: str, **arguments: Any) -> Any:
        self.ran.append(change)
        if change != "_add_learner":
            assert arguments == {"id": 4}
            await self.later.wait()
            error = self.left.pop(0)
            if error is not None:
                raise error
            return None
        self.begun.set()
        await self.may_end.wait()
        return 4

    async def leave(self) -> None:
        """Take member 4 out of the configuration."""
        self.begun.set()
        await self.may_end.wait()
        self.ran.append("leave")

    async def ended(self) -> None:
        while self._under_way:
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_tasks, "MEMBERSHIP_PAUSE_S", 0.0)


def test_a_caller_that_gives_up_leaves_no_learner_behind() -> None:
    async def test() -> None:
        tasks = Tasks(TIMED_OUT.error(), NO_LEADER.error(), None)
        asked = asyncio.ensure_future(tasks.add_member(learner=False))
        await tasks.begun.wait()
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        tasks.may_end.set()
        await tasks.ended()
        assert tasks.ran == ["_add_learner", *["_promote_once_caught_up"] * 3]

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_a_learner_that_has_left_is_given_up_and_one_that_is_to_stay_is_left_alone() -> None:
    async def test() -> None:
        tasks = Tasks(MEMBER_NOT_FOUND.error())
        tasks.may_end.set()
        assert await tasks.add_member(learner=False) == 4
        assert await tasks.add_member(learner=True) == 4
        await tasks.ended()
        assert sorted(tasks.ran) == ["_add_learner", "_add_learner", "_promote_once_caught_up"]

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_a_removal_is_answered_before_the_data_is_deleted() -> None:
    async def test() -> None:
        tasks = Tasks(TIMED_OUT.error(), None)
        tasks.may_end.set()
        tasks.later.clear()
        await tasks.remove_member(4, tasks.leave())
        assert tasks.left, "nothing of that is done yet"
        tasks.later.set()
        await tasks.ended()
        assert tasks.ran == ["leave", "_clear_left_member", "_clear_left_member"]

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_the_data_of_a_removed_member_is_deleted_without_the_caller() -> None:
    async def test() -> None:
        tasks = Tasks(None)
        asked = asyncio.ensure_future(tasks.remove_member(4, tasks.leave()))
        await tasks.begun.wait()
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        tasks.may_end.set()
        await tasks.ended()
        assert tasks.ran == ["leave", "_clear_left_member"]

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_a_member_that_may_not_be_removed_keeps_its_data() -> None:
    async def refused() -> None:
        raise NO_LEADER.error()

    async def test() -> None:
        tasks = Tasks()
        with pytest.raises(RpcError, match="no leader"):
            await tasks.remove_member(4, refused())
        await tasks.ended()
        assert tasks.ran == []

    asyncio.run(asyncio.wait_for(test(), PATIENCE))


def test_a_member_that_may_have_left_is_cleared_once_it_has() -> None:
    """Its removal may take effect after "request timed out", and without a supervisor nobody else sees to the rest."""

    async def unknown() -> None:
        raise TIMED_OUT.error()

    async def test() -> None:
        tasks = Tasks(NO_LEADER.error(), None)  # it is in the configuration, and then is not
        with pytest.raises(RpcError, match="timed out"):
            await tasks.remove_member(4, unknown())
        await tasks.ended()
        assert tasks.ran == ["_clear_left_member"] * 2

    asyncio.run(asyncio.wait_for(test(), PATIENCE))
