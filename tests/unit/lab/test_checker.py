"""The judge on trial: histories that are known to be good pass, histories that are known to be bad do not."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.checker import (
    NEVER,
    Call,
    GaveUp,
    Observation,
    Seen,
    Violation,
    check_linearizable,
    check_revisions,
    counter,
    register,
)


def call(invoked: int, returned: int, kind: str, argument: object = None, result: object = None) -> Call:
    return Call("c", kind, argument, invoked, returned, result)


GOOD = {
    "nothing": (register, []),
    "read of nothing": (register, [call(1, 2, "get", result=None)]),
    "overlapping writes may settle in either order": (
        register,
        [call(1, 4, "put", "a"), call(2, 3, "put", "b"), call(5, 6, "get", result="a")],
    ),
    "a read during a write may see it": (register, [call(1, 4, "put", "a"), call(2, 3, "get", result="a")]),
    "a read during a write may miss it": (register, [call(1, 4, "put", "a"), call(2, 3, "get")]),
    "an open write may take effect late": (
        register,
        [call(1, NEVER, "put", "a"), call(2, 3, "get"), call(4, 5, "get", result="a")],
    ),
    "an open write may never take effect": (register, [call(1, NEVER, "put", "a"), call(2, 3, "get")]),
    "an open compare-and-set explains a later value": (
        register,
        [call(1, 2, "put", "a"), call(3, NEVER, "cas", ("a", "b")), call(4, 5, "get", result="b")],
    ),
    "a failed compare-and-set shows what was there": (
        register,
        [call(1, 2, "put", "a"), call(3, 4, "cas", ("x", "b"), (False, "a"))],
    ),
    "delete and delete again": (
        register,
        [call(1, 2, "put", "a"), call(3, 4, "delete", result=True), call(5, 6, "delete", result=False)],
    ),
    "concurrent additions": (
        counter,
        [call(1, 5, "add", result=1), call(2, 4, "add", result=0), call(6, 7, "get", result=2)],
    ),
    "an open addition counts or not": (
        counter,
        [call(1, NEVER, "add"), call(2, 3, "add", result=0), call(4, 5, "add", result=2)],
    ),
}

BAD = {
    "a stale read": (register, [call(1, 2, "put", "a"), call(3, 4, "put", "b"), call(5, 6, "get", result="a")]),
    "a lost write": (register, [call(1, 2, "put", "a"), call(3, 4, "get")]),
    "a value from nowhere": (register, [call(1, 2, "put", "a"), call(3, 4, "get", result="z")]),
    "a read from the future": (register, [call(1, 2, "get", result="a"), call(3, 4, "put", "a")]),
    "new, then old": (
        register,
        [call(1, 9, "put", "a"), call(2, 3, "get", result="a"), call(4, 5, "get")],
    ),
    "two winners of one compare-and-set": (
        register,
        [call(1, 2, "put", "a"), call(3, 6, "cas", ("a", "b"), True), call(4, 5, "cas", ("a", "c"), True)],
    ),
    "an open write cannot come and go": (
        register,
        [call(1, NEVER, "put", "a"), call(2, 3, "get", result="a"), call(4, 5, "get")],
    ),
    "an open write before its invocation": (register, [call(1, 2, "get", result="a"), call(3, NEVER, "put", "a")]),
    "a swap that missed a write": (register, [call(1, 2, "put", "a"), call(3, 4, "swap", "b", None)]),
    "an addition lost": (counter, [call(1, 2, "add", result=0), call(3, 4, "add", result=0)]),
    "an addition twice": (counter, [call(1, 2, "add", result=0), call(3, 4, "get", result=2)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_possible_history_passes(name: str) -> None:
    step, calls = GOOD[name]
    check_linearizable(calls, step, 0 if step is counter else None)


@pytest.mark.parametrize("name", BAD)
def test_an_impossible_history_is_refused(name: str) -> None:
    step, calls = BAD[name]
    with pytest.raises(Violation, match="not linearizable"):
        check_linearizable(calls, step, 0 if step is counter else None)


def test_a_search_without_budget_fails_instead_of_passing() -> None:
    calls = [call(1, NEVER, "put", str(n)) for n in range(12)] + [call(2, 3, "get", result="z")]
    with pytest.raises(GaveUp):
        check_linearizable(calls, register, None, budget=50)


def _possible(calls: list[Call]) -> bool:
    """By brute force: some order, of the finished calls and any of the open ones, respects time and the register."""
    done = [c for c in calls if c.returned != NEVER]
    open_ = [c for c in calls if c.returned == NEVER]
    for chosen in range(1 << len(open_)):
        present = done + [c for n, c in enumerate(open_) if chosen >> n & 1]
        for order in permutations(present):
            if any(later.returned < earlier.invoked for n, earlier in enumerate(order) for later in order[n + 1 :]):
                continue
            state: object = None
            for c in order:
                possible, state = register(state, c.kind, c.argument, c.result, c.returned != NEVER)
                if not possible:
                    break
            else:
                return True
    return False


@st.composite
def _histories(draw: st.DrawFn) -> list[Call]:
    points = draw(st.permutations(range(10)))
    calls = []
    for n in range(draw(st.integers(1, 5))):
        invoked, returned = sorted(points[2 * n : 2 * n + 2])
        kind = draw(st.sampled_from(["get", "put", "cas", "delete"]))
        value = st.sampled_from(["a", "b"])
        argument: object = None
        result: object = None
        if kind == "get":
            result = draw(st.none() | value)
        elif kind == "put":
            argument = draw(value)
        elif kind == "cas":
            argument = (draw(st.none() | value), draw(value))
            result = draw(st.just(True) | st.tuples(st.just(False), st.none() | value))
        else:
            result = draw(st.booleans())
        ended = returned if kind == "get" or draw(st.booleans()) else NEVER
        calls.append(Call("c", kind, argument, invoked, ended, result))
    return calls


@settings(max_examples=600, deadline=None)
@given(_histories())
def test_the_search_agrees_with_brute_force(calls: list[Call]) -> None:
    try:
        check_linearizable(calls, register, None)
        found = True
    except Violation:
        found = False
    assert found == _possible(calls)


def wrote(invoked: int, returned: int, revision: int, key: bytes = b"k", value: bytes | None = b"v") -> Observation:
    return Observation("c", "write", invoked, returned, revision, writes={key: value})


def read(invoked: int, returned: int, revision: int, *seen: Seen, **more: object) -> Observation:
    return Observation("c", "read", invoked, returned, revision, reads=list(seen), **more)  # type: ignore[arg-type]


GOOD_REVISIONS = {
    "in order": [wrote(1, 2, 2, value=b"a"), wrote(3, 4, 3, value=b"b"), read(5, 6, 3, Seen(b"k", b"b", 3, 2, 2))],
    "overlapping writes in either order": [wrote(1, 4, 3, value=b"a"), wrote(2, 3, 2, value=b"b")],
    "a stale serializable read": [wrote(1, 2, 2), read(3, 4, 1, Seen(b"k", None), linearizable=False)],
    "a read of the past": [wrote(1, 2, 2), wrote(3, 4, 3), read(5, 6, 2, Seen(b"k", b"v", 2, 1, 2), past=True)],
    "a deletion": [wrote(1, 2, 2), wrote(3, 4, 3, value=None), read(5, 6, 3, Seen(b"k", None))],
}

BAD_REVISIONS = {
    "revisions against real time": [wrote(1, 2, 3), wrote(3, 4, 2, value=b"b")],
    "a read that was overtaken by a write": [wrote(1, 2, 2), read(3, 4, 1, Seen(b"k", None))],
    "a read that was overtaken by a read": [read(1, 2, 7, linearizable=False), read(3, 4, 6)],
    "two writes with one revision": [wrote(1, 4, 2), wrote(2, 3, 2, key=b"other")],
    "two values at one revision": [wrote(1, 2, 2), read(3, 4, 2, Seen(b"k", b"z", 2, 1, 2))],
    "a lost write": [wrote(1, 2, 2), read(3, 4, 5, Seen(b"k", None))],
    "an old value": [wrote(1, 2, 2), wrote(3, 4, 3, value=b"b"), read(5, 6, 3, Seen(b"k", b"v", 2, 1, 2))],
    "two counts of one version": [
        wrote(1, 2, 2),
        read(3, 4, 2, Seen(b"k", b"v", 2, 1, 2)),
        read(5, 6, 2, Seen(b"k", b"v", 2, 2, 2)),
    ],
    "behind what the caller had seen": [read(1, 2, 4, linearizable=False, at_least=5)],
}


@pytest.mark.parametrize("name", GOOD_REVISIONS)
def test_revisions_in_order_pass(name: str) -> None:
    check_revisions(GOOD_REVISIONS[name])


@pytest.mark.parametrize("name", BAD_REVISIONS)
def test_revisions_that_contradict_each_other_are_refused(name: str) -> None:
    with pytest.raises(Violation):
        check_revisions(BAD_REVISIONS[name])


def test_an_open_deletion_explains_an_absence() -> None:
    history = [wrote(1, 2, 2), read(5, 6, 3, Seen(b"k", None))]
    check_revisions(history, [(b"k", 3)])
    with pytest.raises(Violation):
        check_revisions(history, [(b"k", 7)])
