"""The safety verdict on a campaign that ended badly: what can be judged of the part that there is.

The store's own history is known up to some revision only, nothing was drained, and operations may be under way. So what
was answered for a later revision counts as of unknown outcome before the judges that compare with the store; those that
need the history alone see all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulation.checker import GaveUp, Violation

from .journal import OK, UNKNOWN, Record
from .verdict import ALONE, BY_CLOCKS, WITH_TRUTH, Truth, linearizable


def safety(records: Sequence[Record], truth: Truth, *, clocks_lie: bool = False) -> tuple[bool, list[str]]:
    """Whether no promise is seen to be broken, and a line for each check; ``clocks_lie`` as for ``judge``."""
    if clocks_lie:
        records = [each for each in records if each.operation not in BY_CLOCKS]
    known = [as_known(record, truth.upto) for record in records]
    holds, lines = True, [f"{len(records)} operations; the store's history is known up to revision {truth.upto}"]
    checks = [(check.__name__.strip("_"), lambda check=check: check(records, truth)) for check in ALONE]
    checks += [(check.__name__.strip("_"), lambda check=check: check(known, truth)) for check in WITH_TRUTH]
    for name, check in [*checks, ("linearizable", lambda: linearizable(records))]:
        try:
            lines.append(f"{name}: holds ({check()} checked)")
        except GaveUp as error:
            lines.append(f"{name}: not judged, {error}")
        except Violation as error:
            holds = False
            lines.append(f"{name}: BROKEN: {error}")
    return holds, lines


def as_known(record: Record, upto: int) -> Record:
    """A record without what the store's history, known up to a revision, cannot confirm or refute."""
    result = record.result or {}
    if record.operation == "watch" and "events" in result:
        events = result["events"]
        seen = result.get("upto", events[-1][0] - 1 if events else record.arguments["position"])
        cut = {"events": [each for each in events if each[0] <= upto], "upto": min(seen, upto)}
        if "progress" in result:
            cut["progress"] = [each for each in result["progress"] if each[0] <= upto]
        return replace(record, result={**result, **cut})
    newest = [result.get("revision", 0), *(item["mod_revision"] for item in result.get("items", ()))]
    if record.outcome == OK and max(*newest, record.arguments.get("at_least", 0)) > upto:
        return replace(record, outcome=UNKNOWN, result=None)
    return record
