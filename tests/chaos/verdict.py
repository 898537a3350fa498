"""The verdict on a campaign: was all that the processes saw possible, and is all that was promised there?

Two independent judges. The first knows only the history: each key's calls must be linearizable
(``simulation.checker``), and revisions must respect real time. The second also has the *truth*: every change of every
user's key in the order of revisions, which the campaign read out of the store while it ran. An acknowledged write
stands in it at the revision that was answered; a write that failed does not; none is there twice, none that nobody
asked for; reads, watches, guarded writes and counters agree with it. A contradiction raises ``Violation`` with the
operations that it is between.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from simulation.checker import (
    NEVER,
    Call,
    GaveUp,
    Observation,
    Violation,
    check_linearizable,
    check_real_time,
    counter,
    register,
)

from .cycles import check_lists
from .journal import FAIL, OK, Record
from .promises import check_appends, check_leases, check_previous, check_progress, check_rights

Change = tuple[int, str, str | None]
"""(revision, key, value); ``None`` for a deletion."""
OWN_PREFIXES = ("r/", "p/", "c/", "g/")
"""Keys of which every write is in the history."""


@dataclass
class Truth:
    """All changes of users' keys, in order."""

    changes: list[Change] = field(default_factory=list)
    upto: int = 0
    """Complete up to this revision."""

    def by_key(self) -> dict[str, list[Change]]:
        found: dict[str, list[Change]] = defaultdict(list)
        for change in self.changes:
            found[change[1]].append(change)
        return found


def judge(
    records: Sequence[Record], truth: Truth, left: Sequence[str], total: int, *, clocks_lie: bool = False
) -> dict[str, int]:
    """Judge a campaign whose cluster has healed.

    Args:
        left: items that are left in the queue.
        total: what the recipe's counter came to.
        clocks_lie: clocks were off by more than is promised: what processes concluded from theirs is not judged.

    Returns:
        How much of what was checked.

    Raises:
        Violation: a promise was broken.
    """
    checked: Counter[str] = Counter()
    for check in (*ALONE, *WITH_TRUTH):
        judged = records if not clocks_lie else [each for each in records if each.operation not in BY_CLOCKS]
        checked[check.__name__.strip("_")] = check(judged, truth)
    checked["queue"] = _queue(records, left)
    checked["counter"] = _sum(records, total)
    checked["linearizable"] = linearizable(records)
    return dict(checked)


# --- the history alone ------------------------------------------------------------------------------------------------


def linearizable(records: Iterable[Record]) -> int:
    """Each key's calls, and each pair's, must have an order; the number of calls."""
    calls: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for record in records:
        made = _call(record)
        if made is not None:
            calls[made[0]].append(made[1])
    for (kind, key), of_key in sorted(calls.items()):
        model, initial = (counter, 0) if kind == "counter" else (register, None)
        try:
            check_linearizable(of_key, model, initial, budget=2_000_000)
        except GaveUp as error:
            raise GaveUp(f"{kind} {key}: {error}") from None
        except Violation as error:
            raise Violation(f"{kind} {key}: {error}") from None
    return sum(map(len, calls.values()))


def _call(record: Record) -> tuple[tuple[str, str], Call] | None:
    """A record as a call on an object; ``None`` if it is none, or had no effect."""
    if record.outcome == FAIL:
        return None
    arguments, result, kind = record.arguments, record.result or {}, record.operation
    call = Call(record.process, kind, arguments.get("value"), record.start_ns)
    if record.outcome == OK:
        assert record.end_ns is not None
        call.returned = record.end_ns
    if kind in ("get_pair", "put_pair"):
        key = ("pair", arguments["prefix"] if kind == "get_pair" else arguments["keys"][0][:-1])
        call.kind = kind[:3]
        if kind == "get_pair" and record.outcome == OK:
            values = {item["value"] for item in result["items"]} or {None}
            if len(values) != 1 or len(result["items"]) == 1:
                raise Violation(f"half a transaction was seen: {record}")
            (call.result,) = values
        return key, call
    key = ("register", arguments.get("key", ""))
    if kind == "get":
        call.result = result["items"][0]["value"] if result.get("items") else None
    elif kind == "swap":
        call.result = result.get("prev")
    elif kind == "delete":
        call.result = result.get("deleted") == 1
    elif kind == "cas":
        call.argument = (arguments["old"], arguments["value"])
        items = result.get("items")
        call.result = True if result.get("succeeded") else (False, items[0]["value"] if items else None)
    elif kind == "add":
        key, call.argument, call.result = ("counter", key[1]), None, result.get("before")
    elif kind != "put":
        return None
    return key, call


