"""Which mixes were run for how long, and how that ended: a line for each run in ``chaos-runs/ledger.jsonl``."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

LEDGER = "ledger.jsonl"
ENDS = {0: "held", 1: "broken", 2: "inconclusive", 3: "failed"}


def note_run(folder: Path, target: str, mix: str, seed: int, minutes: float, status: int, said: str) -> None:
    """One more run has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {"target": target, "mix": mix, "seed": seed, "minutes": minutes, "status": status, "said": said}
    with (folder / LEDGER).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"when": time.strftime("%Y-%m-%d %H:%M"), **line}) + "\n")


def summary(folder: Path, since: int = 0) -> str:
    """A table of the runs: of each mix, how many there were, for how many minutes, and how they ended.

    Args:
        folder: of the campaigns.
        since: leave out so many of the first runs.
    """
    runs = [json.loads(line) for line in (folder / LEDGER).read_text(encoding="utf-8").splitlines()][since:]
    by_mix: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        by_mix[run["target"], run["mix"]].append(run)
    lines = [f"{'campaign':<14}{'mix':<10}{'runs':>6}{'minutes':>9}" + "".join(f"{end:>14}" for end in ENDS.values())]
    for (target, mix), of_mix in sorted(by_mix.items()):
        ends = [sum(run["status"] == status for run in of_mix) for status in ENDS]
        minutes = sum(run["minutes"] for run in of_mix)
        lines.append(f"{target:<14}{mix:<10}{len(of_mix):>6}{minutes:>9.0f}" + "".join(f"{end:>14}" for end in ends))
    return "\n".join(lines)


def how_many(folder: Path) -> int:
    """Runs so far."""
    path = folder / LEDGER
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


if __name__ == "__main__":
    print(summary(Path(sys.argv[1] if len(sys.argv) > 1 else "chaos-runs").resolve()))
