"""A death is reported until the leader has done what follows of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec

from lab.patience import until
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.member.death_reports import DeathReports
from raykeeper.schema.answers import Done, Failed, Reason
from raykeeper.schema.commands import EndDeadSessions
from raykeeper.schema.frames import AsUser, Refusal, Refused, Reply, Request, Written
from raykeeper.schema.operator_frames import Administer
from raykeeper.schema.replies import MakeReply, reply_bytes

decode = msgspec.msgpack.Decoder(Request).decode


class Members:
    """Member 1 reports; what the leader answers is said beforehand."""

    def __init__(self, leader: int, *answers: Reply | Exception, token: bytes = b"") -> None:
        self.leader = leader
        self.answers = list(answers)
        self.asked: list[tuple[int, tuple[int, ...]]] = []
        self.tokens: list[bytes] = []
        self.done = threading.Event()
        self.looked_up: list[int] = []
        self.reports = DeathReports(
            9,
            1,
            leader=lambda: self.leader,
            ask_here=self.ask_here,
            lookup=self.lookup,
            token=lambda: token,
            log=MemberLog("member", "x", "m1"),
        )

    def answer(self, member: int, frame: bytes) -> bytes:
        request = decode(frame)
        if isinstance(request, AsUser):
            self.tokens.append(request.token)
            request = request.request
        assert isinstance(request, Administer)
        assert isinstance(request.command, EndDeadSessions)
        self.asked.append((member, request.command.sessions))
        answer = self.answers.pop(0)
        if not self.answers:
            self.done.set()
        if isinstance(answer, Exception):
            raise answer
        return reply_bytes(answer)

    def ask_here(self, frame: bytes, done: Callable[[MakeReply], None]) -> None:
        reply = self.answer(1, frame)
        done(lambda: reply)

    def lookup(self, member: int) -> Any:
        self.looked_up.append(member)

        def remote(frame: bytes) -> Any:
            def result(timeout: float) -> bytes:
                return self.answer(member, frame)

            return SimpleNamespace(future=lambda: SimpleNamespace(result=result))

        return SimpleNamespace(request=SimpleNamespace(remote=remote))

    def over(self) -> None:
        assert self.done.wait(60)
        until(lambda: not self.reports._thread.runs)


def test_a_leader_tells_itself() -> None:
    members = Members(1, Written((Done(5),)))
    members.reports.report([30, 20])
    members.over()
    assert members.asked == [(1, (20, 30))]
    assert members.looked_up == []


def test_a_follower_tells_the_leader_and_again_until_all_is_done() -> None:
    members = Members(
        2,
        RuntimeError("the actor is dead"),
        Refused(Refusal.NOT_LEADER),
        Refused(Refusal.LOST),
        Written((Failed(Reason.CHANGED),)),
        Written((Done(5),)),
        token=b"of the cluster",
    )
    members.reports.report([20])
    members.over()
    assert members.asked == [(2, (20,))] * 5
    assert members.looked_up == [2, 2]
    assert members.tokens == [b"of the cluster"] * 5


def test_a_report_that_is_not_understood_is_given_up() -> None:
    members = Members(2, Refused(Refusal.INVALID, 0, "a downgraded leader"))
    members.reports.report([20])
    members.over()


def test_what_dies_afterwards_is_reported_as_well() -> None:
    members = Members(1, Written((Done(5),)))
    members.reports.report([20])
    members.over()
    members.done.clear()
    members.answers.append(Written((Done(5),)))
    members.reports.report([30])
    members.over()
    assert members.asked == [(1, (20,)), (1, (30,))]
