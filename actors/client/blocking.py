"""How a blocking handle runs the steps of a call: in the calling thread."""

from __future__ import annotations

from typing import TypeVar

from ...errors import KeeperError
from .base import Handle
from .hub import Hub, clock
from .view import Steps

T = TypeVar("T")


class Blocking(Handle):
    """Runs the steps of calls one after another; :mod:`handle` declares the calls."""

    def _run(self, steps: Steps[T], timeout: float | None) -> T:
        """Run the steps of a call, waiting for each outcome, within one timeout for all of them."""
        self._check_open()
        left = self._seconds(timeout)
        deadline = clock() + left
        try:
            request = next(steps)
            hub = self._hub(left)
            left = deadline - clock()
            while True:
                outcome = hub.call(request, left)
                request = steps.throw(outcome) if isinstance(outcome, KeeperError) else steps.send(outcome)

                left = deadline - clock()
        except StopIteration as end:
            result: T = end.value
            return result

    def _hub(self, timeout: float) -> Hub:
        return self._known_hub() or self._open_hub(timeout)
