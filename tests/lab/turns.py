"""A stand-in for the turn of a member, whose state is whatever the test has just now."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from raykeeper.actors.member.turn import Turn


class _Current:
    def __init__(self, state: Callable[[], Any]) -> None:
        self._state = state
        self.most = -math.inf

    @property
    def state(self) -> Any:
        return self._state()


def turn_of(state: Callable[[], Any]) -> Turn:
    """A turn that asks for the state again each time."""
    return cast("Turn", _Current(state))
