"""Campaigns of many seeds on all cores, and single seeds with their trace.

    python -m simulation.campaign --seeds 5000            # resumes where it was interrupted
    python -m simulation.campaign --seed 1234 --verbose   # exactly that run again, line by line

Finished seeds are remembered under ``build/simulation``, in a file named by a hash over the code, so a change of the
code begins a new campaign. From the root: ``make simulate SEEDS=n``, ``make simulate SEED=n``.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from . import corpus, coverage
from .focused_profiles import FOCUSED, PROFILES
from .world import Report, World

ROOT = Path(__file__).resolve().parents[2]
MOST_WEAK = 0.05
"""A campaign of which more runs than this do not count has proven nothing."""


def profile_for(seed: int) -> str:
    """Most seeds run a mix of everything; every fourth runs one of the focused profiles in turn."""
    return FOCUSED[seed // 4 % len(FOCUSED)] if seed % 4 == 3 else "mixed"


def reproduce(seed: int, profile: str) -> str:
    """The command that runs a seed again."""
    which = "" if profile == profile_for(seed) else f" PROFILE='{profile}'"
    return f"make simulate SEED={seed}{which}"


def run_seed(seed: int, profile: str | None = None) -> Report:
    """Run one seed with the profile that belongs to it, or with another."""
    return World(seed, profile or profile_for(seed)).run()


def code_version() -> str:
    """A hash over the code that decides what a seed does."""
    digest = hashlib.sha256()
    files = [*ROOT.glob("*.py"), *(ROOT / "tests" / "simulation").rglob("*.py")]
    for room in ("actors", "raft", "schema", "store"):
        files += (ROOT / room).rglob("*.py")
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class Finished:
    """The reports of seeds that are done, on disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{code_version()}.jsonl"
        self.reports: dict[int, Report] = {}
        if self.path.exists():
            for line in self.path.read_bytes().splitlines():
                try:
                    report = msgspec.json.decode(line, type=Report)
                except msgspec.MsgspecError:
                    continue  # the line that an interruption cut short
                self.reports[report.seed] = report
        self._file = self.path.open("ab")

    def add(self, report: Report) -> None:
        self.reports[report.seed] = report
        self._file.write(b"\n" + msgspec.json.encode(report))  # a line that was cut short ends here
        self._file.flush()


def campaign(seeds: Iterable[int], folder: Path, *, jobs: int, minutes: float | None = None) -> list[Report]:
    """Run what is not finished yet, and return the reports of all that are."""
    wanted = list(seeds)
    finished = Finished(folder)
    left = [seed for seed in wanted if seed not in finished.reports]
    if len(left) < len(wanted):
        print(f"{len(wanted) - len(left)} of {len(wanted)} seeds are done already ({finished.path})")
    until = time.monotonic() + 60 * minutes if minutes is not None else None
    began = time.monotonic()
    for done, report in enumerate(_reports(left, jobs), 1):
        finished.add(report)
        if report.failure:
            first = report.failure.splitlines()[0]
            print(
                f"\rseed {report.seed} ({report.profile}) FAILED: {first}\n    {reproduce(report.seed, report.profile)}"
            )
        if done % 20 == 0 or done == len(left):
            pace = done / (time.monotonic() - began)
            rest = (len(left) - done) / pace / 60
            print(f"\r{done}/{len(left)} seeds, {pace:.1f} a second, {rest:.0f} minutes left ", end="", flush=True)
        if until is not None and time.monotonic() > until:
            print("\ntime is up; the same command goes on from here", end="")
            break
    print()
    return [finished.reports[seed] for seed in wanted if seed in finished.reports]


def _reports(seeds: list[int], jobs: int) -> Iterator[Report]:
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    # Fresh interpreters: nothing of this process leaks into a run. Never renewed: all run the same code.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_seed, seeds)


