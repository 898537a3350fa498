"""The log against a plain list: every operation, in any order, with the durable part lagging."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lab.raft.cluster import MemoryLog
from raykeeper.raft import Entry, EntryCompacted, EntryKind, EntryUnavailable, HardState, LogInconsistent
from raykeeper.raft.log import ENTRY_OVERHEAD, Log, entries_size, within_bytes

FOREVER = 1 << 40


def entries(low: int, *terms: int) -> list[Entry]:
    return [Entry(index, term, EntryKind.NORMAL, b"%d" % index) for index, term in enumerate(terms, low)]


def log_of(*terms: int, stable: int | None = None, commit: int = 0) -> Log:
    storage = MemoryLog()
    made = entries(1, *terms)
    count = len(made) if stable is None else stable
    storage.append(made[:count], HardState(), sync=True)
    log = Log(storage, 0, 0)
    if made[count:]:
        log.append(made[count:])
    log.commit_to(commit)
    return log


class LogMachine(RuleBasedStateMachine):
    """The model is the list of all entries ever, from index 1 on, and four numbers."""

    @initialize()
    def begin(self) -> None:
        self.storage = MemoryLog()
        self.log = Log(self.storage, 0, 0)
        self.model: list[Entry] = []
        self.base = 0
        self.commit = 0
        self.applied = 0
        self.stable = 0
        self.term = 1

    @rule(count=st.integers(1, 4), newer=st.booleans(), size=st.integers(0, 30))
    def append(self, count: int, newer: bool, size: int) -> None:
        """A leader's own entries."""
        self.term += newer
        first = len(self.model) + 1
        new = [Entry(first + i, self.term, EntryKind.NORMAL, b"x" * size) for i in range(count)]
        self.log.append(new)
        self.model += new

    @rule(data=st.data(), count=st.integers(0, 4), overlap=st.integers(0, 4))
    def append_from_leader(self, data: st.DataObject, count: int, overlap: int) -> None:
        """A newer leader's entries: some that are here, then others in place of what follows, or none."""
        prev = data.draw(st.integers(self.commit, len(self.model)))
        same = self.model[prev : prev + overlap]
        conflicting = data.draw(st.booleans())
        new = list(same)
        if conflicting:
            self.term += 1
            first = prev + len(same) + 1
            new += [Entry(first + i, self.term, EntryKind.NORMAL, b"%d" % self.term) for i in range(count)]
        prev_term = self.model[prev - 1].term if prev else 0
        assert self.log.append_from_leader(prev, prev_term, new) == prev + len(new)
        if len(new) > len(same):
            self.stable = min(self.stable, prev + len(same))
            self.model[prev + len(same) :] = new[len(same) :]

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """What does not fit changes nothing."""
        prev = data.draw(st.integers(self.base, len(self.model) + 3))
        assert self.log.append_from_leader(prev, self.term + 1, entries(prev + 1, self.term + 1)) is None

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """The owner writes all that is unstable, as of now or of a while ago."""
        unstable = list(self.log.unstable)
        assert unstable == self.model[self.stable :]
        if not unstable:
            return
        self.storage.append(unstable, None, sync=True)
        last = unstable[data.draw(st.integers(0, len(unstable) - 1))]
        self.log.stable_to(last.index, last.term)
        self.stable = last.index
        # What was written beyond is cut off when the log is written next: the storage truncates at the first new entry.

    @rule()
    def a_report_of_replaced_entries_is_void(self) -> None:
        before = self.log.stable_index
        if self.log.unstable:
            self.log.stable_to(self.log.unstable[-1].index, self.term + 5)
        self.log.stable_to(self.log.last_index + 1, self.term)
        assert self.log.stable_index == before

    @rule(data=st.data())
    def commit_some(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.model) + 2))
        assert self.log.commit_to(index) is (min(index, len(self.model)) > self.commit)
        self.commit = max(self.commit, min(index, len(self.model)))

    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        self.applied = self.log.applied_index = data.draw(st.integers(self.applied, self.commit))

    @precondition(lambda self: min(self.applied, self.stable) > self.base)
    @rule(data=st.data())
    def trim(self, data: st.DataObject) -> None:
        self.base = data.draw(st.integers(self.base + 1, min(self.applied, self.stable)))
        self.storage.trim(self.base)

    @rule(ahead=st.integers(1, 5))
    def install(self, ahead: int) -> None:
        """A snapshot of an index that is not committed here."""
        index = self.commit + ahead
        if index <= len(self.model):
            self.term += 1
        del self.model[self.commit :]
        self.model += entries(self.commit + 1, *[self.term] * ahead)
        self.storage.reset(index, self.term)
        self.log.reset(index, self.term)
        self.base = self.commit = self.applied = self.stable = index

    @invariant()
    def is_the_model(self) -> None:
        log = self.log
        assert (log.last_index, log.commit_index, log.stable_index) == (len(self.model), self.commit, self.stable)
        assert log.last_term == (self.model[-1].term if self.model else 0)
        for index in range(self.base, len(self.model) + 1):
            term = self.model[index - 1].term if index else 0
            assert log.term(index) == term
            assert log.matches(index, term)
            assert not log.matches(index, term + 1)
        if self.base < len(self.model):
            assert list(log.entries(self.base + 1, len(self.model) + 1, FOREVER)) == self.model[self.base :]
        with pytest.raises(EntryUnavailable):
            log.term(len(self.model) + 1)
        if self.base:
            with pytest.raises(EntryCompacted):
                log.term(self.base - 1)
            with pytest.raises(EntryCompacted):
                log.entries(self.base, self.base + 1, FOREVER)
            assert not log.matches(self.base - 1, 1)

    @precondition(lambda self: self.base < len(self.model))
    @rule(data=st.data(), limit=st.integers(0, 120))
    def pages(self, data: st.DataObject, limit: int) -> None:
        """As many as fit, at least one, wherever the durable part ends."""
        low = data.draw(st.integers(self.base + 1, len(self.model)))
        high = data.draw(st.integers(low + 1, len(self.model) + 1))
        page = list(self.log.entries(low, high, limit))
        assert page == self.model[low - 1 : low - 1 + len(page)]
        assert 1 <= len(page) <= high - low
        assert len(page) == 1 or entries_size(page) <= limit
        if len(page) < high - low:
            assert entries_size(self.model[low - 1 : low + len(page)]) > limit


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize(
    ("prev", "term", "new", "result", "after", "stable"),
    [
        (0, 0, [1], 1, [1, 1, 2, 2], 3),
        (2, 1, [2], 3, [1, 1, 2, 2], 3),
        (2, 1, [2, 2, 2], 5, [1, 1, 2, 2, 2], 3),
        (2, 1, [3], 3, [1, 1, 3], 2),
        (2, 1, [2, 3], 4, [1, 1, 2, 3], 3),
        (3, 2, [3], 4, [1, 1, 2, 3], 3),
        (4, 2, [3], 5, [1, 1, 2, 2, 3], 3),
        (4, 2, [], 4, [1, 1, 2, 2], 3),
        (1, 1, [], 1, [1, 1, 2, 2], 3),
        (5, 2, [3], None, [1, 1, 2, 2], 3),
        (4, 1, [3], None, [1, 1, 2, 2], 3),
    ],
)
def test_accept(prev: int, term: int, new: list[int], result: int | None, after: list[int], stable: int) -> None:
    log = log_of(1, 1, 2, 2, stable=3, commit=1)
    assert log.append_from_leader(prev, term, entries(prev + 1, *new)) == result
    assert [entry.term for entry in log.entries(1, log.last_index + 1, FOREVER)] == after
    assert log.stable_index == stable


