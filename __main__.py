"""Entry point of the command `raykeeper`: `raykeeper ...` and `python -m raykeeper ...`.

Loading what the commands need takes a moment, on a busy machine a second. Ctrl-C during that time must end the command
without the traceback of an import. Only a process that has loaded nothing else yet can ensure that.
"""

from __future__ import annotations

import signal


def main() -> None:
    """Entry point of the command `raykeeper`."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli.main import main

    signal.signal(signal.SIGINT, before)
    main()


if __name__ == "__main__":
    main()