def summary(reports: list[Report]) -> tuple[str, bool]:
    """A table of what was run, and whether the campaign passed."""
    failed = [report for report in reports if report.failure]
    weak = [report for report in reports if report.weak]
    faults: Counter[str] = Counter()
    profiles: Counter[str] = Counter()
    reached = 0
    for report in reports:
        faults.update(report.faults)
        reached |= int(report.coverage or "0", 16)
        profiles[report.profile] += 1
    operations = sum(report.operations for report in reports)
    succeeded = sum(report.succeeded for report in reports)
    rows = [
        ("seeds run", f"{len(reports)}"),
        ("counted", f"{sum(report.counted for report in reports)}"),
        ("too weak to count", f"{len(weak)}"),
        ("failed", f"{len(failed)}"),
        ("simulated time", f"{sum(report.seconds for report in reports) / 3600:.1f} h"),
        ("turns", f"{sum(report.turns for report in reports):,}"),
        ("operations", f"{operations:,}, of which {succeeded:,} succeeded"),
        ("of unknown outcome", f"{sum(report.unknown for report in reports):,}"),
        ("leader changes", f"{sum(report.leader_changes for report in reports):,}"),
        ("log trims, snapshots", f"{sum(r.trims for r in reports):,}, {sum(r.snapshots for r in reports):,}"),
        (
            "frames lost, doubled",
            f"{sum(r.lost_frames for r in reports):,}, {sum(r.doubled_frames for r in reports):,}",
        ),
        ("watches, events", f"{sum(r.watches for r in reports):,}, {sum(r.watched_events for r in reports):,}"),
        ("leases, expired", f"{sum(r.leases for r in reports):,}, {sum(r.leases_expired for r in reports):,}"),
        ("locks handed over", f"{sum(r.hand_overs for r in reports):,}"),
        ("states searched", f"{sum(report.states for report in reports):,}"),
        ("profiles", ", ".join(f"{name} {count}" for name, count in sorted(profiles.items()))),
        ("faults", ", ".join(f"{name} {count:,}" for name, count in sorted(faults.items()))),
    ]
    rows += coverage.table(reached)
    lines = [f"{name:22} {value}" for name, value in rows]
    reasons = Counter(f"{r.profile}: {r.weak.split(' of ')[0]}" for r in weak)
    lines += [f"  too weak ({count}): {reason}" for reason, count in reasons.most_common(8)]
    for report in failed[:20]:
        lines.append(f"  FAILED {reproduce(report.seed, report.profile)}: {report.failure.splitlines()[0]}")
    passed = not failed and len(weak) <= max(1, MOST_WEAK * len(reports))
    if not failed and not passed:
        lines.append("too many runs do not count: the campaign proves nothing")
    return "\n".join(lines), passed


def write_pairs(reports: list[Report], folder: Path) -> Path:
    """A file with all pairs of kinds, each with the number of runs that reached it."""
    bitmaps = [int(report.coverage or "0", 16) for report in reports]
    path = folder / f"{code_version()}.pairs.txt"
    with path.open("w") as file:
        for bit, (one, other) in enumerate(coverage.all_pairs()):
            times = sum(bitmap >> bit & 1 for bitmap in bitmaps)
            names = " + ".join(dict.fromkeys(f"{coverage.KINDS[kind][1]}" for kind in (one, other)))
            file.write(f"{times:7,}  {names}\n")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds a campaign runs")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="with --seed: another profile than the seed's own")
    parser.add_argument("--verbose", action="store_true", help="with --seed: print the trace")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=int, help="choose the corpus again, of at most this many seeds: see corpus.py")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on later")
    parser.add_argument(
        "--state", type=Path, default=ROOT / "build" / "simulation", help="where finished seeds are kept"
    )
    arguments = parser.parse_args()
    if arguments.seed is not None:
        world = World(
            arguments.seed,
            arguments.profile or profile_for(arguments.seed),
            verbose=print if arguments.verbose else None,
        )
        report = world.run()
        for name, value in vars(report).items():
            print(f"{name:16} {value}")
        return 1 if report.failure else 0
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    reports = campaign(seeds, arguments.state, jobs=arguments.jobs, minutes=arguments.minutes)
    text, passed = summary(reports)
    print(text)
    print(f"{'reached':22} {write_pairs(reports, arguments.state)}")
    if arguments.keep:
        known = [run_seed(seed, profile) for seed, profile in corpus.read()]
        corpus.write(corpus.choose([*known, *reports], arguments.keep))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