def _errors(records: Sequence[Record], truth: Truth) -> int:
    """Nothing may fail in a way that no fault explains."""
    for record in records:
        if record.result and record.result.get("unexpected"):
            raise Violation(f"unexpected: {record.result['error']}\n  of {record}")
    return len(records)


def _revisions(records: Sequence[Record], truth: Truth) -> int:
    """What ended before another operation began is not overtaken by it."""
    observations = [
        Observation(
            record.process,
            f"{record.operation} {record.arguments}",
            record.start_ns,
            record.end_ns or NEVER,
            record.result["revision"],
            writes={b"": None} if _wrote(record) else {},
        )
        for record in records
        if record.outcome == OK
        and record.operation != "past_range"
        and record.result
        and "revision" in record.result
        # A watch from the past begins in the past.
        and not (record.operation == "begin_watch" and record.arguments["start"])
    ]
    observations.sort(key=lambda seen: seen.invoked)
    check_real_time(observations)
    return len(observations)


def _wrote(record: Record) -> bool:
    result = record.result or {}
    kind = record.operation
    return (
        kind in ("put", "swap", "put_pair", "guarded_put")
        or (kind == "cas" and result["succeeded"])
        or (kind == "delete" and result["deleted"] > 0)
    )


# --- the truth --------------------------------------------------------------------------------------------------------


def _writes(records: Sequence[Record], truth: Truth) -> int:
    """Acknowledged writes are there, at their revision; no others are, but those of unknown outcome; none is twice."""
    revisions = [change[0] for change in truth.changes]
    if revisions != sorted(revisions):
        raise Violation("the store's history is not in the order of its revisions")
    at = {(revision, key): value for revision, key, value in truth.changes}
    if len(at) != len(truth.changes):
        raise Violation("the store's history has one key twice in one revision")
    asked: dict[tuple[str, str], Record] = {}
    deleted: dict[tuple[int, str], Record] = {}
    maybe_deleted: dict[str, int] = defaultdict(int)
    checked = 0
    for record in records:
        arguments, result = record.arguments, record.result or {}
        if record.operation == "delete":
            if record.outcome == OK and result["deleted"]:
                deleted[result["revision"], arguments["key"]] = record
            elif record.outcome not in (OK, FAIL):
                maybe_deleted[arguments["key"]] += 1
            continue
        keys = arguments.get("keys") or [arguments.get("key")]
        if "value" not in arguments:
            continue
        for key in keys:
            asked[key, arguments["value"]] = record
            if record.outcome == OK and (_wrote(record) or record.operation == "add"):
                checked += 1
                if at.get((result["revision"], key)) != arguments["value"]:
                    raise Violation(f"acknowledged and lost, or changed: {key} at {result['revision']} of {record}")
    for record in deleted.values():
        place = (record.result or {})["revision"], record.arguments["key"]
        if place not in at or at[place] is not None:
            raise Violation(f"acknowledged and lost: {record}")
    seen: dict[tuple[str, str], int] = {}
    for revision, key, value in truth.changes:
        if not key.startswith(OWN_PREFIXES):
            continue
        if value is None:
            if (revision, key) not in deleted:
                maybe_deleted[key] -= 1
                if maybe_deleted[key] < 0:
                    raise Violation(f"{key} was deleted at {revision}, and nobody asked for it")
            continue
        writer = asked.get((key, value))
        if writer is None:
            raise Violation(f"nobody asked for {value!r} in {key} at {revision}")
        if (key, value) in seen:
            raise Violation(f"applied twice, at {seen[key, value]} and {revision}: {writer}")
        seen[key, value] = revision
        if writer.outcome == FAIL or (writer.operation == "cas" and not (writer.result or {}).get("succeeded", True)):
            raise Violation(f"took effect at {revision}, and was said to have had none: {writer}")
        if writer.outcome == OK and (writer.result or {})["revision"] != revision:
            raise Violation(f"took effect at {revision}, and another revision was answered: {writer}")
    return checked


