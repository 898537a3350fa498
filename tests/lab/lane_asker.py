"""A hub as far as its transport sees it: sends frames by real lanes, notes the replies and the threads they came on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

from lab.lanes import LaneHost, until
from raykeeper.actors.transport.client_lanes import LaneTransport
from raykeeper.actors.transport.lane import LaneOffer
from raykeeper.actors.transport.loop_reader import LoopReader
from raykeeper.actors.transport.waiter import OutcomeWaiter, WakeQueue


class PlayedCalls:
    """Stands where actor calls would."""

    node = "here"

    def __init__(self, lane_host: LaneHost | None) -> None:
        self.lane_host = lane_host
        self.frames: list[bytes] = []
        self.offers = 0
        self.closed = 0

    def members(self) -> dict[int, str]:
        return {1: "m1"}

    def refresh(self) -> None:
        pass

    def valid(self) -> bool:
        return True

    def send(self, member: int, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
        self.frames.append(frame)
        done(b"by call " + frame)

    poll = send

    def ask_for_lane(self, member: int) -> Future[LaneOffer | None]:
        self.offers += 1
        future: Future[LaneOffer | None] = Future()
        future.set_result(None if self.lane_host is None else self.lane_host.lanes.offer_lane(""))
        return future

    def close(self) -> None:
        self.closed += 1


def lane_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("raykeeper-lane")]


Outcome = tuple[int, bytes | Exception]
"""The thread that took the reply in, and the reply."""


class Asker:
    """A hub, as far as its transport sees it."""

    def __init__(self, lane_host: LaneHost | None) -> None:
        self._before = lane_threads()
        self.calls = PlayedCalls(lane_host)
        self.transport = LaneTransport(self.calls)
        self.replies: dict[bytes, bytes | Exception] = {}

    def send(self, frame: bytes) -> None:
        self.transport.send(1, frame, lambda reply: self.replies.update({frame: reply}))

    def ask(self, frame: bytes) -> bytes | Exception:
        self.send(frame)
        until(lambda: frame in self.replies)
        return self.replies.pop(frame)

    def send_alone(self, frame: bytes) -> OutcomeWaiter[Outcome]:
        """As a caller that waits for this reply next, and for nothing else."""
        queue = WakeQueue()
        waiter: OutcomeWaiter[Outcome] = OutcomeWaiter(queue)

        def done(reply: bytes | Exception) -> None:
            waiter.set_outcome((threading.get_ident(), reply))
            queue.wake_next()

        lane = self.transport.send_alone(1, frame, done, waiter)
        waiter.lanes = [] if lane is None else [lane]
        return waiter

    def send_in_loop(self, frame: bytes, reader: LoopReader) -> asyncio.Future[Outcome]:
        """As the coroutines of the running loop, while no other caller waits."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def done(reply: bytes | Exception) -> None:
            outcome = threading.get_ident(), reply
            if reader.reads_now():
                future.set_result(outcome)
            else:
                loop.call_soon_threadsafe(future.set_result, outcome)

        self.transport.send_alone(1, frame, done, reader)
        return future

    def thread(self) -> int | None:
        """The one that reads all lanes."""
        (found,) = self.threads()
        return found.ident

    def threads(self) -> list[threading.Thread]:
        """Those of the transport; a hub of another test may not have closed its own yet."""
        return [each for each in lane_threads() if each not in self._before]

    def open(self) -> None:
        until(lambda: not str(self.ask(b"x")).startswith("b'by call"), "a lane is opened")
