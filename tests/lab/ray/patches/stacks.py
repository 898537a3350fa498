"""Each Python process of a test's Ray notes the stacks of all its threads when it is asked to by a signal.

``sitecustomize`` beside this file loads it if ``RAYKEEPER_TEST_STACKS`` names a folder; there each process has a file
named by its id, which is empty until then.
"""

from __future__ import annotations

import faulthandler
import os
import signal

SIGNAL = signal.SIGRTMIN + 9


def note_at_signal(folder: str) -> None:
    """From now on; it costs a file."""
    file = open(os.path.join(folder, str(os.getpid())), "w")  # noqa: SIM115 it stays open as long as the process lives
    faulthandler.register(SIGNAL, file=file, all_threads=True)
    _files.append(file)


_files: list[object] = []
