"""What a proxy asks members for, while some of them answer nothing or have left."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lab.patience import PATIENCE
from raykeeper.actors.client.aio_timeout import within
from raykeeper.actors.proxy import member_calls
from raykeeper.actors.proxy.member_calls import BackupRead, MemberCalls
from raykeeper.schema.answers import Done, Failed, Reason
from raykeeper.schema.frames import Refusal, Refused, Reply, Written
from raykeeper.schema.operator_frames import BackupBegun, EndBackup, MemberStatus, Status

HANGS, LEFT, FAILS = "hangs", "left", "fails"


def member_status(member: int, **fields: Any) -> MemberStatus:
    numbers = "term commit_index applied_index last_log_index first_log_index revision compact_revision db_size pid"
    plain: dict[str, Any] = {
        **dict.fromkeys(numbers.split(), 1),
        "cluster_name": "c",
        "cluster": 1,
        "member": member,
        "name": f"m{member}",
        "role": "follower",
        "voters": (1, 2, 3),
        "learners": (),
        "node": "",
    }
    return MemberStatus(**{**plain, **fields})


class Later:
    """What a member answers when the loop has had time for something else."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


class PlayedTransport:
    """Members that answer with a status, or later, hang, fail, or have left since they were listed."""

    def __init__(self, members: dict[int, Any]) -> None:
        self._members = members
        self.asked: list[int] = []

    def members(self) -> dict[int, str]:
        return {member: f"m{member}" for member in self._members}

    def send(self, member: int, frame: bytes, done: Any) -> None:
        self.asked.append(member)
        says = self._members[member]
        if says == LEFT:
            raise LookupError(f"no actor of member m{member} is known")
        if says == FAILS:
            done(OSError("it has ended"))
        elif isinstance(says, Later):
            asyncio.get_running_loop().call_later(0.01, done, msgspec.msgpack.encode(says.reply))
        elif says != HANGS:
            reply: Reply = Status(says)
            done(msgspec.msgpack.encode(reply))


def calls(members: dict[int, Any]) -> tuple[MemberCalls, PlayedTransport]:
    transport = PlayedTransport(members)
    hub: Any = SimpleNamespace(transport=transport, login=None)
    return MemberCalls(hub, 1), transport


@pytest.mark.parametrize("other", [HANGS, LEFT, FAILS])
def test_a_leader_is_heard_of_whatever_the_first_member_does(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_calls, "STATUS_TIMEOUT_S", 10 * PATIENCE)  # nothing is gained by waiting for it

    async def test() -> None:
        asking, transport = calls({1: other, 2: member_status(2, leader=3), 3: other})
        look = asyncio.ensure_future(asking.has_leader())
        assert await within(PATIENCE, look)
        assert look.result()
        assert transport.asked == [1, 2, 3]

    asyncio.run(test())


def test_who_does_not_serve_or_hears_no_leader_says_nothing_of_one() -> None:
    async def test() -> None:
        members = {1: member_status(1, leader=2, why_not_serving="it is starting"), 2: member_status(2, leader=0)}
        assert not await calls({**members, 3: LEFT, 4: FAILS})[0].has_leader()
        assert not await calls({})[0].has_leader()

    asyncio.run(test())


def test_a_member_that_has_left_has_no_answer() -> None:
    async def test() -> None:
        asking, _ = calls({1: LEFT})
        assert await asking.status(1) is None
        await asking.end_backup(BackupRead(1, "s", 0, b""))

    asyncio.run(test())


@pytest.mark.parametrize(
    ("replies", "asked"),
    [
        ([Written((Done(1),), 1)], 1),
        ([Refused(Refusal.OVERLOADED, 0), Written((Done(1),), 1)], 2),
        ([Written((Failed(Reason.INVALID, ""),), 1), Written((Done(1),), 1)], 2),
        ([Refused(Refusal.NOT_SERVING, 0)] * 3, 2),
    ],
    ids=["at once", "refused once", "failed once", "refused"],
)
def test_who_refuses_to_end_a_backup_is_asked_once_more(
    replies: list[Reply], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_calls, "BACKUP_END_TIMEOUT_S", PATIENCE)
    monkeypatch.setattr(member_calls, "CLIENT_SHORT_BACKOFF_S", 0.001)
    said = iter(replies)
    heard: list[EndBackup] = []

    def send(member: int, frame: bytes, done: Any) -> None:
        heard.append(msgspec.msgpack.decode(frame, type=EndBackup))
        done(msgspec.msgpack.encode(next(said)))

    async def test() -> None:
        hub: Any = SimpleNamespace(transport=SimpleNamespace(send=send), login=None)
        await MemberCalls(hub, 1).end_backup(BackupRead(1, "s", 0, b""))

    asyncio.run(test())
    assert [each.snapshot for each in heard] == ["s"] * asked


def test_a_backup_that_is_made_after_its_time_is_heard_of() -> None:
    """The time is for the member to hear of all that was acknowledged. To make the backup takes more, and one that
    nobody knew of would be in the way of others."""

    async def test() -> None:
        asking, _ = calls({1: Later(BackupBegun("s", 7, b"head", 3))})
        assert await asking.begin_backup(1, 0.0, 0.0) == BackupRead(1, "s", 7, b"head")

    asyncio.run(test())
