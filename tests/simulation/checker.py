"""Was this history possible? A linearizability checker, and a second judge that goes by revisions.

``check_linearizable`` is the search of Wing and Gong ("Testing and verifying concurrent objects", 1993) with Lowe's
memoisation of (operations linearized, state) pairs ("Testing for linearizability", 2017). Linearizability is
compositional, so each object (a key, a pair of keys that only transactions touch together, a counter) is searched
alone. A call whose outcome is unknown never returns: it may have taken effect at any time after its invocation, or
never. A search that exceeds its budget raises: not knowing is not a pass.

``check_revisions`` needs no search. Every answer of the store carries its revision, a total order that the store itself
claims, so it can be held to it: revisions respect real time, no two writes share one, and what a read returned at a
revision is what a replay of the writes up to it gives.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

NEVER = 1 << 62
"""``Call.returned`` of a call whose outcome is unknown."""


class Violation(AssertionError):
    """The history, or the state of the cluster, breaks a promise of the product."""


class GaveUp(Violation):
    """The search ran out of budget, so nothing is known of the history."""


@dataclass(slots=True)
class Call:
    """One operation on one object. ``invoked`` and ``returned`` are points on one counter of all events."""

    client: str
    kind: str
    argument: Any
    invoked: int
    returned: int = NEVER
    result: Any = None

    def __str__(self) -> str:
        end = "?" if self.returned == NEVER else str(self.returned)
        answer = "" if self.returned == NEVER else f" -> {self.result!r}"
        return f"[{self.invoked}..{end}] {self.client}: {self.kind}({self.argument!r}){answer}"


Step = Callable[[Any, str, Any, Any, bool], tuple[bool, Hashable]]
"""(state, kind, argument, result, known) -> (could it be, state after it)."""


def register(state: Any, kind: str, argument: Any, result: Any, known: bool) -> tuple[bool, Hashable]:
    """A register with compare-and-set; the state is its value, ``None`` for no such key.

    Kinds: ``get`` -> value; ``put`` v; ``swap`` v -> value before; ``delete`` -> whether there was one;
    ``cas`` (old, new) -> ``True``, or ``(False, value)`` with the value that stood in its way.
    """
    if kind == "get":
        return result == state, state
    if kind == "put":
        return True, argument
    if kind == "swap":
        return not known or result == state, argument
    if kind == "delete":
        return not known or result == (state is not None), None
    if kind == "cas":
        old, new = argument
        if state == old:
            return not known or result is True, new
        return not known or result == (False, state), state
    raise ValueError(kind)


def counter(state: Any, kind: str, argument: Any, result: Any, known: bool) -> tuple[bool, Hashable]:
    """A counter from 0: ``add`` -> the count before it; ``get`` -> the count."""
    if kind == "add":
        return not known or result == state, state + 1
    if kind == "get":
        return result == state, state
    raise ValueError(kind)


class _Event:
    """A link in the list of invocations and returns, in the order of time."""

    __slots__ = ("back", "call", "next", "number", "previous")

    def __init__(self, call: Call | None, number: int) -> None:
        self.call = call
        self.number = number
        self.back: _Event | None = None
        """Of an invocation: its return, if it has one. Of a return: ``None``."""
        self.previous: _Event | None = None
        self.next: _Event | None = None


def check_linearizable(calls: Sequence[Call], step: Step, initial: Hashable, *, budget: int = 500_000) -> int:
    """Find an order of the calls that respects real time and the model.

    Returns:
        The number of states looked at.

    Raises:
        Violation: there is no such order.
        GaveUp: none was found within ``budget`` states.
    """
    wanted = [call for call in calls if call.returned != NEVER or call.kind != "get"]
    head = _link(wanted)
    missing = sum(call.returned != NEVER for call in wanted)
    state = initial
    linearized = 0
    seen: set[tuple[int, Hashable]] = set()
    path: list[tuple[_Event, Hashable]] = []
    longest: list[str] = []
    looked = 0
    event = head.next
    while missing:
        if event is not None and event.call is not None:
            call = event.call
            known = call.returned != NEVER
            possible, after = step(state, call.kind, call.argument, call.result, known)
            looked += 1
            if possible and not (after == state and not known):  # an open call without effect explains nothing
                mark = (linearized | 1 << event.number, after)
                if mark not in seen:
                    seen.add(mark)
                    if looked > budget:
                        raise GaveUp(f"no order found for {len(wanted)} calls within {budget} states")
                    path.append((event, state))
                    linearized, state = mark
                    _lift(event)
                    missing -= known
                    event = head.next
                    continue
            event = event.next
            continue
        # A return whose call is not linearized yet (or the end): nothing more fits on this path.
        if len(path) >= len(longest):
            longest = [str(step_.call) for step_, _ in path] + [f"stuck in state {state!r}"]
        if not path:
            raise Violation(_explain(wanted, longest))
        last, state = path.pop()
        assert last.call is not None
        linearized &= ~(1 << last.number)
        _unlift(last)
        missing += last.call.returned != NEVER
        event = last.next
    return looked


def _explain(calls: Sequence[Call], longest: Sequence[str]) -> str:
    lines = ["the history is not linearizable; its calls:"]
    lines += [f"  {call}" for call in sorted(calls, key=lambda call: call.invoked)]
    lines.append("the longest order that was possible ends with:")
    lines += [f"  {line}" for line in longest[-12:]]
    return "\n".join(lines)


def _link(calls: Sequence[Call]) -> _Event:
    points: list[tuple[int, int, _Event]] = []
    for number, call in enumerate(calls):
        start = _Event(call, number)
        points.append((call.invoked, 0, start))
        if call.returned != NEVER:
            start.back = _Event(None, number)
            points.append((call.returned, 1, start.back))
    points.sort(key=lambda point: point[:2])
    head = _Event(None, -1)
    last = head
    for _, _, event in points:
        last.next, event.previous = event, last
        last = event
    return head


def _lift(event: _Event) -> None:
    """Take a call (and its return) out of the list."""
    for link in (event, event.back):
        if link is not None:
            assert link.previous is not None
            link.previous.next = link.next
            if link.next is not None:
                link.next.previous = link.previous


def _unlift(event: _Event) -> None:
    """Put it back, in the reverse order of ``_lift``."""
    for link in (event.back, event):
        if link is not None:
            assert link.previous is not None
            link.previous.next = link
            if link.next is not None:
                link.next.previous = link


# --- revisions -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """A key as an answer showed it: ``value`` is ``None`` if there was no such key."""

    key: bytes
    value: bytes | None
    mod_revision: int = 0
    version: int = 0
    create_revision: int = 0


@dataclass(slots=True)
class Observation:
    """What one finished call said about revisions."""

    client: str
    what: str
    invoked: int
    returned: int
    revision: int
    """The store's revision that the answer speaks of; of a write that changed something, its own."""
    linearizable: bool = True
    writes: dict[bytes, bytes | None] = field(default_factory=dict)
    """What it changed: value, or ``None`` for a deletion."""
    reads: list[Seen] = field(default_factory=list)
    at_least: int = 0
    past: bool = False
    """A read at a revision that the caller named: not newer than the present, and not bound to real time."""

    def __str__(self) -> str:
        return f"[{self.invoked}..{self.returned}] {self.client}: {self.what} at revision {self.revision}"


