"""Fuzzing for a while: ``make fuzz MINUTES=30``. The decoders' tests again and again, each round from another seed.

A round that fails prints the example, and the command that runs it again, and ends the campaign with status 1.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
EXAMPLES = 300


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0), default=2.0, show_default=True)
@click.option("--seed", type=int, help="Of the first round; drawn if it is not given.")
def main(minutes: float, seed: int | None) -> None:
    """Fuzz every decoder for as long."""
    first = seed if seed is not None else random.SystemRandom().randrange(1 << 31)
    end, rounds = time.monotonic() + 60 * minutes, 0
    while rounds == 0 or time.monotonic() < end:
        arguments = ["-q", "-n", "auto", "-p", "no:cacheprovider", f"--hypothesis-seed={first + rounds}", str(HERE)]
        command = [sys.executable, "-m", "pytest", *arguments]
        environment = {**os.environ, "RAYKEEPER_FUZZ_EXAMPLES": str(EXAMPLES)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stdout.write(done.stdout + done.stderr)
            print(f"again: RAYKEEPER_FUZZ_EXAMPLES={EXAMPLES} {' '.join(command)}")
            sys.exit(1)
        rounds += 1
    print(
        f"{rounds} rounds of {EXAMPLES} examples for each decoder, seeds {first} to {first + rounds - 1}: nothing found"
    )


if __name__ == "__main__":
    main()
