"""What all parts of a member share during one turn of its loop: one reading of the clock, and the state."""

from __future__ import annotations

from ...store.state.machine import State


class Turn:
    """One reading of the clock for the whole turn, and the state machine. The replica sets it; the parts read it.

    Attributes:
        now: seconds that have passed at least, on the member's clock.
        most: seconds that may have passed at most (see ``clock.SteadyClock``); leader leases use it.
        state: the present state machine. A snapshot from the leader replaces it, perhaps in the middle of a turn. Its
            reads may run on any thread.
    """

    __slots__ = ("most", "now", "state")

    def __init__(self, now: float, most: float, state: State) -> None:
        self.now = now
        self.most = most
        self.state = state