def check_revisions(observations: Iterable[Observation], unsure_deletes: Iterable[tuple[bytes, int]] = ()) -> None:
    """Hold the answers to the order that their revisions claim.

    Args:
        observations: all finished calls.
        unsure_deletes: (key, invoked) of deletions whose outcome is unknown: they may explain an absence.

    Raises:
        Violation: they contradict each other.
    """
    everything = sorted(observations, key=lambda seen: seen.invoked)
    check_real_time(everything)
    events = _collect_events(everything)
    unsure: dict[bytes, int] = {}
    for key, invoked in unsure_deletes:
        unsure[key] = min(invoked, unsure.get(key, NEVER))
    _check_replay(everything, events, unsure)


def check_real_time(everything: Sequence[Observation]) -> None:
    """An answer speaks of a revision no older than any that was seen before its call began.

    Args:
        everything: in the order of the invocations.
    """
    ended = sorted((seen for seen in everything if not seen.past), key=lambda seen: seen.returned)
    position = 0
    newest: Observation | None = None
    for seen in everything:
        while position < len(ended) and ended[position].returned < seen.invoked:
            if newest is None or ended[position].revision > newest.revision:
                newest = ended[position]
            position += 1
        if seen.revision < seen.at_least:
            raise Violation(f"an answer is older than the caller allowed ({seen.at_least}): {seen}")
        if newest is None or not seen.linearizable or seen.past:
            continue
        if seen.revision < newest.revision or (seen.writes and seen.revision == newest.revision):
            raise Violation(f"overtaken: {seen}\n  though before it had finished: {newest}")


def _collect_events(everything: Sequence[Observation]) -> dict[bytes, dict[int, bytes | None]]:
    """By key: every known change, by revision."""
    writers: dict[int, Observation] = {}
    events: dict[bytes, dict[int, bytes | None]] = {}

    def learn(key: bytes, revision: int, value: bytes | None, seen: Observation) -> None:
        known = events.setdefault(key, {})
        if known.setdefault(revision, value) != value:
            raise Violation(
                f"two values for {key!r} at revision {revision}: {known[revision]!r} and {value!r}\n  {seen}"
            )

    for seen in everything:
        if seen.writes:
            other = writers.setdefault(seen.revision, seen)
            if other is not seen:
                raise Violation(f"two writes share a revision:\n  {other}\n  {seen}")
            for key, value in seen.writes.items():
                learn(key, seen.revision, value, seen)
        for item in seen.reads:
            if item.value is not None:
                if item.mod_revision > seen.revision:
                    raise Violation(f"{item} comes from the future of {seen}")
                learn(item.key, item.mod_revision, item.value, seen)
    for revision, seen in writers.items():
        for key, known in events.items():
            if revision in known and key not in seen.writes:
                raise Violation(f"revision {revision} changed {key!r}, though it belongs to {seen}")
    return events


def _check_replay(
    everything: Sequence[Observation], events: dict[bytes, dict[int, bytes | None]], unsure: dict[bytes, int]
) -> None:
    order = {key: sorted(known) for key, known in events.items()}
    versions: dict[tuple[bytes, int], tuple[int, int]] = {}
    for seen in everything:
        for item in seen.reads:
            revisions = order.get(item.key, [])
            position = bisect_right(revisions, seen.revision)
            last = revisions[position - 1] if position else 0
            if item.value is None:
                if last and events[item.key][last] is not None and unsure.get(item.key, NEVER) > seen.returned:
                    raise Violation(f"{item.key!r} is missing, though written at revision {last}: {seen}")
                continue
            if last != item.mod_revision:
                raise Violation(f"{item} is not the newest at {seen}: revision {last} is")
            counted = (item.create_revision, item.version)
            if versions.setdefault((item.key, last), counted) != counted:
                raise Violation(f"{item}: other create revision and version than {versions[item.key, last]}: {seen}")
