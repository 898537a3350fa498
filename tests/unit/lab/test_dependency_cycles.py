"""The judge of transactions on trial: it agrees with a search through all orders, and knows each kind of anomaly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations

import pytest

from simulation.checker import NEVER, Violation
from simulation.dependency_cycles import Transaction, check_transactions

X, Y = b"x", b"y"


def txn(
    invoked: int, returned: int, reads: dict[bytes, tuple[str, ...]], appends: dict[bytes, str] | None = None
) -> Transaction:
    return Transaction(f"c{invoked}", invoked, returned, reads, appends or {})


def final(reads: dict[bytes, tuple[str, ...]]) -> Transaction:
    return txn(1000, 1001, reads)


GOOD = {
    "nothing": [],
    "one after the other": [txn(1, 2, {X: ()}, {X: "a"}), txn(3, 4, {X: ("a",)}, {X: "b"}), final({X: ("a", "b")})],
    "those at one time in either order": [
        txn(1, 9, {X: ("b",)}, {X: "a"}),
        txn(2, 8, {X: ()}, {X: "b"}),
        final({X: ("b", "a")}),
    ],
    "an open one that took effect": [txn(1, NEVER, {}, {X: "a", Y: "a"}), final({X: ("a",), Y: ("a",)})],
    "an open one that did not": [txn(1, NEVER, {}, {X: "a"}), final({X: ()})],
}

BAD = {
    "a lost append": [txn(1, 2, {X: ()}, {X: "a"}), final({X: ()})],
    "a stale read": [txn(1, 2, {X: ()}, {X: "a"}), txn(3, 4, {X: ()}), final({X: ("a",)})],
    "two orders": [txn(1, 9, {X: ("a", "b")}), txn(2, 8, {X: ("b", "a")}), txn(3, 7, {}, {X: "a"}), final({X: ()})],
    "what nobody wrote": [final({X: ("a",)})],
    "a lost update": [txn(1, 8, {X: ()}, {X: "a"}), txn(2, 9, {X: ()}, {X: "b"}), final({X: ("a", "b")})],
    "half a transaction": [txn(1, 9, {X: (), Y: ()}, {X: "a", Y: "a"}), txn(2, 8, {X: ("a",), Y: ()})],
    "write skew": [
        txn(1, 8, {X: (), Y: ()}, {X: "a"}),
        txn(2, 9, {X: (), Y: ()}, {Y: "b"}),
        final({X: ("a",), Y: ("b",)}),
    ],
    "a long fork": [
        txn(1, 9, {X: ()}, {X: "a"}),
        txn(2, 9, {Y: ()}, {Y: "b"}),
        txn(3, 8, {X: ("a",), Y: ()}),
        txn(4, 8, {X: (), Y: ("b",)}),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name: str) -> None:
    check_transactions(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_each_anomaly_is_found(name: str) -> None:
    with pytest.raises(Violation):
        check_transactions(BAD[name])


def _has_an_order(history: Sequence[Transaction]) -> bool:
    for order in permutations(history):
        if any(later.returned < earlier.invoked for n, earlier in enumerate(order) for later in order[n + 1 :]):
            continue
        lists: dict[bytes, tuple[str, ...]] = {X: (), Y: ()}
        for each in order:
            if any(lists[key] != seen for key, seen in each.reads.items()):
                break
            for key, element in each.appends.items():
                lists[key] = (*lists[key], element)
        else:
            return True
    return False


@pytest.mark.parametrize("seed", range(40))
def test_it_agrees_with_a_search(seed: int) -> None:
    """Histories of a serial run, some of them with one thing changed; a read at the end names the whole order."""
    rng = random.Random(seed)
    for _ in range(10):
        lists: dict[bytes, tuple[str, ...]] = {X: (), Y: ()}
        history = []
        for n in range(5):
            keys = rng.choice(([X], [Y], [X, Y]))
            reads = {key: lists[key] for key in keys}
            appends = {key: f"e{n}" for key in keys if rng.random() < 0.6}
            lists |= {key: (*lists[key], element) for key, element in appends.items()}
            point = 10 * n
            history.append(txn(point - rng.randrange(25), point + 1 + rng.randrange(25), reads, appends))
        history.append(final(lists))
        if rng.random() < 0.7:
            victim = rng.choice(history[:-1])
            draw = rng.random()
            if draw < 0.5 and victim.reads:
                key = rng.choice(sorted(victim.reads))
                victim.reads[key] = lists[key][: rng.randint(0, len(lists[key]))]
            else:
                victim.invoked, victim.returned = 900, 950
        try:
            check_transactions(history)
        except Violation:
            assert not _has_an_order(history), history
        else:
            assert _has_an_order(history), history
