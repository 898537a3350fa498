"""Commands that go on until they are told to stop: by a signal, or by a reader of their output that has gone away.

Such a command is a coroutine, and a signal is its cancellation: it surfaces where the command waits, and never in the
middle of something, so whatever is held is given back in good order. The one exception is writing: a reader that does
not read may block that for ever, so a signal breaks it off.

A second signal ends a command that is busy giving back. What it held is then free when its lease has run out. The first
one does not, if it comes that late.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn

from .cli_streams import close_stdout

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
"""A process that goes on after one of these has no idea what it does."""
_HARMLESS = {signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT, signal.SIGPIPE, signal.SIGXFSZ}
"""They end no process, or surface as an error of what was called."""
PAUSING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""They stop this process, for a while: a terminal's Ctrl-Z, and reading and writing there in the background."""
_NEVER = {signal.SIGKILL, signal.SIGSTOP}
ENDING = tuple(sorted({int(number) for number in signal.valid_signals()} - _FAULTS - _HARMLESS - {*PAUSING} - _NEVER))
"""Signals that end a command, or go to the command that it runs: all that would end this process and can be caught."""


class _Over(Exception):
    """The command has ended in the midst of writing."""


class Lasting:
    """One command that goes on: what may end it, and how it writes."""

    def __init__(self) -> None:
        self.status = 0
        """The exit status if it is ended from outside: 128 and the signal's number, 0 for a reader that has gone."""
        self._ending = False
        self._ends = 0
        self._giving_back = False
        self._writing = False
        self._taker: Callable[[int], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[int] | None = None

    async def run(self, work: Callable[[Lasting], Coroutine[Any, Any, int]]) -> int:
        """Run the command; its exit status. To be called by :func:`lasting`."""
        self._loop = asyncio.get_running_loop()
        with self._handling(ENDING):
            self._task = asyncio.create_task(work(self))
            try:
                return await self._task
            except (_Over, asyncio.CancelledError):
                return self.status

    @contextlib.contextmanager
    def taking_signals(self, taker: Callable[[int], None]) -> Iterator[None]:
        """Within this, signals do not end the command, but are given to ``taker``, in the loop; those that would stop
        this process, too."""
        self._taker = taker
        try:
            with self._handling(PAUSING):
                yield
        finally:
            self._taker = None

    def gives_back(self) -> None:
        """From now on the first signal of all changes nothing: the command is ending already."""
        self._giving_back = True

    def write(self, output: Callable[[], None]) -> None:
        """Have something written to stdout, and flush it. A closed pipe, or a signal while that blocks, ends it all."""
        self._writing = True
        try:
            if self._ending:  # before it could surface: a command that has much to write may not have waited since
                raise _Over
            output()
            sys.stdout.flush()
        except BrokenPipeError:
            close_stdout()
            raise _Over from None
        except _Over:
            close_stdout()
            raise
        finally:
            self._writing = False

    @contextlib.contextmanager
    def while_read(self) -> Iterator[None]:
        """Within this, the command ends as soon as nobody can read what it writes, not only when it next writes."""
        assert self._loop is not None
        try:
            errors = select.epoll()
        except AttributeError:  # no Linux: the next write tells
            yield
            return
        with errors:
            try:
                errors.register(sys.stdout.fileno(), 0)  # hang-ups and errors are always told
            except (OSError, ValueError):  # a file: it never closes
                yield
                return
            self._loop.add_reader(errors.fileno(), self._unread, errors)
            try:
                yield
            finally:
                self._loop.remove_reader(errors.fileno())

    # -- how it ends --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handling(self, numbers: Iterable[int]) -> Iterator[None]:
        before: dict[int, Any] = {}
        for number in numbers:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # as nohup and shells leave it for what runs in the background
                # Not the main thread: somebody else looks after signals; or a number that this system keeps to itself.
                with contextlib.suppress(ValueError, OSError):
                    signal.signal(number, self._on_signal)
                    before[number] = handler
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Python calls this between any two instructions of the main thread, so it does next to nothing."""
        assert self._loop is not None
        if self._taker is not None or number in PAUSING:
            self._loop.call_soon_threadsafe(self._take, number)
            return
        if not self._ending:
            self._ending, self.status = True, 128 + number
        if self._writing:
            self._writing = False
            raise _Over
        self._loop.call_soon_threadsafe(self._end)

    def _unread(self, errors: Any) -> None:
        assert self._loop is not None
        self._loop.remove_reader(errors.fileno())
        close_stdout()
        self._ending = True
        self._end()

    def _take(self, number: int) -> None:
        if self._taker is not None:
            self._taker(number)
        elif number in PAUSING:
            stop_here(number)
        else:
            self._on_signal(number, None)

    def _end(self) -> None:
        self._ends += 1
        if self._task is not None and not (self._giving_back and self._ends == 1):
            self._task.cancel()


def stop_here(number: int) -> None:
    """Stop this process by a signal that was caught, unless nobody is there who could have it continue, as the kernel
    sees it. The signal goes to this very thread, which therefore does not run on meanwhile."""
    caught = signal.signal(number, signal.SIG_DFL)
    signal.pthread_kill(threading.get_ident(), number)
    signal.signal(number, caught)


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """For a command that does not go on, but begins something that has to be undone if it does not come to its end:
    within this, a signal that would end the process raises ``SystemExit``, wherever that is."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    taken = []
    for number in ENDING:
        with contextlib.suppress(ValueError, OSError):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def lasting(work: Callable[[Lasting], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command that goes on, until it ends or is ended, and leave with its exit status.

    Args:
        work: makes the command's coroutine, whose result is the exit status.

    Raises:
        SystemExit: always, unless the command raised something else.
    """
    raise SystemExit(asyncio.run(Lasting().run(work)))
