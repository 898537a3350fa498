"""Large blocks of memory go back to the kernel."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from lab.http2.port_process import PLAIN_MALLOC

_PROGRAM = """
import os
import sys

from lab.http2.port_process import memory
from raykeeper.actors.proxy.large_blocks import give_back_large_blocks

if sys.argv[1] == "fixed":
    assert give_back_large_blocks()
MIB = 1 << 20
first = bytes(8 * MIB)
del first  # from now on, by itself, glibc keeps blocks of up to 8 MiB in its arenas
before = memory(os.getpid())
kept, pages = [], []
for _ in range(64):
    pages.append(bytearray(b"x") * MIB)
    kept.append(bytearray(b"x") * 100_000)
del pages
print((memory(os.getpid()) - before) // MIB)
"""


def _kept(how: str) -> int:
    """MiB that a process has more once its blocks of 1 MiB are free, with smaller ones in use between them."""
    command = (sys.executable, "-c", _PROGRAM, how)
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=PLAIN_MALLOC).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no such option")
def test_large_blocks_are_given_back() -> None:
    assert _kept("as it is") >= 48, "otherwise the option is needed no more"
    assert _kept("fixed") <= 16
