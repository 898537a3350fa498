"""`raykeeper lock NAME -- COMMAND`: its command gets the signals, while it is made a process too, and ends with it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.patience import PATIENCE, until
from raykeeper.actors.client.leases import LossEvent
from raykeeper.cli import lock
from raykeeper.cli.streaming import StreamingCommand, run_streaming

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
    stream = StreamingCommand()

    async def slow(*command: str, env: dict[str, str]) -> asyncio.subprocess.Process:
        child = await begin(*command, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        assert child.stdin is not None
        assert child.stdout is not None
        assert await asyncio.wait_for(child.stdout.readline(), PATIENCE) == b"ready\n"
        for number in numbers:
            if terminal and number == signal.SIGINT:
                child.send_signal(number)  # as the terminal does, to both
                assert await asyncio.wait_for(child.stdout.readline(), PATIENCE) == b"got\n"
            assert stream._signal_receiver is not None
            stream._signal_receiver(number)
        asyncio.get_running_loop().call_soon(child.stdin.write, b"end\n")
        return child

    monkeypatch.setattr(lock, "_terminal_told", lambda number: terminal and number == signal.SIGINT)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    work: Any = lock._run(stream, [sys.executable, "-c", COUNTING], dict(os.environ), LossEvent(), 5.0, "it")
    return asyncio.run(work)


def test_ctrl_c_of_a_terminal_reaches_a_command_that_is_being_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_after(monkeypatch, [signal.SIGINT], terminal=True) == 10


def test_other_signals_are_kept_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_after(monkeypatch, [signal.SIGINT], terminal=False) == 10
    assert status_after(monkeypatch, [signal.SIGTERM], terminal=True) == 1


# --- all signals -----------------------------------------------------------------------------------------------------

HOLDERS = """
import os, sys
from raykeeper.cli import lock
from raykeeper.actors.client.leases import LossEvent
from raykeeper.cli.streaming import run_streaming

def hold(write):
    os.setpgid(0, 0)  # as a shell has its jobs
    os.dup2(write, 1)
    command = ["sh", "-c", "echo $$; exec sleep 100 >/dev/null"]
    run_streaming(lambda stream: lock._run(stream, command, dict(os.environ), LossEvent(), 5.0, "it"))

for _ in range(int(sys.argv[1])):
    read, write = os.pipe()
    holder = os.fork()
    if not holder:
        try:
            hold(write)
        except SystemExit as end:
            os._exit(end.code or 0)
        finally:
            os._exit(99)
    os.close(write)
    print(holder, os.read(read, 100).decode().strip(), flush=True)
