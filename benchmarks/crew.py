"""Client processes, as the coordinator sees them."""

from __future__ import annotations

import contextlib
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from faces import Address
from loads import serve

START_TIMEOUT = 90.0
"""Seconds for a client to connect."""


class Failed(Exception):
    """A client process could not do what it was asked to."""


class ClientProcess:
    """One process with one connection to a system."""

    def __init__(self, kind: str, address: Address) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe: Connection
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=serve, args=(theirs, kind, address), daemon=True)
        self._process.start()
        theirs.close()
        self.pid = self._process.pid or 0

    def ready(self) -> None:
        """Wait until it is connected."""
        self.answer(START_TIMEOUT)

    def ask(self, name: str, *arguments: Any) -> None:
        """Have it do something; :meth:`answer` waits for that."""
        self._pipe.send((name, arguments))

    def answer(self, timeout: float = 300.0) -> Any:
        """What it answers.

        Raises:
            Failed: it raised something, died, or is not done in time.
        """
        try:
            if not self._pipe.poll(timeout):
                raise Failed(f"no answer from a client process within {timeout:g} s")
            right, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise Failed("a client process died") from error
        if not right:
            raise Failed(str(value))
        return value

    def do(self, name: str, *arguments: Any, timeout: float = 300.0) -> Any:
        """Have it do something, and wait."""
        self.ask(name, *arguments)
        return self.answer(timeout)

    def end(self) -> None:
        """Close its connection and end it; a process that does not close in time is killed."""
        with contextlib.suppress(OSError, ValueError):
            self._pipe.send(("close", ()))
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(10)
        self._pipe.close()


class Crew:
    """Some client processes; a context manager. They connect all at once, and are ended together."""

    def __init__(self, kind: str, address: Address, count: int) -> None:
        self.clients: list[ClientProcess] = []
        self._start = (kind, address, count)

    def __enter__(self) -> Crew:
        kind, address, count = self._start
        try:
            for _ in range(count):
                self.clients.append(ClientProcess(kind, address))
            for client in self.clients:
                client.ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for client in self.clients:
            client.end()