def _reads(records: Sequence[Record], truth: Truth) -> int:
    """What was read at a revision is what the store held at it."""
    by_key = truth.by_key()
    revisions = {key: [change[0] for change in changes] for key, changes in by_key.items()}

    def held(key: str, revision: int) -> tuple[int, str] | None:
        position = bisect_right(revisions.get(key, []), revision)
        if not position:
            return None
        at, _, value = by_key[key][position - 1]
        return None if value is None else (at, value)

    checked = 0
    for record in records:
        result, arguments = record.result or {}, record.arguments
        if record.outcome != OK:
            continue
        if record.operation == "swap" or (record.operation == "cas" and result["succeeded"]):
            before = held(arguments["key"], result["revision"] - 1)
            was = result["prev"] if record.operation == "swap" else arguments["old"]
            if was != (None if before is None else before[1]):
                raise Violation(f"the store held {before} before: {record}")
        if "items" not in result:
            continue
        checked += 1
        read = {item["key"]: (item["mod_revision"], item["value"]) for item in result["items"]}
        if record.operation == "stale_get":
            for key, (revision, value) in read.items():
                if held(key, revision) != (revision, value):
                    raise Violation(f"read what was never there: {record}")
            # Nothing that the caller had seen may be missing: what is there now, or was, is at least as new.
            found = read.get(arguments["key"])
            due = held(arguments["key"], arguments["at_least"])
            if due is None:
                continue
            gone = any(value is None and at > due[0] for at, _, value in by_key[arguments["key"]])
            if found[0] < due[0] if found is not None else not gone:
                raise Violation(f"older than the caller allowed, {due} is due: {record}")
            continue
        if "prefix" in arguments:
            keys = [key for key in by_key if key.startswith(arguments["prefix"])]
        else:
            keys = [arguments["key"]]
        due_all = {key: there for key in keys if (there := held(key, result["revision"])) is not None}
        if read != due_all:
            raise Violation(f"read {read}, and the store held {due_all}: {record}")
    return checked


def _watches(records: Sequence[Record], truth: Truth) -> int:
    """Each watch has seen all changes of its range between where it began and where it ended, once and in order."""
    revisions = [change[0] for change in truth.changes]
    checked = 0
    for record in records:
        if record.operation != "watch" or record.result is None or "events" not in record.result:
            continue
        arguments, result = record.arguments, record.result
        events = [tuple(event[:3]) for event in result["events"]]
        upto = result.get("upto", events[-1][0] - 1 if events else arguments["position"])
        inside: Callable[[str], bool] = (
            (lambda key, p=arguments["prefix"]: key.startswith(p))  # type: ignore[misc]
            if "prefix" in arguments
            else (lambda key, k=arguments["key"]: key == k)  # type: ignore[misc]
        )
        first, last = bisect_right(revisions, arguments["position"]), bisect_right(revisions, upto)
        due = [change for change in truth.changes[first:last] if inside(change[1])]
        seen = [event for event in events if event[0] <= upto]
        if seen != due:
            differ = next(
                (n for n, (a, b) in enumerate(zip(seen, due, strict=False)) if a != b), min(len(seen), len(due))
            )
            raise Violation(
                f"a watch of {arguments} by {record.process} up to {upto} differs from its event {differ} on: "
                f"saw {seen[differ : differ + 3]}, due were {due[differ : differ + 3]}"
            )
        checked += len(due)
    return checked


def _guarded(records: Sequence[Record], truth: Truth) -> int:
    """What is written under a lock's guard is in the order of the tokens, and each token has one owner."""
    newest: dict[str, tuple[int, str]] = {}
    checked = 0
    for revision, key, value in truth.changes:
        if not key.startswith("g/") or value is None:
            continue
        checked += 1
        text, owner, _ = value.split()
        token, (last, last_owner) = int(text), newest.get(key, (0, ""))
        if token < last or (token == last and owner != last_owner):
            raise Violation(f"{key} at {revision}: {value!r} comes after token {last} of {last_owner}")
        newest[key] = (token, owner)
    return checked


