"""Campaigns for hours: all mixes by turns, each from a new seed in a process of its own; ``make chaos HOURS=8``.

Variety comes first: a turn of a mix takes ten minutes, which is about what one needs for all that it must have seen. A
broken promise does not end the night: its evidence is kept, and the next turn begins. The status is the worst of all:
1 if a promise was broken, 3 if a campaign failed, 2 if faults did not bite in more than a quarter of the turns.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import time
from pathlib import Path

from .ledger import how_many, summary
from .mixes import MIXES

TURN_MINUTES = 10.0
SLACK_S = 1800.0
"""For a campaign to start, become whole, be judged and end."""


def run(hours: float, folder: Path, minutes: float, mixes: list[str], rng: random.Random) -> int:
    """Run turn after turn until the time is over; the status."""
    until, before, statuses = time.monotonic() + 3600 * hours, how_many(folder), []
    for mix in itertools.cycle(mixes):
        if time.monotonic() + 60 * minutes > until and statuses:
            break
        seed = rng.randrange(10**6)
        words = ["--mix", mix, "--minutes", str(minutes), "--seed", str(seed), "--folder", str(folder)]
        words += ["--lanes", "off"] if rng.random() < 0.15 else []
        said = folder / f"seed-{seed}.txt"
        folder.mkdir(parents=True, exist_ok=True)
        with said.open("w") as file:
            try:
                status = subprocess.run(
                    [sys.executable, "-m", "chaos.campaign", *words],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=60 * minutes + SLACK_S,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                status = 3
        statuses.append(status)
        last = said.read_text(errors="replace").splitlines()[-1:]
        print(f"{time.strftime('%H:%M')} {mix} seed {seed}: status {status}: {''.join(last)[:200]}", flush=True)
    print(summary(folder, before))
    if 1 in statuses:
        print("BROKEN: a promise was broken; see above")
        return 1
    if set(statuses) - {0, 2}:
        print("FAILED: a campaign itself failed; see above")
        return 3
    if statuses.count(2) * 4 > len(statuses):
        print("INCONCLUSIVE: in too many turns the faults did not bite")
        return 2
    print("no promise was broken")
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--folder", type=Path, default=Path("chaos-runs"))
    parser.add_argument("--minutes", type=float, default=TURN_MINUTES, help="of each turn")
    parser.add_argument("--mixes", default=",".join(MIXES), help="names, with commas between, in their order")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    return run(options.hours, options.folder.resolve(), options.minutes, options.mixes.split(","), rng)


if __name__ == "__main__":
    sys.exit(main())
