"""When a member calls for room, who is judged to be damaged, and how much history a leader keeps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from raykeeper.actors.consistency import describe, judge, summary
from raykeeper.actors.member.hashing import Hashing
from raykeeper.actors.member.maintenance import lacks_space, should_rebuild
from raykeeper.errors import DataCorrupted
from raykeeper.limits import MAX_WAITING_HASHES, REMEMBERED_HASHES, Limits
from raykeeper.raft.messages import Configuration
from raykeeper.schema.commands import AlarmKind
from raykeeper.schema.operator_frames import ContentHash

MB = 1000 * 1000
LIMITS = Limits(quota_bytes=100 * MB, reserve_bytes=50 * MB)


@pytest.mark.parametrize(
    ("on", "size", "free", "lacks"),
    [
        (False, 99 * MB, 51 * MB, False),
        (False, 100 * MB, 51 * MB, True),
        (False, 0, 49 * MB, True),
        (True, 91 * MB, 1000 * MB, True),
        (True, 89 * MB, 1000 * MB, False),
        (True, 0, 62 * MB, True),
        (True, 0, 63 * MB, False),
    ],
)
def test_an_alarm_begins_at_the_mark_and_ends_well_below(on: bool, size: int, free: int, lacks: bool) -> None:
    assert bool(lacks_space(on, size, free, LIMITS)) is lacks


def test_an_alarm_says_what_is_missing() -> None:
    assert "10.0 MB are free" in lacks_space(False, 0, 10 * MB, LIMITS)
    assert "quota of 100.0 MB" in lacks_space(False, 120 * MB, 90 * MB, LIMITS)


# --- who is right ----------------------------------------------------------------------------------------------------


def hashes(**digests: str) -> dict[int, ContentHash]:
    return {int(name[1:]): ContentHash(7, 5, 2, digest) for name, digest in digests.items()}


@pytest.mark.parametrize(
    ("found", "voters", "learners", "odd", "certain", "silent"),
    [
        (hashes(m1="a", m2="a", m3="a"), (1, 2, 3), (), (), True, ()),
        (hashes(m1="a", m2="b", m3="a"), (1, 2, 3), (), (2,), True, ()),
        (hashes(m1="a", m2="b"), (1, 2, 3), (), (1, 2), False, (3,)),
        (hashes(m1="a", m2="a"), (1, 2, 3), (), (), True, (3,)),
        (hashes(m1="a", m2="b", m3="c"), (1, 2, 3), (), (1, 2, 3), False, ()),
        (hashes(m1="a", m2="a", m3="b", m4="b"), (1, 2, 3, 4), (), (1, 2, 3, 4), False, ()),
        (hashes(m1="a", m2="a", m3="b", m4="b"), (1, 2, 3), (4,), (3, 4), True, ()),
        (hashes(m1="a", m2="b"), (1,), (2,), (2,), True, ()),
        ({}, (1, 2, 3), (), (), False, (1, 2, 3)),
        (hashes(m9="b", m1="a", m2="a"), (1, 2), (), (), True, ()),
    ],
)
def test_the_majority_is_right(
    found: dict[int, ContentHash],
    voters: tuple[int, ...],
    learners: tuple[int, ...],
    odd: tuple[int, ...],
    certain: bool,
    silent: tuple[int, ...],
) -> None:
    compared = judge(7, found, voters, (*voters, *learners))
    assert (compared.odd, compared.certain, compared.silent) == (odd, certain, silent)
    assert compared.equal == (not odd)


def test_the_verdict_in_words() -> None:
    compared = judge(7, hashes(m1="a", m2="b", m3="a"), (1, 2, 3), (1, 2, 3))
    assert summary(compared) == "m2: its content differs from that of the majority at log index 7 (revision 5)"
    assert "no majority" in describe(judge(7, hashes(m1="a", m2="b"), (1, 2), (1, 2)), 1)
    equal = judge(7, hashes(m1="a", m2="a"), (1, 2, 3), (1, 2, 3))
    assert summary(equal) == "the contents of 2 members are equal; m3 did not answer"


@pytest.mark.parametrize(
    ("corrupt", "hashed_at", "rebuilds"),
    [
        ((2,), 30, True),
        ((2,), 20, False),  # hashed while the log was replayed: that led to this process
        ((3,), 30, False),
        ((2, 3), 30, False),  # nobody can tell
        ((), 30, False),
    ],
)
def test_only_who_is_surely_wrong_is_rebuilt_and_only_once(
    corrupt: tuple[int, ...], hashed_at: int, rebuilds: bool
) -> None:
    alarms = {(member, AlarmKind.CORRUPT): "odd" for member in corrupt}
    state = SimpleNamespace(alarms=alarms, configuration=Configuration(voters=(1, 2, 3)))
    results = (ContentHash(hashed_at, 1, 0, "x"),)
    replica: Any = SimpleNamespace(state=state, hashing=SimpleNamespace(results=results))
    assert should_rebuild(2, replica, begun=25) == ("odd" if rebuilds else "")


# --- hashing ---------------------------------------------------------------------------------------------------------


class FakeContent:
    def __init__(self, index: int, slices: int = 1, error: Exception | None = None) -> None:
        self.index = self.revision = index
        self.compact_revision = 0
        self._slices, self._error = slices, error

    def digest(self, throttle: Callable[[], None]) -> str:
        for _ in range(self._slices):
            throttle()
        if self._error is not None:
            raise self._error
        return f"hash {self.index}"


class Later:
    """Background work that is done when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], None], Callable[[Exception | None], None]]] = []

    def __call__(self, work: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        self.waiting.append((work, then))

    def work(self) -> None:
        waiting, self.waiting = self.waiting, []
        for work, then in waiting:
            error: Exception | None = None
            try:
                work()
            except Exception as caught:
                error = caught
            then(error)


def test_contents_are_hashed_in_order_and_the_newest_hashes_remembered() -> None:
    later, damage = Later(), []
    hashing = Hashing(later, lambda: None, 5)
    take: Any = hashing.hash_content
    assert hashing.begins == 5
    for index in range(1, 10):
        take(FakeContent(index), damage.append)
        later.work()
    assert [result.digest for result in hashing.results] == [f"hash {n}" for n in range(10 - REMEMBERED_HASHES, 10)]
    for index in range(10, 20):
        take(FakeContent(index), damage.append)
    while later.waiting:
        assert len(later.waiting) == 1, "one at a time"
        later.work()
    assert [result.index for result in hashing.results] == list(range(20 - MAX_WAITING_HASHES, 20))
    hashing.state_replaced(30)
    assert hashing.begins == 30


def test_content_that_cannot_be_read_is_reported_and_the_next_is_hashed() -> None:
    later, damage = Later(), []
    hashing = Hashing(later, lambda: None, 0)
    take: Any = hashing.hash_content
    for content in (
        FakeContent(1, error=DataCorrupted("rot")),
        FakeContent(2, error=OSError("closed")),
        FakeContent(3),
    ):
        take(content, damage.append)
    while later.waiting:
        later.work()
    assert [str(error) for error in damage] == ["rot"]
    assert [result.index for result in hashing.results] == [3]
