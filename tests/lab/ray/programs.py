"""Programs that a test runs as a user would: a process of its own, which knows of no Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import raykeeper
from lab.patience import PATIENCE

ROOT = Path(raykeeper.__file__).parent

PATH = os.pathsep.join([str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")])
"""A ``PYTHONPATH`` for those that use what is here."""


def run_program(*arguments: str, seconds: float = 500.0, **more: str) -> str:
    """As :func:`run_program_with_stderr`; what it printed on stdout."""
    return run_program_with_stderr(*arguments, seconds=seconds, **more)[0]


def run_program_with_stderr(*arguments: str, seconds: float = 500.0, **more: str) -> tuple[str, str]:
    """Run Python with these arguments in the project's folder, to the end; what it printed on stdout and stderr.

    One that is not done in time is made to say where each of its threads is; that, what it printed and how it ended
    are the test's failure.

    Args:
        seconds: many times what it takes, since others may compute on the same machine.
        more: for its environment. Of Ray's settings it has this one: workers on equal terms with those others, beside
            whom a lock's holder that ran at Ray's niceness of 15 would starve, and lose it.
    """
    # Ray's own cluster of many nodes notes its address there, whatever its temporary folder is, and does not make it.
    Path("/tmp/ray").mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    environment["RAY_worker_niceness"] = "0"
    with subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *arguments],
        cwd=ROOT,
        env={**environment, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
            how = f"it ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            try:
                out, err = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
            how = f"it was not done within {seconds:.0f} s, and was here:"
    assert process.returncode == 0, f"{' '.join(arguments)[:200]}\n{out}\n{how}\n{err}"
    return out, err
