"""A part of a loop's time, for one kind of work.

What the work takes is measured, and what it has taken beyond its part is waited for. A rate would not do: where a
machine is slow, or busy with something else, the same number of things takes more of the time. Of one step only so much
is counted: the rest of a long one is rather a stall of the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class LoopShare:
    """See the module.

    Args:
        clock: monotonic seconds.
        fraction: of the time.
        at_once_s: seconds of work that may be done at once after a rest.
        longest_pause_s: seconds; what work has taken beyond that is forgotten.
        counts: whether the part is bounded now; otherwise work takes what it needs, and nothing is remembered of it.
        longest_step_s: seconds; what one step has taken beyond that is not counted.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        fraction: float,
        at_once_s: float,
        longest_pause_s: float,
        counts: Callable[[], bool] = lambda: True,
        longest_step_s: float = math.inf,
    ) -> None:
        self.clock = clock
        self._counts = counts
        self._fraction = fraction
        self._at_once_s = at_once_s
        self._longest_pause_s = longest_pause_s
        self._longest_step_s = longest_step_s
        self._left = at_once_s
        self._at = clock()

    def spend(self, began: float) -> None:
        """Work that began then, by the clock, ends now."""
        now = self.clock()
        self._refill(now)
        if self._counts():
            self._left -= min(now - began, self._longest_step_s)
            self._forget()

    def pause(self) -> float:
        """Seconds until there may be more of it; 0 for now."""
        self._refill(self.clock())
        return max(0.0, -self._left / self._fraction) if self._counts() else 0.0

    def set_fraction(self, fraction: float) -> None:
        """From now on it is another part."""
        self._refill(self.clock())
        self._fraction = fraction
        self._forget()

    def _forget(self) -> None:
        self._left = max(self._left, -self._longest_pause_s * self._fraction)

    def _refill(self, now: float) -> None:
        self._left = min(self._at_once_s, self._left + (now - self._at) * self._fraction)
        self._at = now


class MeasuredSteps(Coroutine[Any, Any, T]):
    """A coroutine whose steps are spent, and not the time that it waits between them.

    Args:
        steps: the coroutine.
        share: what they are part of.
    """

    def __init__(self, steps: Coroutine[Any, Any, T], share: LoopShare) -> None:
        self._steps = steps
        self._share = share

    def send(self, value: Any) -> Any:
        """See ``Coroutine``."""
        began = self._share.clock()
        try:
            return self._steps.send(value)
        finally:
            self._share.spend(began)

    def throw(self, typ: Any, val: BaseException | object = None, tb: TracebackType | None = None) -> Any:
        """See ``Coroutine``."""
        return self._steps.throw(typ if val is None else val)  # type: ignore[arg-type]

    def close(self) -> None:
        """See ``Coroutine``."""
        self._steps.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._steps.__await__()