sys.stdin.read()
"""


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def gone(pid: int) -> bool:
    return state(pid) in "ZX"


@contextmanager
def holders(count: int) -> Iterator[list[tuple[int, int]]]:
    """This many processes that hold something, each with its command, in the middle of it."""
    program = [sys.executable, "-c", HOLDERS, str(count)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None
        pairs = []
        for _ in range(count):
            holder, command = map(int, made.stdout.readline().split())
            pairs.append((holder, command))
        try:
            yield pairs
        finally:
            for pid in itertools.chain(*pairs):
                if not gone(pid):
                    os.kill(pid, signal.SIGKILL)


def test_no_signal_ends_the_holder_and_leaves_its_command() -> None:
    """All that can be sent, but for those that end nothing and those that only stop: SIGKILL is among them."""
    harmless = {signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT, signal.SIGPIPE, signal.SIGXFSZ}
    stopping = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    numbers = sorted(int(number) for number in signal.valid_signals() - harmless - stopping)
    with holders(len(numbers)) as pairs:
        for (holder, _), number in zip(pairs, numbers, strict=True):
            os.kill(holder, number)
        deadline = time.monotonic() + PATIENCE
        while left := [
            signal.Signals(number).name if number < 32 else number
            for pair, number in zip(pairs, numbers, strict=True)
            if not all(map(gone, pair))
        ]:
            assert time.monotonic() < deadline, f"after these a process is still there: {left}"
            time.sleep(0.05)


def test_a_command_stops_with_its_holder_and_goes_on_with_it() -> None:
    """Nobody keeps what is held while the holder is stopped, so the command must not go on alone."""
    with holders(3) as pairs:
        for (holder, command), number in zip(pairs, (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU), strict=True):
            for _ in range(2):
                os.kill(holder, number)
                until(lambda holder=holder, command=command: state(holder) == state(command) == "T")
                os.kill(holder, signal.SIGCONT)
                until(lambda holder=holder, command=command: state(holder) == state(command) == "S")
            os.kill(holder, number)
            until(lambda holder=holder, command=command: state(holder) == state(command) == "T")
            os.kill(holder, signal.SIGTERM)
            os.kill(holder, signal.SIGCONT)  # as a shell does that ends a job that it has seen stop
            until(lambda holder=holder, command=command: gone(holder) and gone(command))


def test_a_command_that_was_stopped_gets_a_signal_all_the_same() -> None:
    with holders(1) as [(holder, command)]:
        os.kill(command, signal.SIGSTOP)
        until(lambda: state(command) == "T")
        os.kill(holder, signal.SIGTERM)
        until(lambda: gone(holder) and gone(command))


def test_a_command_that_was_stopped_may_clean_up_when_its_lock_is_lost(tmp_path: Path) -> None:
    done, pid, loss = tmp_path / "done", tmp_path / "pid", LossEvent()
    trap = f"trap 'echo cleaned > {done}; exit 0' TERM; echo $$ > {pid}; kill -STOP $$; while :; do sleep 0.05; done"

    async def work() -> int:
        running = asyncio.ensure_future(
            lock._run(StreamingCommand(), ["sh", "-c", trap], dict(os.environ), loss, 60.0, "it")
        )
        await asyncio.to_thread(until, lambda: pid.exists() and pid.read_text() and state(int(pid.read_text())) == "T")
        loss.set()
        return await asyncio.wait_for(running, PATIENCE)

    assert asyncio.run(work()) == lock.LOST
    assert done.read_text() == "cleaned\n"


@pytest.mark.parametrize(("signals", "status"), [(0, 7), (1, 7), (2, 128 + signal.SIGTERM)])
def test_releasing_is_broken_off_by_a_second_signal_only(signals: int, status: int) -> None:
    gave = []

    async def work(stream: StreamingCommand) -> int:
        try:
            await asyncio.sleep(0)
            return 7
        finally:
            stream.start_release()
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.02)
            gave.append(True)

    with pytest.raises(SystemExit) as ended:
        run_streaming(work)
    assert ended.value.code == status
    assert bool(gave) == (signals < 2)


@pytest.mark.parametrize(
    ("command", "status"), [(["/nonexistent"], 127), (["/etc/passwd"], 126), (["sh", "-c", "exit 7"], 7), ([""], 127)]
)
def test_the_status_of_a_command(command: list[str], status: int, capfd: pytest.CaptureFixture[str]) -> None:
    work: Any = lock._run(StreamingCommand(), command, dict(os.environ), LossEvent(), 5.0, "it")
    assert asyncio.run(work) == status
    assert capfd.readouterr().err.count("\n") == (status > 100)


def test_a_command_gets_its_arguments_and_its_signals_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    """The bytes of arguments; nothing ignored or blocked that was not before."""
    see = "printf '%s\\n' \"$1\"; grep -E '^Sig(Blk|Ign)' /proc/self/status"
    command = ["sh", "-c", see, "sh", os.fsdecode(b"\xe9\xff")]
    before = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(("SigBlk", "SigIgn"))
    ]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    work: Any = lock._run(StreamingCommand(), command, dict(os.environ), LossEvent(), 5.0, "it")
    assert asyncio.run(work) == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    said = os.fsencode(capfd.readouterr().out).splitlines()
    python_ignores = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    ignored = int(before[1].split()[1], 16) & ~python_ignores
    assert said[0] in (b"\xe9\xff", b"\\udce9\\udcff", "\ufffd\ufffd".encode())
    assert said[1].split()[1] == before[0].split()[1].encode()
    assert int(said[2].split()[1], 16) == ignored
