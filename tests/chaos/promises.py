"""More judges of a campaign: leases by a clock of their own, rights that come and go, what was there before a change by
what watches say, and the end state."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence

from simulation.checker import NEVER, Violation

from .journal import FAIL, OK, Record

DRIFT = 0.02
"""By this part a lease may end early by the machine's clock, where members' clocks run fast within their bound."""

Change = tuple[int, str, str | None]


def check_leases(records: Sequence[Record]) -> int:
    """No lease ended before its TTL, or before its holder had been told; the number of looks.

    Raises:
        Violation: one did.
    """
    looks = 0
    for record in records:
        result = record.result or {}
        if record.outcome != OK:
            continue
        if record.operation == "lease_end" and result["lasted"] is not None:
            looks += 1
            if result["lasted"] < record.arguments["ttl"] * (1 - DRIFT):
                raise Violation(f"a lease ended early, after {result['lasted']:.3f} s: {record}")
        elif record.operation == "lease_held":
            looks += 1
            if result["missing"] and not result["lost"]:
                raise Violation(f"a lease has ended, and its holder has not been told: {record}")
    return looks


def check_rights(records: Sequence[Record]) -> int:
    """Who had no right from before a call began until after it ended was refused, and who had it was not; the number of
    calls of which that is certain.

    Raises:
        Violation: one was answered otherwise.
    """
    changes: dict[str, list[Record]] = defaultdict(list)
    calls: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.operation in ("add_user", "grant", "revoke"):
            changes[record.arguments["user"]].append(record)
        elif record.operation in ("user_put", "user_get") and record.outcome == OK:
            calls[record.arguments["user"]].append(record)
    certain = 0
    for user, made in calls.items():
        spans = _spans(changes[user])
        for call in made:
            assert call.end_ns is not None
            assert call.result is not None
            for begin, end, allowed in spans:
                if begin <= call.start_ns and call.end_ns <= end:
                    certain += 1
                    if call.result["denied"] == allowed:
                        had = "had" if allowed else "did not have"
                        raise Violation(f"{user} {had} the right from {begin} to {end}: {call}")
    return certain


def _spans(changes: Sequence[Record]) -> list[tuple[int, int, bool]]:
    """From when to when it is certain whether the user had the right, by changes that follow one another."""
    spans: list[tuple[int, int, bool]] = []
    known: tuple[int, bool] | None = None
    for change in sorted(changes, key=lambda each: each.start_ns):
        if change.outcome == FAIL:
            continue
        if known is not None:
            spans.append((known[0], change.start_ns, known[1]))
        known = None
        if change.outcome == OK and change.end_ns is not None:
            known = change.end_ns, change.operation == "grant"
    if known is not None:
        spans.append((known[0], NEVER, known[1]))
    return spans


def check_appends(records: Sequence[Record], changes: Sequence[Change]) -> int:
    """Each list transaction that was acknowledged is in the store's history, whole and at its revision; their number.

    Raises:
        Violation: one is not.
    """
    at = {(revision, key): value for revision, key, value in changes}
    there = 0
    for record in records:
        result = record.result or {}
        if record.operation != "list_txn" or record.outcome != OK:
            continue
        for key, element in record.arguments["appends"].items():
            there += 1
            due = ",".join([*result["seen"][key], element])
            if at.get((result["revision"], key)) != due:
                raise Violation(f"acknowledged and lost, or changed: {due} in {key} of {record}")
    return there


def check_previous(records: Sequence[Record], changes: Sequence[Change]) -> int:
    """What watches say was there before a change was there; the number of events that say something.

    A watch that asks for it may get nothing where history is compacted, but never something else.

    Raises:
        Violation: they do not.
    """
    by_key: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        by_key[change[1]].append(change)
    revisions = {key: [change[0] for change in of_key] for key, of_key in by_key.items()}
    said = 0
    for record in records:
        if record.operation != "watch" or not record.result:
            continue
        for event in record.result.get("events", ()):
            if len(event) < 4 or event[3] is None:
                continue
            revision, key, _, before = event
            place = bisect_left(revisions.get(key, []), revision)
            if place == len(revisions.get(key, [])) or revisions[key][place] != revision:
                continue  # beyond what is known of the store's history
            said += 1
            there = by_key[key][place - 1] if place else (0, key, None)
            if there[2] is None or (there[0], there[2]) != tuple(before):
                raise Violation(f"{before} is said to have been in {key} before {revision}, and it was {there}")
    return said


def check_progress(records: Sequence[Record], changes: Sequence[Change]) -> int:
    """Whenever a watch said that all up to a revision was delivered, it was, and nothing else; it did not take that
    back; and where it was asked, it had come at least as far as what was known before. The number of times.

    Raises:
        Violation: an event up to there was still to come.
    """
    revisions = [change[0] for change in changes]
    said = 0
    for record in records:
        if record.operation != "watch" or not record.result:
            continue
        events, where = record.result.get("events", ()), record.arguments
        before = {True: 0, False: 0}  # asked or not: each in the order in which it was said
        for revision, many, known in record.result.get("progress", ()):
            said += 1
            first, last = bisect_right(revisions, where["position"]), bisect_right(revisions, revision)
            due = [change for change in changes[first:last] if _is_in(where, change[1])]
            delivered = [tuple(event[:3]) for event in events[:many] if event[0] <= revision]
            if delivered != due:
                raise Violation(
                    f"a watch of {where} by {record.process} said after {many} events that all up to {revision} were "
                    f"delivered: {delivered[-3:]}, and due were {due[-3:]}"
                )
            newest, asked = known or 0, known is not None
            if revision < max(newest, before[asked]):
                raise Violation(
                    f"a watch of {where} by {record.process} said that it was at {revision}, after it had been at "
                    f"{before[asked]}, and was asked when {newest} was known"
                )
            before[asked] = revision
    return said


def _is_in(where: Mapping[str, str], key: str) -> bool:
    """Whether a watch of that range sees a key."""
    return key.startswith(where["prefix"]) if "prefix" in where else key == where["key"]


def check_end_state(there: Mapping[str, tuple[int, str]], changes: Sequence[Change]) -> int:
    """What the store holds at the end is what its history comes to; the number of keys.

    Args:
        there: revision and value of each key.

    Raises:
        Violation: it is not.
    """
    due: dict[str, tuple[int, str]] = {}
    for revision, key, value in changes:
        if key.startswith("flood/"):
            continue  # their values are not kept
        if value is None:
            due.pop(key, None)
        else:
            due[key] = (revision, value)
    held = {key: pair for key, pair in there.items() if not key.startswith("flood/")}
    if held != due:
        odd = sorted(key for key in held.keys() | due.keys() if held.get(key) != due.get(key))
        key = odd[0]
        raise Violation(f"{len(odd)} keys differ at the end: {key} is {held.get(key)}, and was left as {due.get(key)}")
    return len(held)
