"""A command that this process runs and that does not outlive it.

Whatever kills this process, SIGKILL too, the kernel then kills the command (``PR_SET_PDEATHSIG``, on Linux), so that it
does not go on without what is held for it. That has to be asked for by the command's own process, before it becomes the
command; and code of ours between fork and exec is not safe in a process of many threads, as Ray makes of this one. So a
small program is started, which asks for it and then becomes the command. The kernel watches the thread that forked, not
the process: that is the main thread here, which ends last.

While that program begins, signals are blocked in it: one that comes early finds the command, and not a Python that has
only just begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence

from .cli_lasting import stop_here
from .cli_streams import tell

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit statuses for a command that cannot be run, as of timeout(1)."""

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


async def begin(command: Sequence[str], environment: Mapping[str, str]) -> asyncio.subprocess.Process | int:
    """Start a command; instead of it the exit status if it cannot be run, which was said on stderr then."""
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


def send(child: asyncio.subprocess.Process, number: int) -> None:
    """Send it a signal, unless it has just ended. It is to see it even if it is stopped, as timeout(1) does."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)
        child.send_signal(signal.SIGCONT)


def pause(child: asyncio.subprocess.Process, number: int, told: bool) -> None:
    """Stop this process, and the command first: it must not go on while nobody keeps what is held for it.

    Args:
        number: the signal that stops this process.
        told: whether the command has got it too, and is to stop by itself.

    Returns when somebody has this process continue.
    """
    if not told:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGSTOP)
    stop_here(number)


def resume(child: asyncio.subprocess.Process) -> None:
    """Have the command go on after a pause."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGCONT)


async def end(child: asyncio.subprocess.Process, ended: asyncio.Future[int], grace: float) -> None:
    """End it, after so many seconds whether it wants to or not."""
    send(child, signal.SIGTERM)
    await asyncio.wait({ended}, timeout=grace)
    send(child, signal.SIGKILL)
    await ended
