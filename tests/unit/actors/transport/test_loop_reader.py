"""An event loop that reads a lane itself: as long as it waits alone, and never at the cost of another caller."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from lab.lane_asker import Asker
from lab.lanes import PATIENCE, LaneHost, open_descriptors, until
from raykeeper.actors.transport.client_lane import ClientLane
from raykeeper.actors.transport.lane import LaneBroken
from raykeeper.actors.transport.loop_reader import LoopReader


@pytest.fixture(params=["here", "there"], ids=["Unix", "TCP"])
def asker(lane_host: LaneHost, request: pytest.FixtureRequest) -> Iterator[Asker]:
    made = Asker(lane_host)
    made.calls.node = request.param
    made.open()
    yield made
    made.transport.close()
    until(lambda: len(lane_host.lanes) == 0)


def lane_of(asker: Asker) -> ClientLane:
    (lane,) = asker.transport._by_fd.values()
    return lane


def never_interrupted() -> None:
    raise AssertionError("nothing was interrupted")


def reader_here(interrupted: Callable[[], None] = never_interrupted) -> LoopReader:
    return LoopReader(asyncio.get_running_loop(), interrupted)


def test_a_loop_that_waits_alone_reads_its_replies_itself(asker: Asker) -> None:
    async def main() -> None:
        reader = reader_here()
        for _ in range(3):
            assert await asker.send_in_loop(b"put", reader) == (threading.get_ident(), b"re put")
        replies = await asyncio.gather(*[asker.send_in_loop(b"%d" % each, reader) for each in range(100)])
        assert replies == [(threading.get_ident(), b"re %d" % each) for each in range(100)]

    asyncio.run(main())
    assert asker.ask(b"get") == b"re get", "and then the lanes' thread reads again"
    assert asker.send_alone(b"put").wait() == (threading.get_ident(), b"re put")


def test_no_other_reply_waits_for_a_loop_that_is_held_up(asker: Asker) -> None:
    async def main() -> None:
        reader = reader_here()
        own = asker.send_in_loop(b"put", reader)
        assert asker.ask(b"get") == b"re get"  # which blocks the loop
        assert await own == (asker.thread(), b"re put")
        assert await asker.send_in_loop(b"put", reader) == (threading.get_ident(), b"re put")

    asyncio.run(main())


def test_a_loop_reads_again_once_the_requests_of_others_are_answered(lane_host: LaneHost, asker: Asker) -> None:
    """Although its own lane is never empty."""

    async def main() -> None:
        reader = reader_here()
        open_for_long = asker.send_in_loop(b"later own", reader)
        asker.send(b"later other")
        assert await asker.send_in_loop(b"put", reader) == (asker.thread(), b"re put")
        until(lambda: len(lane_host.open) == 2)
        lane_host.do(lambda: lane_host.open[1][1](lambda: b"at last"))
        until(lambda: b"later other" in asker.replies)
        assert await asker.send_in_loop(b"put", reader) == (threading.get_ident(), b"re put")
        lane_host.do(lambda: lane_host.open[0][1](lambda: b"at last"))
        assert await open_for_long == (threading.get_ident(), b"at last")

    asyncio.run(main())


def test_a_loop_reads_polls_that_are_for_nobody_else(lane_host: LaneHost, asker: Asker) -> None:
    replies: list[tuple[int, bytes | Exception]] = []

    def poll() -> None:
        asker.transport.poll(1, b"later poll", lambda reply: replies.append((threading.get_ident(), reply)))

    def answer() -> None:
        until(lambda: len(lane_host.open) == 1)
        lane_host.do(lambda: lane_host.open.pop()[1](lambda: b"news"))

    async def main() -> None:
        reader = reader_here()
        asker.transport.set_poll_audience(reader, empty=False)
        poll()
        assert await asker.send_in_loop(b"put", reader) == (threading.get_ident(), b"re put")
        asker.transport.set_poll_audience(None, empty=False)  # another has a watch now
        asker.transport.take_back()
        assert await asker.send_in_loop(b"put", reader) == (asker.thread(), b"re put")
        answer()
        until(lambda: replies.pop() == (asker.thread(), b"news") if replies else False)
        asker.transport.set_poll_audience(None, empty=True)
        poll()
        assert await asker.send_in_loop(b"put", reader) == (threading.get_ident(), b"re put")
        answer()
        while not replies:
            await asyncio.sleep(0.001)
        assert replies == [(threading.get_ident(), b"news")]

    asyncio.run(main())
    asker.transport.set_poll_audience(None, empty=True)
    poll()
    assert asker.send_alone(b"put").wait() == (threading.get_ident(), b"re put"), "so does a thread"


def test_a_look_leaves_the_lane_to_a_loop_that_keeps_up(lane_host: LaneHost, asker: Asker) -> None:
    async def main() -> None:
        own = asker.send_in_loop(b"later own", reader_here())
        until(lambda: len(lane_host.open) == 1)
        asker.transport.take_back(if_overdue=True)
        assert not lane_of(asker).connection.is_reading()
        lane_host.do(lambda: lane_host.open[0][1](lambda: b"at last"))
        until(lambda: asker.transport.take_back(if_overdue=True) or lane_of(asker).connection.is_reading())
        assert (await own)[1] == b"at last"

    asyncio.run(main())


def test_two_loops_share_a_lane(asker: Asker) -> None:
    errors: list[BaseException] = []

    async def main() -> None:
        reader = reader_here()
        for each in range(200):
            assert (await asyncio.wait_for(asker.send_in_loop(b"%d" % each, reader), PATIENCE))[1] == b"re %d" % each

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_the_replies_of_a_loop_that_is_held_up_are_taken_back(lane_host: LaneHost, asker: Asker) -> None:
    async def main() -> None:
        own = asker.send_in_loop(b"put", reader_here())
        until(lambda: lane_host.asked[-1] == b"put")
        until(lambda: asker.transport.take_back() or lane_of(asker).connection.is_reading())
        assert (await own)[1] == b"re put"

    asyncio.run(main())


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "stopped"])
def test_a_loop_that_ended_over_its_requests_holds_up_nobody(lane_host: LaneHost, asker: Asker, closed: bool) -> None:
    reader: list[LoopReader] = []

    async def main() -> None:
        reader.append(reader_here())
        asker.transport.send_alone(1, b"later own", replies.append, reader[0])

    replies: list[bytes | Exception] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    if closed:
        loop.close()
    until(lambda: len(lane_host.open) == 1)
    lane_host.do(lambda: lane_host.open[0][1](lambda: b"at last"))
    assert asker.ask(b"get") == b"re get"
    until(lambda: replies == [b"at last"])
    loop.close()


def test_nothing_is_left_to_a_loop_that_does_not_run(asker: Asker) -> None:
    """Requests of its coroutines may be sent later, by another thread."""
    made: list[LoopReader] = []

    async def main() -> None:
        made.append(reader_here())

    loop = asyncio.new_event_loop()
    for end in (lambda: None, loop.close):
        if not made:
            loop.run_until_complete(main())
        end()
        replies: list[bytes | Exception] = []
        asker.transport.send_alone(1, b"put", replies.append, made[0])
        until(lambda replies=replies: replies == [b"re put"])


def test_the_end_of_a_lane_is_seen_by_the_loop_that_reads_it(lane_host: LaneHost, asker: Asker) -> None:
    async def main() -> None:
        reader = reader_here()
        own = asker.send_in_loop(b"later own", reader)
        await asyncio.to_thread(until, lambda: len(lane_host.open) == 1)
        lane_host.close()
        assert isinstance((await own)[1], LaneBroken)
        assert reader._lanes == {}

    asyncio.run(main())
    until(lambda: not asker.transport._by_fd)


def test_an_idle_lane_whose_last_reader_was_a_loop_is_seen_to_end(lane_host: LaneHost, asker: Asker) -> None:
    async def main() -> None:
        await asker.send_in_loop(b"put", reader_here())
        lane_host.close()
        await asyncio.to_thread(until, lambda: not asker.transport._by_fd)

    asyncio.run(main())


def test_a_reader_that_is_closed_leaves_the_loop_and_its_lanes(asker: Asker) -> None:
    async def main() -> None:
        before = open_descriptors()
        reader = reader_here()
        await asker.send_in_loop(b"put", reader)
        reader.close()
        await asyncio.sleep(0)
        until(lambda: open_descriptors() <= before)
        assert (await asker.send_in_loop(b"put", reader))[1] == b"re put", "the lanes' thread reads"

    asyncio.run(main())


def test_what_was_interrupted_while_it_read_is_reported(asker: Asker) -> None:
    """The loop goes on, and the lane ends: bytes may be lost."""
    reports: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        reader = reader_here(lambda: reports.append("interrupted"))
        own = asker.send_in_loop(b"put", reader)
        connection = lane_of(asker).connection
        receive = connection.receive

        def interrupted() -> None:
            connection.receive = receive  # type: ignore[method-assign]
            raise Interrupt

        connection.receive = interrupted  # type: ignore[method-assign, assignment]
        assert isinstance((await own)[1], LaneBroken)
        assert not reader.reads_now()

    asyncio.run(main())
    assert reports == ["interrupted"]


class Interrupt(BaseException):
    """As ``KeyboardInterrupt``."""


def test_a_loop_that_cannot_watch_descriptors_has_no_reader() -> None:
    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, *_: object) -> None:  # type: ignore[override]
            raise NotImplementedError

    before = open_descriptors()
    loop = Loop()
    with pytest.raises(NotImplementedError):
        LoopReader(loop, never_interrupted)
    loop.close()
    until(lambda: open_descriptors() <= before)
