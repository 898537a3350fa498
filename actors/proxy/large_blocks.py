"""Has the C library give back each large block of memory as soon as it is free.

glibc takes blocks of 128 KiB and more from the kernel one by one, and gives each back when it is freed. But the first
of them that is freed raises that threshold to its own size, up to 32 MiB: from then on such blocks lie between small
ones, in an arena for each thread. A proxy has pages of megabytes on several threads, under attack many at a time. With
the threshold where it was, it needs about half the memory then, and has it back in the calm after it.
"""

from __future__ import annotations

import ctypes

from ...limits import LARGE_BLOCK_BYTES

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of malloc.h."""


def give_back_large_blocks() -> bool:
    """Fix the threshold of glibc for this process; ``False`` if its C library has no such option."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(set_option(_MMAP_THRESHOLD, LARGE_BLOCK_BYTES))
