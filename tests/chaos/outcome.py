"""What a campaign has come to: which faults bit, how much was done during them, whether that is enough to count."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from simulation.checker import Violation

from .journal import OK, Record

NEVER = 1 << 62
LONG_S = 10.0
"""A fault of this length and more is a long one."""
SLOW_RECOVERY_S = 90.0
"""It may take so long until the cluster is whole again: a new member starts, one that hangs is waited for first."""

PROGRESS = "progress was asked for"
"""What must have occurred where part of the work goes through proxies..."""
READS_FAILED, GCS_DIED = "reads failed", "the GCS was killed"
"""... in a campaign of ``disks``, and in one of ``control``: what they are for."""
EXPIRED, REPLACED, REJOINED = "a session expired", "a member was replaced", "a member rejoined after a long fault"
"""What must have occurred in a long campaign."""
UPGRADED, RESTORED = "the cluster was upgraded", "a backup was restored beside"
"""What an operator must have brought to an end in a campaign of ``care``."""


@dataclass
class Caused:
    """A fault that was caused."""

    name: str
    kind: int
    what: str
    start_ns: int
    end_ns: int = 0
    whole_ns: int = 0
    bit: bool = False
    done: int = 0
    """Operations that succeeded between its beginning and the cluster's being whole again."""

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def recovery(self) -> float:
        """Seconds from its end until the cluster was whole again; infinite if it never was."""
        return (self.whole_ns - self.end_ns) / 1e9 if self.whole_ns else math.inf


class Inconclusive(Exception):
    """Too little happened for a verdict: the faults did not bite."""


def check_recoveries(caused: Sequence[Caused]) -> None:
    """That the cluster became whole again soon: one fault in ten may take longer than ``SLOW_RECOVERY_S``, and one of
    few, since machines do other things, too.

    Raises:
        Violation: it was slow.
    """
    rounds: dict[int, list[Caused]] = defaultdict(list)
    for entry in caused:  # those of one round have the same moment
        rounds[entry.whole_ns or -len(rounds)].append(entry)
    slow = [together for together in rounds.values() if min(each.recovery for each in together) > SLOW_RECOVERY_S]
    if len(slow) > max(1, len(rounds) / 10):
        names = [(min(each.recovery for each in together), [each.name for each in together]) for together in slow]
        raise Violation(f"slow to become whole again after {len(slow)} of {len(rounds)} rounds of faults: {names}")


def count(caused: Sequence[Caused], records: Sequence[Record]) -> None:
    """Note with each fault the operations that succeeded during it."""
    ends = sorted(record.end_ns for record in records if record.outcome == OK and record.end_ns)
    for entry in caused:
        entry.done = sum(entry.start_ns <= end <= (entry.whole_ns or NEVER) for end in ends)


def check_that_it_counts(
    caused: Sequence[Caused], kinds_drawn: Collection[int], must: Collection[str], seen: Mapping[str, int]
) -> None:
    """Whether enough happened.

    Args:
        kinds_drawn: of the faults that could come up.
        must: what has to have occurred.
        seen: how often what occurred.

    Raises:
        Inconclusive: it did not.
    """
    kinds = {entry.kind for entry in caused if entry.bit} - {0}
    # Of a kind, not of each fault: clients that are all cut off from the leader for a moment get nothing done.
    done: Counter[int] = Counter()
    for entry in caused:
        done[entry.kind] += entry.done
    idle = sorted(kind for kind in kinds if not done[kind])
    if len(kinds) < min(3, len(set(kinds_drawn) - {0})):
        raise Inconclusive(f"only faults of kinds {sorted(kinds)} bit")
    if idle:
        raise Inconclusive(f"no operation succeeded during faults of kinds {idle}")
    if missing := [each for each in sorted(must) if not seen.get(each)]:
        raise Inconclusive(f"it did not occur that {' or that '.join(missing)}")


def expired(records: Sequence[Record]) -> int:
    """Calls that ended because a session had, and sessions that took the place of one that had."""
    return sum(
        record.operation == "session" or "SessionExpired" in str((record.result or {}).get("error", ""))
        for record in records
    )


def questions(records: Sequence[Record]) -> int:
    """How often a watch was asked how far it had come, and answered."""
    notes = [note for record in records for note in (record.result or {}).get("progress", ())]
    return sum(known is not None for _, _, known in notes)


def table(
    caused: Sequence[Caused], records: Sequence[Record], checked: Mapping[str, int], seen: Mapping[str, int]
) -> str:
    """Faults caused, operations done, and what was checked."""
    rows = defaultdict(list)
    for entry in caused:
        rows[entry.kind, entry.name].append(entry)
    heads = f"{'operations done':>17}{'longest outage s':>18}{'longest recovery s':>20}"
    lines = [f"{'fault':<28}{'kind':>5}{'caused':>8}{'bit':>5}{heads}"]
    for (kind, name), entries in sorted(rows.items()):
        outage = max((_outage(entry, records) for entry in entries), default=0.0)
        bit, done = sum(entry.bit for entry in entries), sum(entry.done for entry in entries)
        recovery = max(entry.recovery for entry in entries)
        lines.append(f"{name:<28}{kind or '-':>5}{len(entries):>8}{bit:>5}{done:>17}{outage:>18.1f}{recovery:>20.1f}")
    outcomes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        outcomes[record.operation][record.outcome] += 1
    lines.append(f"\n{'operation':<28}{'ok':>8}{'fail':>8}{'unknown':>9}")
    for operation, counts in sorted(outcomes.items()):
        lines.append(f"{operation:<28}{counts['ok']:>8}{counts['fail']:>8}{counts['unknown']:>9}")
    lines.append("\nchecked: " + ", ".join(f"{name} {count}" for name, count in checked.items()))
    lines.append("occurred: " + ", ".join(f"{what} ({often})" for what, often in seen.items()))
    return "\n".join(lines)


def _outage(entry: Caused, records: Sequence[Record]) -> float:
    """Seconds from the beginning of a fault to its end and recovery in which the longest time no write ended."""
    ends = [
        record.end_ns
        for record in records
        if record.outcome == OK
        and record.operation in ("put", "add")
        and record.end_ns
        and entry.start_ns <= record.end_ns <= (entry.whole_ns or NEVER)
    ]
    points = sorted([entry.start_ns, *ends, entry.whole_ns or entry.end_ns])
    return max((b - a for a, b in itertools.pairwise(points)), default=0) / 1e9
