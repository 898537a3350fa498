"""The three standard streams of a command, in whatever state they are.

A terminal may be unable to show a character, a disk may be full, a reader may have gone, a stream may be closed.
Characters that the terminal cannot show are escaped. Everything else ends the command with status 1, and with one line
on stderr unless only the reader has gone. That must be detected before Python shuts down, which would print a
traceback.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TextIO, TypeVar

import click

from ..errors import RequestTooLarge
from ..limits import MAX_STDIN_BYTES

T = TypeVar("T")


def run_with_streams(main: Callable[[], T]) -> T:
    """Run a whole command, and make sure that its output has been written."""
    open_closed_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # by what it can do: it may be wrapped
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except OSError as error:
        close_stdout()
        if not isinstance(error, BrokenPipeError):
            where = f"{error.filename!r}: " if error.filename is not None else ""
            tell(f"{where}{error.strerror or error}")
        raise SystemExit(1) from None


def read_stdin(what: str) -> bytes:
    """All of stdin.

    Args:
        what: it is. At a terminal this is told: otherwise the command would seem to hang.

    Raises:
        RequestTooLarge: it is longer than ``MAX_STDIN_BYTES``.
    """
    if sys.stdin.isatty():
        tell(f"{what} is read from this terminal, up to Ctrl-D at the beginning of a line")
    said = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    _check_length(len(said))
    return said


def read_stdin_lines() -> Iterator[bytes]:
    """The lines of stdin, each as soon as it is there, with its newline; the last may have none.

    Raises:
        RequestTooLarge: all of them are longer than ``MAX_STDIN_BYTES``.
    """
    length = 0
    while line := sys.stdin.buffer.readline(MAX_STDIN_BYTES + 1 - length):
        length += len(line)
        _check_length(length)
        yield line


def _check_length(length: int) -> None:
    if length > MAX_STDIN_BYTES:
        raise RequestTooLarge(f"stdin has more than {MAX_STDIN_BYTES} bytes")


def write_bytes(data: bytes) -> None:
    """Write bytes as they are."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


class UnfinishedLine:
    """A line on stderr that is begun now and ended later, such as a step and the seconds that it took. What is told
    meanwhile gets a line of its own, and the unfinished one is written again at its end.

    Args:
        begin: how the line begins.
    """

    _last: UnfinishedLine | None = None
    """The one that stderr ends with."""

    def __init__(self, begin: str) -> None:
        self._begin = begin
        UnfinishedLine.leave()
        click.echo(begin, nl=False, err=True)
        UnfinishedLine._last = self

    def end(self, rest: str) -> None:
        """Write the rest of the line."""
        whole = UnfinishedLine._last is self
        if not whole:
            UnfinishedLine.leave()
        UnfinishedLine._last = None
        click.echo(rest if whole else f"{self._begin}{rest}", err=True)

    @staticmethod
    def leave() -> None:
        """Something else is to be written: it gets a line of its own."""
        if UnfinishedLine._last is not None:
            UnfinishedLine._last = None
            click.echo(err=True)


def tell(message: str) -> None:
    """Report on stderr what went wrong, in one line. If that cannot be written, the exit status must suffice."""
    try:
        UnfinishedLine.leave()
        click.echo(f"raykeeper: {' '.join(message.split())}", err=True)
    except OSError:
        _close(sys.stderr)


def tell_bug(error: Exception) -> None:
    """Report an error that no command should end with: one line, and the traceback in a file for a report."""
    import tempfile
    import traceback

    where = ""
    with contextlib.suppress(OSError):
        number, path = tempfile.mkstemp(prefix="raykeeper-error-", suffix=".txt")
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(type(error), error, error.__traceback__, file=file)
        where = f"; {path} has the traceback, for a report"
    tell(f"a bug: {type(error).__name__}: {error}{where}")


def close_stdout() -> None:
    """Discard further output: writing, also at the end of the process, must neither fail nor block."""
    _close(sys.stdout)


def _close(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_closed_streams() -> None:
    """Open streams that were closed when the process started, so that no socket gets the descriptor of one. Reading and
    writing them fails, as it should."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        mode, opened = ("w", os.O_RDONLY) if number else ("r", os.O_WRONLY)
        descriptor = os.open(os.devnull, opened)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
