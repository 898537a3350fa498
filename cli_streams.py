"""What a command reads and writes: its three streams, whatever they are.

A terminal may be unable to show a letter, a disk may be full, a reader may have gone, a stream may be closed. Letters
that the terminal does not know are escaped; all else ends the command with status 1, and with one line on stderr unless
it is only the reader who has gone. It must be noticed before Python's own end, which would answer with a traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO, TypeVar

import click

from .errors import RequestTooLarge

T = TypeVar("T")


def speaking(main: Callable[[], T]) -> T:
    """Run all of a command, and see that what it has written has arrived."""
    _complete()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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


MAX_STDIN = 256 * 1024 * 1024
"""Bytes of it that are read: more than a cluster takes in one request, unless its limits were raised a hundredfold."""


def stdin() -> bytes:
    """All of stdin.

    Raises:
        RequestTooLarge: it has no end, or as good as none.
    """
    said = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(said) > MAX_STDIN:
        raise RequestTooLarge(f"stdin has more than {MAX_STDIN} bytes")
    return said


def write(data: bytes) -> None:
    """Write bytes as they are."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def tell(message: str) -> None:
    """Say on stderr what went wrong, in one line. If that cannot be written, the exit status has to do."""
    try:
        click.echo(f"raykeeper: {' '.join(message.split())}", err=True)
    except OSError:
        _close(sys.stderr)


def close_stdout() -> None:
    """Whatever is still to be written, at the end of the process too, must neither fail nor block."""
    _close(sys.stdout)


def _close(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _complete() -> None:
    """Open what was closed when the process began, so that no socket gets the number of a stream. Reading and writing
    there fails, as it should."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        mode, opened = ("w", os.O_RDONLY) if number else ("r", os.O_WRONLY)
        descriptor = os.open(os.devnull, opened)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
