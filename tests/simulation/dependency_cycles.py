"""Were these transactions strictly serializable? Lists that are only appended to, judged by cycles of dependencies.

The way of Elle (Kingsbury and Alvaro, "Elle: inferring isolation anomalies from experimental observations", 2020).
Every element is appended once, so a list that is read names all transactions that wrote it, in their order. From that
follow dependencies between transactions, over any number of keys:

- *ww*: one appended the element after another's;
- *wr*: one read the element that another appended last;
- *rw*: one read a list without the element that another appended next;
- *rt*: one had ended before another began.

A cycle of these has no order that explains it. No search is needed, so a history may be as long as it likes. A
transaction whose outcome is unknown counts once somebody has seen an element of it, and then never ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from simulation.checker import NEVER, Violation


@dataclass(slots=True, eq=False)
class Transaction:
    """What one transaction on lists did and saw. ``invoked`` and ``returned`` are points on one counter."""

    client: str
    invoked: int
    returned: int = NEVER
    reads: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    """By key: the list as it was before what this transaction appended."""
    appends: dict[bytes, str] = field(default_factory=dict)
    """By key: the element that was appended. Meant, as long as the outcome is unknown."""

    def __str__(self) -> str:
        end = "?" if self.returned == NEVER else str(self.returned)
        reads = ", ".join(f"{key.decode()}={'/'.join(seen[-3:])}({len(seen)})" for key, seen in self.reads.items())
        appends = ", ".join(f"{key.decode()}+{element}" for key, element in self.appends.items())
        return f"[{self.invoked}..{end}] {self.client}: read {reads or 'nothing'}; appended {appends or 'nothing'}"


def check_transactions(transactions: Iterable[Transaction]) -> int:
    """Look for cycles.

    Returns:
        The number of dependencies between transactions.

    Raises:
        Violation: there is a cycle, or lists that contradict each other, or an appended element is missing.
    """
    everything = list(transactions)
    writers = _writers(everything)
    orders = _orders(everything, writers)
    edges = _dependencies(everything, writers, orders)
    _look_for_cycles(everything, edges)
    return sum(len(to) for to in edges.values())


def _writers(everything: Sequence[Transaction]) -> dict[tuple[bytes, str], Transaction]:
    writers: dict[tuple[bytes, str], Transaction] = {}
    for transaction in everything:
        for key, element in transaction.appends.items():
            if writers.setdefault((key, element), transaction) is not transaction:
                raise Violation(f"{element} was appended to {key!r} twice")
    return writers


def _orders(
    everything: Sequence[Transaction], writers: dict[tuple[bytes, str], Transaction]
) -> dict[bytes, tuple[str, ...]]:
    """By key: the longest list that anybody read or made; all others are its beginnings."""
    longest: dict[bytes, tuple[str, ...]] = {}
    lists: list[tuple[bytes, tuple[str, ...], Transaction]] = []
    for transaction in everything:
        if transaction.returned == NEVER:
            continue
        for key, seen in transaction.reads.items():
            lists.append((key, seen, transaction))
            if key in transaction.appends:
                lists.append((key, (*seen, transaction.appends[key]), transaction))
    for key, seen, _ in lists:
        if len(seen) > len(longest.get(key, ())):
            longest[key] = seen
    for key, seen, transaction in lists:
        if seen != longest.get(key, ())[: len(seen)]:
            raise Violation(f"two orders of {key!r}: {longest[key]}, and {seen} of {transaction}")
    for key, order in longest.items():
        if len(set(order)) < len(order):
            raise Violation(f"an element of {key!r} is there twice: {order}")
        for element in order:
            if (key, element) not in writers:
                raise Violation(f"nobody appended {element} to {key!r}: {order}")
    return longest


def _dependencies(
    everything: Sequence[Transaction],
    writers: dict[tuple[bytes, str], Transaction],
    orders: dict[bytes, tuple[str, ...]],
) -> dict[object, dict[object, str]]:
    edges: dict[object, dict[object, str]] = {}

    def add(one: Transaction, other: Transaction, why: str) -> None:
        if one is not other:
            edges.setdefault(one, {}).setdefault(other, why)

    for key, order in orders.items():
        for before, after in pairwise(order):
            add(writers[key, before], writers[key, after], f"ww {key.decode()}")
    last_reads = max((t.invoked for t in everything if t.returned != NEVER and t.reads and not t.appends), default=0)
    for transaction in everything:
        if transaction.returned == NEVER:
            continue
        for key, seen in transaction.reads.items():
            order = orders.get(key, ())
            if seen:
                add(writers[key, seen[-1]], transaction, f"wr {key.decode()}")
            if len(seen) < len(order):
                add(transaction, writers[key, order[len(seen)]], f"rw {key.decode()}")
        for key, element in transaction.appends.items():
            if element not in orders.get(key, ()) and transaction.returned < last_reads:
                raise Violation(f"{element} is missing in {key!r}: {transaction}")
    _real_time(everything, edges)
    return edges


def _real_time(everything: Sequence[Transaction], edges: dict[object, dict[object, str]]) -> None:
    """Who ended before whom: by way of a chain of all ends, so that there are as many edges as transactions."""
    points = [(t.returned, 1, t) for t in everything if t.returned != NEVER] + [(t.invoked, 0, t) for t in everything]
    last: int | None = None
    for point, ends, transaction in sorted(points, key=lambda each: each[:2]):
        if not ends:
            if last is not None:
                edges.setdefault(last, {}).setdefault(transaction, "rt")
            continue
        edges.setdefault(transaction, {})[point] = "rt"
        if last is not None and last != point:
            edges.setdefault(last, {})[point] = "rt"
        last = point


def _look_for_cycles(everything: Sequence[Transaction], edges: dict[object, dict[object, str]]) -> None:
    """Depth first, without recursion: an edge to what is still open closes a cycle."""
    done: set[object] = set()
    for start in everything:
        if start in done:
            continue
        path: list[object] = [start]
        open_: dict[object, int] = {start: 0}
        ways = [iter(edges.get(start, ()))]
        while path:
            for following in ways[-1]:
                if following in open_:
                    raise Violation(_explain(path[open_[following] :], edges))
                if following not in done:
                    open_[following] = len(path)
                    path.append(following)
                    ways.append(iter(edges.get(following, ())))
                    break
            else:
                left = path.pop()
                ways.pop()
                del open_[left]
                done.add(left)


def _explain(cycle: Sequence[object], edges: dict[object, dict[object, str]]) -> str:
    lines = ["transactions depend on each other in a circle:"]
    for one, other in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
        if isinstance(one, Transaction):
            lines.append(f"  {one}")
        if isinstance(other, Transaction) or isinstance(one, Transaction):
            lines.append(f"    then ({edges[one][other]})")
    return "\n".join(lines)
