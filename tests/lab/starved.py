"""Runs tests on a machine that has no time for them: programs that compute take most of it, and workers are stopped.

``make starved`` runs the unit tests so. A test that fails here, and nowhere else, says something of the machine rather
than of the product: it has to wait for what it means.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

BETWEEN_STOPS_S = (0.2, 2.0)


def workers(runner: int) -> list[int]:
    """The processes that pytest-xdist has started."""
    try:
        return [int(pid) for pid in Path(f"/proc/{runner}/task/{runner}/children").read_text().split()]
    except OSError:
        return []


def starve(runner: subprocess.Popen[bytes], longest: float, rng: random.Random) -> None:
    """Stop one worker after another for a moment, until the run is over."""
    while runner.poll() is None:
        time.sleep(rng.uniform(*BETWEEN_STOPS_S))
        found = workers(runner.pid)
        if found and longest:
            stopped = rng.choice(found)
            try:
                os.kill(stopped, signal.SIGSTOP)
                time.sleep(rng.uniform(0.0, longest))
                os.kill(stopped, signal.SIGCONT)
            except ProcessLookupError:  # it has ended
                continue


def main() -> int:
    """Exits as pytest does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--computing", type=int, default=2, help="programs that compute beside them")
    parser.add_argument("--longest", type=float, default=1.5, help="seconds that a worker is stopped, at most")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the stops")
    options, tests = parser.parse_known_args()
    print(f"seed {options.seed}", flush=True)
    computing = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.computing)]
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-n", str(options.workers), *tests]
        with subprocess.Popen(command) as runner:
            starve(runner, options.longest, random.Random(options.seed))
        return runner.returncode
    finally:
        for each in computing:
            each.kill()
            each.wait()


if __name__ == "__main__":
    sys.exit(main())
