"""A dispatch core whose frames a test answers by hand."""

from __future__ import annotations

import random
from typing import Any

from lab.client.model import decode, encode
from raykeeper.actors.client.core.dispatch_core import DispatchCore, OutgoingFrame
from raykeeper.actors.client.core.router import Router
from raykeeper.errors import (
    KeeperError,
)
from raykeeper.limits import Limits, Timings
from raykeeper.schema.answers import Answer, PutAnswer
from raykeeper.schema.frames import (
    Open,
    Opened,
    Read,
    Reply,
    Request,
    Writes,
    Written,
)
from raykeeper.schema.operations import KeyRange, Put, Range

READ = Read(Range(KeyRange(b"k")))


class Play:
    """A dispatch core whose frames are answered by hand."""

    def __init__(
        self,
        leader: int = 1,
        members: tuple[int, ...] = (1, 2, 3),
        limits: Limits | None = None,
        cluster: str = "",
    ) -> None:
        router = Router(members, leader=leader, cluster=cluster)
        self.core = DispatchCore(7, router, limits or Limits(), Timings(), random.Random(3))
        self.now = 0.0
        self.frames: list[OutgoingFrame] = []

    def put(self, key: bytes = b"k", **options: Any) -> list[Answer | KeeperError]:
        return self._submit(Put(key, b"v"), **options)

    def read(self, **options: Any) -> list[Answer | KeeperError]:
        return self._submit(READ, **options)

    def _submit(self, request: Any, *, timeout: float = 10.0, **options: Any) -> list[Answer | KeeperError]:
        outcomes: list[Answer | KeeperError] = []
        self.number = self.core.submit(request, now=self.now, timeout=timeout, done=outcomes.append, **options)
        self.pump()
        return outcomes

    def pump(self) -> None:
        self.frames += self.core.outgoing(self.now)

    def next(self) -> tuple[OutgoingFrame, Request]:
        """The oldest frame that was not looked at yet."""
        frame = self.frames.pop(0)
        return frame, decode(frame.frame)

    def reply(self, frame: OutgoingFrame, reply: Reply) -> None:
        self.core.on_reply(frame.number, encode(reply), self.now)
        self.pump()

    def fail(self, frame: OutgoingFrame) -> None:
        self.core.on_failure(frame.number, self.now, "gone")
        self.pump()

    def wait(self, seconds: float) -> None:
        """Pass the time, waking up whenever the core wants to."""
        end = self.now + seconds
        while True:
            wakeup = self.core.next_wakeup()
            if wakeup is None or wakeup > end:
                self.now = end
                return
            self.now = max(self.now, wakeup)
            self.core.on_time(self.now)
            self.pump()

    def open_session(self, session: int = 50, ttl: float = 60.0) -> None:
        """Answer the opening that is asked for."""
        frame, request = self.next()
        assert isinstance(request, Open)
        self.reply(frame, Opened(session, ttl))

    def writes(self) -> tuple[OutgoingFrame, Writes]:
        frame, request = self.next()
        assert isinstance(request, Writes)
        return frame, request


def open_play(**options: Any) -> Play:
    """With a session, and one write done."""
    play = Play(**options)
    done = play.put(b"first")
    play.open_session()
    frame, _ = play.writes()
    play.reply(frame, Written((PutAnswer(2),)))
    assert done == [PutAnswer(2)]
    return play


def applied(outcomes: list[Answer | KeeperError]) -> tuple[type, bool | None]:
    assert len(outcomes) == 1
    (error,) = outcomes
    assert isinstance(error, KeeperError)
    return type(error), error.applied