def _locks(records: Sequence[Record], truth: Truth) -> int:
    """Tokens grow from one holder to the next; nobody holds a lock once another one has it, by their own clocks."""
    acquired: dict[tuple[str, int], Record] = {}
    last_held: dict[tuple[str, int], int] = {}
    for record in records:
        if record.outcome != OK or record.result is None:
            continue
        name = record.arguments.get("name", "")
        if record.operation == "acquire" and record.result["token"] is not None:
            mark = (name, record.result["token"])
            if mark in acquired:
                raise Violation(f"one token twice: {acquired[mark]} and {record}")
            acquired[mark] = record
        elif record.operation == "held":
            mark = (name, record.arguments["token"])
            last_held[mark] = max(last_held.get(mark, 0), record.start_ns)
    by_lock: dict[str, list[int]] = defaultdict(list)
    for name, token in acquired:
        by_lock[name].append(token)
    for name, tokens in by_lock.items():
        tokens.sort()
        for before, after in itertools.pairwise(tokens):
            taken = acquired[name, after]
            assert taken.end_ns is not None
            if last_held.get((name, before), 0) > taken.end_ns:
                raise Violation(f"two hold {name}: {acquired[name, before]} still did when {taken} had ended")
    return len(acquired)


# --- what the store keeps for coordination ----------------------------------------------------------------------------


def _queue(records: Sequence[Record], left: Sequence[str]) -> int:
    """No item that was put is lost, none is acknowledged twice, none comes from nowhere."""
    put: dict[str, Record] = {}
    acknowledged: Counter[str] = Counter(left)
    maybe: Counter[str] = Counter()
    for record in records:
        item = record.arguments.get("item")
        if record.operation == "enqueue":
            put[item] = record
        elif record.operation == "ack":
            (acknowledged if record.outcome == OK else maybe)[item] += record.outcome != FAIL
        elif record.operation == "claim" and record.outcome == OK and record.result and record.result["item"]:
            acknowledged[record.result["item"]] += 0
    for item, record in put.items():
        if record.outcome == OK and not acknowledged[item] and not maybe[item]:
            raise Violation(f"an item of the queue is lost: {record}")
    for item, times in acknowledged.items():
        if times > 1:
            raise Violation(f"item {item} was acknowledged, or is left, {times} times")
        if item not in put:
            raise Violation(f"item {item} of the queue comes from nowhere")
        if put[item].outcome == FAIL:
            raise Violation(f"item {item} is in the queue, though {put[item]}")
    return len(put)


def _sum(records: Sequence[Record], total: int) -> int:
    """The recipe's counter counted each addition once."""
    values = [
        record.result["value"]
        for record in records
        if record.operation == "sum" and record.outcome == OK and record.result
    ]
    if len(set(values)) != len(values):
        raise Violation("two additions of 1 returned the same value")
    unknown = sum(record.operation == "sum" and record.outcome not in (OK, FAIL) for record in records)
    if not len(values) <= total <= len(values) + unknown:
        raise Violation(f"the counter is {total}, after {len(values)} additions and {unknown} of unknown outcome")
    return len(values)


BY_CLOCKS = ("held", "lease_end", "lease_held")
"""Operations of which the result rests on clocks."""
Check = Callable[[Sequence[Record], Truth], int]


def _lists(records: Sequence[Record], truth: Truth) -> int:
    return check_lists(records)


def _leases(records: Sequence[Record], truth: Truth) -> int:
    return check_leases(records)


def _rights(records: Sequence[Record], truth: Truth) -> int:
    return check_rights(records)


def _previous(records: Sequence[Record], truth: Truth) -> int:
    return check_previous(records, truth.changes)


def _progress(records: Sequence[Record], truth: Truth) -> int:
    return check_progress(records, truth.changes)


def _appends(records: Sequence[Record], truth: Truth) -> int:
    return check_appends(records, truth.changes)


ALONE: tuple[Check, ...] = (_errors, _revisions, _lists, _leases, _rights, _locks)
"""Checks that need the history and nothing else."""
WITH_TRUTH: tuple[Check, ...] = (_writes, _appends, _reads, _watches, _progress, _previous, _guarded)
