"""Where the command `raykeeper` begins: `raykeeper ...` and `python -m raykeeper ...`.

Loading what the commands need takes a moment, on a busy machine a second. Whoever presses Ctrl-C in it is to see the
command end, and no traceback of an import, which only a process that has loaded nothing else yet can see to.
"""

from __future__ import annotations

import signal


def main() -> None:
    """Entry point of the command `raykeeper`."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main

    signal.signal(signal.SIGINT, before)
    main()


if __name__ == "__main__":
    main()
