"""What a hub asks of whatever carries its frames: implemented by actor calls (``client_actor.py``), and by lanes with
actor calls to fall back on (``client_lanes.py``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:  # a shell that opens no lane loads neither, nor asyncio
    from .loop_reader import LoopReader
    from .waiter import LaneReader, OutcomeWaiter

ReplyReceiver = Callable[[bytes | Exception], None]
"""Is called once, on any thread, with the reply or with the reason for having none."""

Reader: TypeAlias = "OutcomeWaiter[Any] | LoopReader"
"""Who can take in a reply itself: a thread that waits for it, or the event loop whose coroutines do."""

FrameSender = Callable[[int, bytes, ReplyReceiver], None]
"""Sends a frame to a member; its reply goes to the receiver."""


class FrameTransport(Protocol):
    """How frames travel to members and replies come back.

    ``send`` and ``poll`` never block, and never call Ray on the calling thread: that may be the thread on which Ray
    delivers results.
    """

    def send(self, member: int, frame: bytes, done: ReplyReceiver) -> None:
        """Send a frame; ``done`` gets its reply."""
        ...

    def poll(self, member: int, frame: bytes, done: ReplyReceiver) -> None:
        """Send a poll of watches. As ``send``, but the reply may take a long time and must delay no other."""
        ...

    @property
    def node(self) -> str:
        """Id of the Ray node that this process is on; empty if there is none."""
        ...

    def members(self) -> dict[int, str]:
        """Names of the reachable members by id, as last looked up."""
        ...

    def refresh(self) -> None:
        """Look the members up again. May block."""
        ...

    def valid(self) -> bool:
        """Whether the process is still attached to the Ray in which this transport was made."""
        ...

    def close(self) -> None:
        """Send what was handed in, and release everything. Never blocks; may be called again."""
        ...


class ClientTransport(FrameTransport, Protocol):
    """... with replies that those who wait for them may take in themselves."""

    def send_alone(self, member: int, frame: bytes, done: ReplyReceiver, reader: Reader) -> LaneReader | None:
        """As ``send``, on a reader's own thread, while no other caller waits for anything.

        Returns:
            What a thread reads to take in the reply itself (``OutcomeWaiter.lanes``), and what the loop will read;
            ``None`` if the reply comes on another thread.
        """
        ...

    def set_poll_audience(self, loop: LoopReader | None, *, empty: bool) -> None:
        """Whom the replies to polls are for from now on: see ``PollAudience``."""
        ...

    def is_held_here(self) -> bool:
        """Whether this thread holds a lock of the transport's: only if it was interrupted in a critical section. A call
        that it makes then might wait for a thread that waits for that lock."""
        ...

    def take_back(self, *, if_overdue: bool = False) -> None:
        """Take in the replies that have arrived for those who were to take them in themselves; later ones are taken in
        on a thread of the transport's. Never blocks.

        Args:
            if_overdue: an event loop goes on taking in replies if none has arrived that it has not taken in.
        """
        ...


class OnOwnThreads:
    """Makes a ``ClientTransport`` of a ``FrameTransport`` whose replies come on threads of its own, all of them."""

    def send_alone(
        self: FrameTransport, member: int, frame: bytes, done: ReplyReceiver, reader: Reader
    ) -> LaneReader | None:
        """See ``ClientTransport``."""
        self.send(member, frame, done)
        return None

    def set_poll_audience(self, loop: LoopReader | None, *, empty: bool) -> None:
        """See ``ClientTransport``."""

    def is_held_here(self) -> bool:
        """See ``ClientTransport``."""
        return False

    def take_back(self, *, if_overdue: bool = False) -> None:
        """See ``ClientTransport``."""
