"""A client's request on its way through a member: how it arrived, and where its reply goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...schema.client_identity import ClientIdentity
from ...schema.commands import Caller
from ...schema.frames import BareRequest, Refused, Reply
from ...schema.replies import MakeReply, SlowReply, reply_bytes
from ..transport.lane_server import Lane

ReplyCallback = Callable[[MakeReply], None]


class AskedRequest(NamedTuple):
    """A request, how it arrived, and where its reply goes."""

    arrival: float
    """On the member's clock; so is the deadline."""
    deadline: float
    done: ReplyCallback
    caller: Caller | None
    """Who sent it; ``None`` while users are not needed."""
    request: BareRequest
    lane: Lane | None = None
    """The lane that it came on, if it came on one."""
    said: ClientIdentity | None = None
    """Which process sent it, as it says itself."""
    in_loop: bool = False
    """Whether it is handled on the loop's thread, between two turns."""

    def once_allowed(self, make: Callable[[], bytes], quick: bool = False) -> Callable[[Refused | None], None]:
        """What answers it once the loop has allowed it, or has refused it.

        Args:
            make: makes the reply: in the loop if that is ``quick``, else on another thread.
        """
        done = self.done

        def allowed(refused: Refused | None) -> None:
            if refused is not None:
                finish(done, refused)
            else:
                done(make if quick else SlowReply(make))

        return allowed


def finish(done: ReplyCallback, reply: Reply) -> None:
    """Answer with a reply that is there already."""
    done(lambda: reply_bytes(reply))
