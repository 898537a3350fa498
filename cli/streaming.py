"""Commands that run until they are stopped: by a signal, or by a reader of their output that has gone.

Such a command is a coroutine, and a signal cancels it: the cancellation is raised where the command waits, never in the
middle of a step, so what it holds is released in order. Writing is the exception: a reader that does not read may block
it forever, so a signal interrupts it.

A second signal ends a command that is busy releasing; what it held then becomes free when its lease expires. The first
signal does not, if it comes that late.
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

from .stdio import close_stdout

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
"""After one of these the state of a process is undefined, so they are not caught."""
_HARMLESS = {signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT, signal.SIGPIPE, signal.SIGXFSZ}
"""They do not end a process, or appear as the error of a system call."""
PAUSING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""They stop this process for a while: a terminal's Ctrl-Z, and terminal input and output in the background."""
_NEVER = {signal.SIGKILL, signal.SIGSTOP}
ENDING = tuple(sorted({int(number) for number in signal.valid_signals()} - _FAULTS - _HARMLESS - {*PAUSING} - _NEVER))
"""Signals that end a command, or go to its child: all that would end this process and can be caught."""


class _OutputClosed(Exception):
    """The command was ended in the middle of writing."""


class StreamingCommand:
    """One running command: what may end it, and how it writes."""

    def __init__(self) -> None:
        self.status = 0
        """The exit status if it is ended from outside: 128 plus the signal's number, 0 for a reader that has gone."""
        self._ending = False
        self._ends = 0
        self._releasing = False
        self._writing = False
        self._signal_receiver: Callable[[int], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[int] | None = None

    async def run(self, work: Callable[[StreamingCommand], Coroutine[Any, Any, int]]) -> int:
        """Run the command and return its exit status. Called by :func:`run_streaming`."""
        self._loop = asyncio.get_running_loop()
        with self._handling(ENDING):
            self._task = asyncio.create_task(work(self))
            try:
                return await self._task
            except (_OutputClosed, asyncio.CancelledError):
                return self.status

    @contextlib.contextmanager
    def taking_signals(self, receiver: Callable[[int], None]) -> Iterator[None]:
        """In this context signals do not end the command, but are passed to ``receiver``, in the loop; also those that
        would stop this process."""
        self._signal_receiver = receiver
        try:
            with self._handling(PAUSING):
                yield
        finally:
            self._signal_receiver = None

    def start_release(self) -> None:
        """From now on the first signal has no effect: the command is ending already."""
        self._releasing = True

    def write(self, output: Callable[[], None]) -> None:
        """Write to stdout and flush it. A closed pipe, or a signal while that blocks, ends the command."""
        self._writing = True
        try:
            if self._ending:  # a command that writes much may not have waited since the signal came
                raise _OutputClosed
            output()
            sys.stdout.flush()
        except BrokenPipeError:
            close_stdout()
            raise _OutputClosed from None
        except _OutputClosed:
            close_stdout()
            raise
        finally:
            self._writing = False

    @contextlib.contextmanager
    def ending_when_unread(self) -> Iterator[None]:
        """In this context the command ends as soon as its reader has gone, not only when it next writes."""
        assert self._loop is not None
        try:
            errors = select.epoll()
        except AttributeError:  # not Linux: the next write detects it
            yield
            return
        with errors:
            try:
                errors.register(sys.stdout.fileno(), 0)  # hang-ups and errors are always reported
            except (OSError, ValueError):  # a file: it never closes
                yield
                return
            self._loop.add_reader(errors.fileno(), self._unread, errors)
            try:
                yield
            finally:
                self._loop.remove_reader(errors.fileno())

    # -- ending -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handling(self, numbers: Iterable[int]) -> Iterator[None]:
        before: dict[int, Any] = {}
        for number in numbers:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # as nohup and shells set it for background processes
                # Not the main thread, where signals are handled; or a number that this system reserves.
                with contextlib.suppress(ValueError, OSError):
                    signal.signal(number, self._on_signal)
                    before[number] = handler
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Python calls this between any two instructions of the main thread, so it does as little as possible."""
        assert self._loop is not None
        if self._signal_receiver is not None or number in PAUSING:
            self._loop.call_soon_threadsafe(self._take, number)
            return
        if not self._ending:
            self._ending, self.status = True, 128 + number
        if self._writing:
            self._writing = False
            raise _OutputClosed
        self._loop.call_soon_threadsafe(self._end)

    def _unread(self, errors: Any) -> None:
        assert self._loop is not None
        self._loop.remove_reader(errors.fileno())
        close_stdout()
        self._ending = True
        self._end()

    def _take(self, number: int) -> None:
        if self._signal_receiver is not None:
            self._signal_receiver(number)
        elif number in PAUSING:
            stop_here(number)
        else:
            self._on_signal(number, None)

    def _end(self) -> None:
        self._ends += 1
        if self._task is not None and not (self._releasing and self._ends == 1):
            self._task.cancel()


def stop_here(number: int) -> None:
    """Stop this process by a signal that was caught. The kernel ignores it in an orphaned process group, which nothing
    could continue. The signal goes to this thread, so that it does not run on meanwhile."""
    caught = signal.signal(number, signal.SIG_DFL)
    signal.pthread_kill(threading.get_ident(), number)
    signal.signal(number, caught)


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """For a command that ends by itself, but starts something that must be undone if it is interrupted: in this context
    a signal that would end the process raises ``SystemExit``, wherever that is."""

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


def run_streaming(work: Callable[[StreamingCommand], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command until it ends or is ended, and exit with its status.

    Args:
        work: creates the command's coroutine, whose result is the exit status.

    Raises:
        SystemExit: always, unless the command raised something else.
    """
    raise SystemExit(asyncio.run(StreamingCommand().run(work)))
