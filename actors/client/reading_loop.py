"""Which event loop may take in a hub's replies itself: the one whose coroutines wait for all of them.

Any loop may be held up by the user's code for any time. So it reads lanes only while nothing but its own coroutines
depends on that. Two things have to be looked at:

- *Calls.* Those of another caller may have to wait in the hub until a reply to the loop's is taken in, even if they
  then travel on another lane. So a loop reads while all open calls are its own.
- *Polls of watches.* A reply to a poll is for all watches of the process, and a poll hangs for long: watches come and
  go meanwhile. So polls are the loop's while it has all the watches, and the transport is told of every change.

When either ends, lanes are taken back at once. All methods are for the hub, under its lock unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Set

from ..transport.client_transport import ClientTransport
from ..transport.loop_reader import LoopReader


class ReadingLoop:
    """Decides which loop it is, if there is one.

    Args:
        transport: whose lanes the loops read.
    """

    def __init__(self, transport: ClientTransport) -> None:
        self._transport = transport
        self._submitted_last: LoopReader | None = None
        """``None`` if another caller has, since a loop did."""
        self._watching: tuple[LoopReader | None, bool] = None, True
        """The loop that has all watches; and whether there are none."""
        self._must_take_back = False

    def submitting(self, loop: LoopReader | None, calls: int, open_calls: int) -> None:
        """Calls are about to be submitted.

        Args:
            loop: of the coroutines whose calls they are; ``None`` for another caller's.
            calls: how many they are.
            open_calls: how many calls the hub has open before.
        """
        if self._submitted_last is not loop:
            self._must_take_back |= self._submitted_last is not None
            self._submitted_last = loop
        if loop is not None:
            if not open_calls:
                loop.open_calls = 0  # an interrupt may have left another number
            loop.open_calls += calls

    def loop(self, open_calls: int) -> LoopReader | None:
        """The loop that may take in the replies to calls.

        Args:
            open_calls: how many calls the hub has open now.
        """
        loop = self._submitted_last
        return loop if loop is not None and loop.open_calls == open_calls else None

    def watches_of(self, loops: Set[object | None], open_calls: int) -> None:
        """Which loops have watches now; ``None`` among them if a thread has one."""
        only = next(iter(loops)) if len(loops) == 1 else None
        watching = only if isinstance(only, LoopReader) else None, not loops
        if watching != self._watching:
            # No matter who could do so before, none but the loop that has all watches may go on reading.
            self._must_take_back |= bool(loops) and self.loop(open_calls) is not only
            self._watching = watching
            self._transport.set_poll_audience(watching[0], empty=watching[1])

    def take_back_if_needed(self) -> None:
        """Take lanes back from a loop that may read no longer. Without the lock, before the next frame is sent."""
        if self._must_take_back:
            self._must_take_back = False
            self._transport.take_back()
