"""Threads of which one at most is to run at a time, and that are started again whenever they are needed.

A flag that says "it is being done", set before the thread starts, stays set if the thread then does not start: a signal
handler of the user's may raise in between (Ctrl-C), or the system has no thread left. So the flag is a claim, which the
starter gives up if the thread has not begun; and a thread whose claim was given up ends at once. Which of the two came
first is one step of a dict.

What cannot do without its thread uses :func:`start_thread`, which says by its error that the system had none left: that
passes, so a member that starts tries again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class NoThreadLeft(RuntimeError):
    """The system has no thread left, or no memory for one. It may have later."""


def lacks_thread(error: RuntimeError) -> bool:
    """Whether an error says that the system has no thread left. For what starts threads by itself, as executors do."""
    return type(error) is RuntimeError and "new thread" in str(error)


def start_thread(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        NoThreadLeft: there is none to be had.
    """
    try:
        thread.start()
    except RuntimeError as error:  # or what a signal handler of the user's raises
        if lacks_thread(error):
            raise NoThreadLeft(f"no thread could be started for {thread.name!r}: {error}") from None
        raise


class OneThread:
    """See the module. Any thread; never blocks, and is safe under any lock."""

    __slots__ = ("_claims",)

    def __init__(self) -> None:
        self._claims: dict[str, object] = {}
        """The one under which a thread runs, or is being started."""

    @property
    def runs(self) -> bool:
        """Whether a thread runs, or is being started."""
        return bool(self._claims)

    def start(self, run: Callable[[], object], name: str) -> bool:
        """Start a daemon thread, unless one runs; False if there is none to be had."""
        if self._claims:
            return True
        claim = object()
        begun: dict[str, bool] = {}

        def begin() -> None:
            if not begun.setdefault("is", True):
                return
            try:
                run()
            finally:
                self._give_up(claim)

        try:
            if self._claims.setdefault("is", claim) is claim:
                start_thread(threading.Thread(target=begin, name=name, daemon=True))
            return True
        except BaseException as error:
            if not begun.setdefault("is", False):
                self._give_up(claim)
            if isinstance(error, NoThreadLeft):
                return False
            raise

    def done(self) -> None:
        """For the thread that runs: what it has to do is done, and from here on another may be started. Its owner calls
        this under the lock under which it decides whether one is needed."""
        self._claims.clear()

    def _give_up(self, claim: object) -> None:
        if self._claims.get("is") is claim:
            self._claims.pop("is", None)