def test_a_committed_entry_is_never_truncated() -> None:
    log = log_of(1, 1, 2, commit=2)
    with pytest.raises(LogInconsistent):
        log.append_from_leader(1, 1, entries(2, 3))


@pytest.mark.parametrize(
    ("terms", "index", "term", "expected"),
    [
        ([1, 1, 2, 2, 5, 5], 6, 5, 6),
        ([1, 1, 2, 2, 5, 5], 6, 4, 4),
        ([1, 1, 2, 2, 5, 5], 6, 1, 2),
        ([1, 1, 2, 2, 5, 5], 6, 0, 0),
        ([1, 1, 2, 2, 5, 5], 99, 3, 4),
        ([1, 1, 2, 2, 5, 5], 3, 9, 3),
        ([], 4, 1, 0),
    ],
)
def test_find_conflict(terms: list[int], index: int, term: int, expected: int) -> None:
    assert log_of(*terms).find_conflict(index, term) == expected


def test_find_conflict_stops_where_the_log_was_cut() -> None:
    log = log_of(3, 3, 3, 3, commit=4)
    log.applied_index = 4
    log.storage.trim(2)  # type: ignore[attr-defined]
    assert log.find_conflict(4, 1) == 1


@pytest.mark.parametrize(
    ("last_index", "last_term", "expected"),
    [(3, 2, True), (2, 2, False), (4, 2, True), (1, 3, True), (9, 1, False)],
)
def test_is_up_to_date(last_index: int, last_term: int, expected: bool) -> None:
    assert log_of(1, 1, 2).is_up_to_date(last_index, last_term) is expected


@pytest.mark.parametrize(
    ("commit", "applied", "base", "expected"),
    [(2, 1, 0, 2), (1, 3, 0, 3), (0, 2, 2, 2), (2, 2, 2, 2)],
)
def test_a_start_takes_the_higher_of_the_commit_index_and_what_is_applied(
    commit: int, applied: int, base: int, expected: int
) -> None:
    storage = MemoryLog()
    storage.append(entries(1, 1, 1, 1), None, sync=True)
    if base:
        storage.trim(base)
    assert Log(storage, commit, applied).commit_index == expected


@pytest.mark.parametrize(("commit", "applied", "base"), [(4, 0, 0), (0, 4, 0), (2, 1, 2)])
def test_a_start_refuses_what_does_not_belong_together(commit: int, applied: int, base: int) -> None:
    storage = MemoryLog()
    storage.append(entries(1, 1, 1, 1), None, sync=True)
    if base:
        storage.trim(base)
    with pytest.raises(LogInconsistent):
        Log(storage, commit, applied)


def test_entries_that_leave_a_gap_are_refused() -> None:
    log = Log(MemoryLog(), 0, 0)
    log.append(entries(1, 1, 1))
    with pytest.raises(LogInconsistent):
        log.append(entries(4, 1))
    assert log.last_index == 2


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 200))
def test_within_bytes(sizes: list[int], limit: int) -> None:
    whole = [Entry(index, 1, EntryKind.NORMAL, b"x" * size) for index, size in enumerate(sizes)]
    some = within_bytes(whole, limit)
    assert list(some) == whole[: len(some)]
    if whole:
        assert some
    if len(some) > 1:
        assert sum(size + ENTRY_OVERHEAD for size in sizes[: len(some)]) <= limit
