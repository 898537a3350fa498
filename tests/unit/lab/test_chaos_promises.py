"""The judges of lists, leases, previous values and the end state: right ones pass, and each planted lie is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from chaos.cycles import check_lists
from chaos.journal import FAIL, OK, UNKNOWN, Record
from chaos.promises import check_end_state, check_leases, check_previous, check_rights
from chaos.verdict import BY_CLOCKS, Truth, judge
from simulation.checker import Violation


def txn(
    begun: int, ended: int | None, seen: dict[str, str], appends: dict[str, str] | None = None, outcome: str = OK
) -> Record:
    """A transaction that read these lists, given as letters, and appended these."""
    result = {"seen": {key: list(value) for key, value in seen.items()}} if outcome == OK else None
    return Record("w", "list_txn", {"reads": list(seen), "appends": appends or {}}, result, begun, ended, outcome)


GOOD = {
    "one after the other": [
        txn(1, 2, {"x": "", "y": ""}, {"x": "a"}),
        txn(3, 4, {"x": "a", "y": ""}, {"x": "b", "y": "c"}),
        txn(5, 6, {"x": "ab", "y": "c"}),
    ],
    "at the same time, in another order": [
        txn(1, 9, {"x": "a"}, {"x": "b"}),
        txn(2, 9, {"x": ""}, {"x": "a"}),
        txn(3, 9, {"x": ""}),
    ],
    "of unknown outcome, and seen": [
        txn(1, None, {"x": ""}, {"x": "a"}, UNKNOWN),
        txn(3, 4, {"x": "a"}, {"x": "b"}),
    ],
    "of unknown outcome, and never seen": [txn(1, None, {"x": ""}, {"x": "z"}, UNKNOWN), txn(3, 4, {"x": ""})],
    "one that failed": [txn(1, 2, {"x": ""}, {"x": "z"}, FAIL), txn(3, 4, {"x": ""})],
}

LIES = {
    "lost update": [txn(1, 9, {"x": ""}, {"x": "a"}), txn(1, 9, {"x": ""}, {"x": "b"})],
    "a read of the past": [txn(1, 2, {"x": ""}, {"x": "a"}), txn(3, 4, {"x": ""})],
    "a read of the future": [txn(1, 2, {"x": "a"}), txn(3, 4, {"x": ""}, {"x": "a"})],
    "write skew": [txn(1, 9, {"x": "", "y": ""}, {"x": "a"}), txn(1, 9, {"x": "", "y": ""}, {"y": "b"}),
                   txn(10, 11, {"x": "a", "y": "b"})],
    "half a transaction": [txn(1, 9, {"x": "", "y": ""}, {"x": "a", "y": "b"}), txn(1, 9, {"x": "a", "y": ""})],
    "two readers that disagree": [txn(1, 9, {"x": ""}, {"x": "a"}), txn(1, 9, {"y": ""}, {"y": "b"}),
                                  txn(1, 9, {"x": "a", "y": ""}), txn(1, 9, {"x": "", "y": "b"})],
    "an order that changes": [txn(1, 9, {"x": "ab"}), txn(1, 9, {"x": "ba"}),
                              txn(1, 9, {"x": ""}, {"x": "a"}), txn(1, 9, {"x": "a"}, {"x": "b"})],
    "an element of nobody": [txn(1, 2, {"x": "g"})],
    "an element twice": [txn(1, 2, {"x": ""}, {"x": "a"}), txn(3, 4, {"x": "aa"})],
    "an element of one that failed": [txn(1, 2, {"x": ""}, {"x": "z"}, FAIL), txn(3, 4, {"x": "z"})],
}  # fmt: skip


@pytest.mark.parametrize("what", GOOD)
def test_lists_that_an_order_explains_pass(what: str) -> None:
    assert check_lists(GOOD[what]) == sum(record.outcome == OK for record in GOOD[what]) + ("and seen" in what)


@pytest.mark.parametrize("what", LIES)
def test_lists_that_no_order_explains_are_found(what: str) -> None:
    with pytest.raises(Violation):
        check_lists(LIES[what])


def story(seed: int, transactions: int = 300) -> list[Record]:
    """Transactions that overlap, each of which takes effect at a moment between its begin and its end."""
    rng = random.Random(seed)
    lists: dict[str, list[str]] = {key: [] for key in "xyz"}
    records = []
    for n in range(transactions):
        moment = 10 * n
        keys = rng.sample("xyz", rng.randrange(1, 4))
        seen = {key: list(lists[key]) for key in keys}
        appends = {key: f"{key}{n}" for key in keys if rng.random() < 0.5}
        for key, value in appends.items():
            lists[key].append(value)
        begun, ended = moment - rng.randrange(1, 40), moment + rng.randrange(1, 40)
        unknown = bool(appends) and rng.random() < 0.1
        records.append(
            Record(
                f"w{n}",
                "list_txn",
                {"reads": keys, "appends": appends},
                None if unknown else {"seen": seen},
                begun,
                None if unknown else ended,
                UNKNOWN if unknown else OK,
            )
        )
    return records


@pytest.mark.parametrize("seed", range(5))
def test_long_stories_pass_and_a_lie_in_them_is_found(seed: int) -> None:
    records = story(seed)
    assert check_lists(records) > 250
    rng = random.Random(seed)
    candidates = [record for record in records[50:] if record.outcome == OK and not record.arguments["appends"]]
    liar = rng.choice([record for record in candidates if record.result])
    assert liar.result is not None
    key = next(iter(liar.result["seen"]))
    del liar.result["seen"][key][-30:]  # what had been there for long is missing
    with pytest.raises(Violation, match="circle"):
        check_lists(records)


# --- rights ----------------------------------------------------------------------------------------------------------


def by_user(operation: str, begun: int, ended: int | None, denied: bool | None = None, outcome: str = OK) -> Record:
    result = {} if denied is None else {"denied": denied}
    return Record("w", operation, {"user": "ann"}, result, begun, ended, outcome)


OF_ANN = [by_user("add_user", 1, 2), by_user("grant", 10, 12), by_user("revoke", 20, 22), by_user("grant", 30, 32)]


@pytest.mark.parametrize(
    ("begun", "ended", "allowed"), [(3, 9, False), (12, 20, True), (22, 30, False), (32, 99, True), (13, 14, True)]
)
def test_calls_of_a_user_are_judged_where_its_right_is_certain(begun: int, ended: int, allowed: bool) -> None:
    for kind in ("user_put", "user_get"):
        assert check_rights([*OF_ANN, by_user(kind, begun, ended, denied=not allowed)]) == 1
        with pytest.raises(Violation, match="ann"):
            check_rights([*OF_ANN, by_user(kind, begun, ended, denied=allowed)])


@pytest.mark.parametrize(("begun", "ended"), [(9, 13), (11, 12), (19, 23), (21, 21), (1, 99)])
@pytest.mark.parametrize("denied", [True, False])
def test_calls_beside_a_change_may_end_either_way(begun: int, ended: int, denied: bool) -> None:
    assert check_rights([*OF_ANN, by_user("user_put", begun, ended, denied)]) == 0


def test_after_a_change_of_unknown_outcome_nothing_is_certain_and_one_that_failed_changes_nothing() -> None:
    unknown = [*OF_ANN[:2], by_user("revoke", 20, 22, outcome=UNKNOWN)]
    failed = [*OF_ANN[:2], by_user("revoke", 20, 22, outcome=FAIL)]
    for denied in (True, False):
        assert check_rights([*unknown, by_user("user_put", 40, 41, denied)]) == 0
    assert check_rights([*failed, by_user("user_put", 40, 41, denied=False)]) == 1
    with pytest.raises(Violation):
        check_rights([*failed, by_user("user_put", 40, 41, denied=True)])


# --- leases ----------------------------------------------------------------------------------------------------------


def lease(operation: str, result: dict[str, Any]) -> Record:
    return Record("w", operation, {"key": "t/1", "ttl": 2.0}, result, 1, 2, OK)


def test_leases_that_end_in_time_pass() -> None:
    fine = [
        lease("lease_end", {"lasted": 2.0}),
        lease("lease_end", {"lasted": 90.0}),
        lease("lease_end", {"lasted": None}),
        lease("lease_held", {"missing": False, "lost": False}),
        lease("lease_held", {"missing": True, "lost": True}),
        lease("lease_held", {"missing": False, "lost": True}),
    ]
    assert check_leases(fine) == 5


@pytest.mark.parametrize(
    ("operation", "result"),
    [("lease_end", {"lasted": 1.9}), ("lease_held", {"missing": True, "lost": False})],
)
def test_a_lease_that_ends_early_is_found_unless_clocks_lie(operation: str, result: dict[str, Any]) -> None:
    records = [lease(operation, result)]
    with pytest.raises(Violation):
        check_leases(records)
    with pytest.raises(Violation):
        judge(records, Truth(), [], 0)
    assert operation in BY_CLOCKS
    judge(records, Truth(), [], 0, clocks_lie=True)


# --- what was there before, and at the end ---------------------------------------------------------------------------

CHANGES: list[Any] = [(2, "a", "1"), (3, "b", "x"), (4, "a", "2"), (5, "a", None), (6, "a", "3"), (7, "flood/1", None)]


def watch(*events: list[Any]) -> list[Record]:
    return [Record("w", "watch", {"prefix": "", "position": 1}, {"events": list(events), "upto": 6}, 1, 2, OK)]


def test_what_was_there_before_passes() -> None:
    fine = watch(
        [2, "a", "1", None], [4, "a", "2", [2, "1"]], [5, "a", None, [4, "2"]], [6, "a", "3", None], [3, "b", "x"]
    )
    assert check_previous(fine, CHANGES) == 2
    assert check_previous(watch([9, "a", "4", [6, "3"]]), CHANGES) == 0, "beyond what is known"


@pytest.mark.parametrize("event", [[4, "a", "2", [2, "0"]], [6, "a", "3", [4, "2"]], [2, "a", "1", [1, "0"]]])
def test_what_was_not_there_before_is_found(event: list[Any]) -> None:
    with pytest.raises(Violation):
        check_previous(watch(event), CHANGES)


def test_the_end_is_what_the_history_comes_to() -> None:
    assert check_end_state({"a": (6, "3"), "b": (3, "x"), "flood/1": (7, "y")}, CHANGES) == 2


END: dict[str, Callable[[dict[str, tuple[int, str]]], Any]] = {
    "lost": lambda there: there.pop("b"),
    "changed": lambda there: there.update(b=(3, "y")),
    "of another revision": lambda there: there.update(b=(4, "x")),
    "of nobody": lambda there: there.update(c=(6, "x")),
}


@pytest.mark.parametrize("what", END)
def test_an_end_that_is_not_is_found(what: str) -> None:
    there = {"a": (6, "3"), "b": (3, "x")}
    END[what](there)
    with pytest.raises(Violation):
        check_end_state(there, CHANGES)
