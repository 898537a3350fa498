"""A command that this process runs and that does not outlive it.

When this process is killed, even by SIGKILL, the kernel kills the command too (``PR_SET_PDEATHSIG``, on Linux), so that
it does not continue without the lock held for it. The command's own process must request that before it becomes the
command. Code of ours between fork and exec is not safe in a process with many threads, which Ray makes of this one. So
a small program is started, which requests it and then becomes the command. The kernel watches the thread that forked,
not the process: here that is the main thread, which ends last.

While that program starts, signals are blocked in it: an early one is delivered to the command, and not to a Python that
has only just started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence

from .stdio import tell
from .streaming import stop_here

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit statuses for a command that cannot be run, as in timeout(1)."""

_BECOME = f"""
import ctypes, os, shlex, signal, sys
parent, mask, command = int(sys.argv[1]), [int(number) for number in sys.argv[2].split(",") if number], sys.argv[3:]
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
if os.getppid() != parent:
    os.kill(os.getpid(), signal.SIGKILL)
for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
    if number != signal.SIGINT or signal.getsignal(number) is signal.default_int_handler:
        signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, mask)
try:
    os.execvp(command[0], command)
except (OSError, ValueError) as error:
    why = getattr(error, "strerror", None) or "it has no name"
    print(f"raykeeper: {{shlex.quote(command[0])}} cannot be run: {{why}}", file=sys.stderr)
    sys.exit({NOT_FOUND} if isinstance(error, (FileNotFoundError, ValueError)) else {NOT_EXECUTABLE})
"""


async def start_child(command: Sequence[str], environment: Mapping[str, str]) -> asyncio.subprocess.Process | int:
    """Start a command; returns the exit status instead if it cannot be run, which has been reported on stderr."""
    if not sys.platform.startswith("linux"):
        try:
            return await asyncio.create_subprocess_exec(*command, env=environment)
        except OSError as error:
            tell(f"{shlex.quote(command[0])} cannot be run: {error.strerror}")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        mask = ",".join(str(int(number)) for number in before)
        program = (sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), mask)
        return await asyncio.create_subprocess_exec(*program, *command, env=environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def signal_child(child: asyncio.subprocess.Process, number: int) -> None:
    """Send it a signal, unless it has just ended. A stopped command is continued, to receive it, as timeout(1) does."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)
        child.send_signal(signal.SIGCONT)


def pause_child(child: asyncio.subprocess.Process, number: int, delivered: bool) -> None:
    """Stop this process, and the command first: it must not continue while its lock is not kept alive.

    Args:
        number: the signal that stops this process.
        delivered: whether the command has received it too, and stops by itself.

    Returns when this process is continued.
    """
    if not delivered:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGSTOP)
    stop_here(number)


def resume_child(child: asyncio.subprocess.Process) -> None:
    """Continue the command after a pause."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGCONT)


async def end_child(child: asyncio.subprocess.Process, ended: asyncio.Future[int], grace: float) -> None:
    """End it: by SIGTERM, and after ``grace`` seconds by SIGKILL."""
    signal_child(child, signal.SIGTERM)
    await asyncio.wait({ended}, timeout=grace)
    signal_child(child, signal.SIGKILL)
    await ended
