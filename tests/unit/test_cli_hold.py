"""Signals that come while `raykeeper lock NAME -- COMMAND` makes its command a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any

import pytest

from raykeeper import cli_hold
from raykeeper.actors.client.leases import Loss
from raykeeper.cli_lasting import Lasting

begin = asyncio.create_subprocess_exec

COUNTING = """
import signal, sys
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: got.append(number) or print("got", flush=True))
print("ready", flush=True)
sys.stdin.readline()
sys.exit(10 * got.count(signal.SIGINT) + got.count(signal.SIGTERM))
"""


def status_after(monkeypatch: pytest.MonkeyPatch, numbers: Iterable[int], *, terminal: bool) -> int:
    """What a command says it has got (SIGINT counts ten, SIGTERM one) of signals that came while it was begun."""
    lasts = Lasting()

    async def slow(*command: str, env: dict[str, str]) -> asyncio.subprocess.Process:
        child = await begin(*command, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        assert child.stdin is not None
        assert child.stdout is not None
        assert await asyncio.wait_for(child.stdout.readline(), 20) == b"ready\n"
        for number in numbers:
            if terminal and number == signal.SIGINT:
                child.send_signal(number)  # as the terminal does, to both
                assert await asyncio.wait_for(child.stdout.readline(), 20) == b"got\n"
            assert lasts._taker is not None
            lasts._taker(number)
        asyncio.get_running_loop().call_soon(child.stdin.write, b"end\n")
        return child

    monkeypatch.setattr(cli_hold, "_terminal_told", lambda number: terminal and number == signal.SIGINT)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    work: Any = cli_hold._run(lasts, [sys.executable, "-c", COUNTING], dict(os.environ), Loss(), 5.0, "it")
    return asyncio.run(work)


def test_ctrl_c_of_a_terminal_reaches_a_command_that_is_being_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_after(monkeypatch, [signal.SIGINT], terminal=True) == 10


def test_other_signals_are_kept_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_after(monkeypatch, [signal.SIGINT], terminal=False) == 10
    assert status_after(monkeypatch, [signal.SIGTERM], terminal=True) == 1
