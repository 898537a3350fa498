"""Lists that transactions read and append to, judged as Elle does (Kingsbury and Alvaro, *Elle: Inferring Isolation
Anomalies from Experimental Observations*): by cycles of dependencies.

Each element is appended once, so a list that is read names the transactions that made it, in their order. From what was
read follow dependencies: whose append came before whose (ww), who read whose append (wr), who appended after what
somebody had read (rw), and who had ended before somebody began. If the transactions took effect one at a time, in an
order that respects real time, these have no cycle. Nothing but the history is needed.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from simulation.checker import Violation

from .journal import FAIL, OK, Record


@dataclass
class _Graph:
    """Nodes are transactions, and after them one for each end, by which real time is said with few edges."""

    edges: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, before: int, after: int, why: str) -> None:
        if before != after:
            self.edges[before].setdefault(after, why)


def check_lists(records: Sequence[Record]) -> int:
    """Judge all list transactions of a history; how many there were.

    Raises:
        Violation: no order explains what they saw.
    """
    found = [record for record in records if record.operation == "list_txn"]
    writers = _writers(found)
    orders = _orders(found, writers)
    # One that had no effect, or of which nobody knows and nobody has seen an effect, does not take part in any order.
    seen = {writers[key, element] for key, order in orders.items() for element in order}
    there = [record for n, record in enumerate(found) if record.outcome == OK or n in seen]
    number = {id(record): n for n, record in enumerate(there)}
    writer = {mark: number[id(found[n])] for mark, n in writers.items() if id(found[n]) in number}
    graph = _Graph()
    for key, order in orders.items():
        for one, other in itertools.pairwise(order):
            graph.add(writer[key, one], writer[key, other], f"ww {key}: {one} before {other}")
    for n, record in enumerate(there):
        for key, read in _reads(record).items():
            if read:
                graph.add(writer[key, read[-1]], n, f"wr {key}: {read[-1]} was read")
            order = orders.get(key, [])
            if len(order) > len(read):
                graph.add(n, writer[key, order[len(read)]], f"rw {key}: {order[len(read)]} was not read")
    _add_real_time(graph, there)
    cycle = _cycle(graph, len(there))
    if cycle:
        raise Violation("transactions depend on each other in a circle: " + "; ".join(_told(graph, cycle, there)))
    return len(there)


def _reads(record: Record) -> dict[str, list[str]]:
    return (record.result or {}).get("seen", {}) if record.outcome == OK else {}


def _writers(found: Sequence[Record]) -> dict[tuple[str, str], int]:
    writers: dict[tuple[str, str], int] = {}
    for n, record in enumerate(found):
        for key, element in record.arguments["appends"].items():
            writers[key, element] = n
    return writers


def _orders(found: Sequence[Record], writers: dict[tuple[str, str], int]) -> dict[str, list[str]]:
    """The order of each list: the longest that was seen, of which all others must be beginnings."""
    lists: dict[str, list[tuple[list[str], Record]]] = defaultdict(list)
    for record in found:
        for key, read in _reads(record).items():
            lists[key].append((read, record))
            if key in record.arguments["appends"]:
                lists[key].append(([*read, record.arguments["appends"][key]], record))
    orders: dict[str, list[str]] = {}
    for key, seen in lists.items():
        longest = max((read for read, _ in seen), key=len)
        if len(set(longest)) != len(longest):
            raise Violation(f"an element is twice in {key}: {longest}")
        for read, record in seen:
            if read != longest[: len(read)]:
                raise Violation(f"{key} was read as {read}, and {longest} does not begin so: {record}")
        for element in longest:
            if (key, element) not in writers:
                raise Violation(f"nobody appended {element} to {key}")
            if found[writers[key, element]].outcome == FAIL:
                raise Violation(f"{element} is in {key}, though {found[writers[key, element]]}")
        orders[key] = longest
    return orders


def _add_real_time(graph: _Graph, there: Sequence[Record]) -> None:
    """Who ended before another began comes before it: over a chain of the ends, so that few edges say it of all."""
    ends = sorted((record.end_ns, n) for n, record in enumerate(there) if record.outcome == OK and record.end_ns)
    times = [end for end, _ in ends]
    for place, (_, n) in enumerate(ends):
        graph.add(n, len(there) + place, "had ended")
        if place:
            graph.add(len(there) + place - 1, len(there) + place, "")
    for n, record in enumerate(there):
        before = bisect_left(times, record.start_ns)
        if before:
            graph.add(len(there) + before - 1, n, "before it began")


def _cycle(graph: _Graph, transactions: int) -> list[int]:
    """A circle of dependencies; empty if there is none."""
    state: dict[int, int] = {}
    for start in list(graph.edges):
        if start in state:
            continue
        path, waiting = [start], [iter(graph.edges[start])]
        state[start] = 1
        while path:
            after = next(waiting[-1], None)
            if after is None:
                state[path.pop()] = 2
                waiting.pop()
            elif state.get(after) == 1:
                return [*path[path.index(after) :], after]
            elif after not in state:
                state[after] = 1
                path.append(after)
                waiting.append(iter(graph.edges.get(after, ())))
    return []


def _told(graph: _Graph, cycle: Sequence[int], there: Sequence[Record]) -> list[str]:
    said = []
    for one, other in itertools.pairwise(cycle):
        if one < len(there):
            said.append(str(there[one])[:300])
        if why := graph.edges[one][other]:
            said.append(why)
    return said
