"""What leaders forget by themselves: never too early, and before long, however long each of them leads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lab.turns import turn_of
from raykeeper.actors.member.compactor import Compactor
from raykeeper.actors.member.deadlines import ClusterTime
from raykeeper.limits import CLOCK_STEP_S, COMPACTION_CHECK_S, Compaction, Settings, Timings, encode_settings
from raykeeper.schema.commands import Command, CompactHistory, ForgetRequests, PassTime
from raykeeper.store.state.cluster_clock import ClusterClock

HORIZON = 3600.0


class Leading:
    """Leaders, one after the other, and the state that they see."""

    def __init__(self, *, request_ttl: float = 3600.0, **compaction: Any) -> None:
        pending: Any = SimpleNamespace(set=lambda *arguments: None)
        self.state: Any = SimpleNamespace(
            revision=1,
            compact_revision=0,
            applied_index=10,
            clock=ClusterClock(pending),
            sessions={},
            users=SimpleNamespace(enabled=False),
            leases={},
            remembered_requests=0,
            oldest_request=0,
        )
        self.request_ttl = request_ttl
        self.configure(**compaction)
        self.taking = True
        self.compacted: list[int] = []
        self.forgotten: list[int] = []
        self.readings = 0
        self.now = 1000.0
        self.time = ClusterTime(turn_of(lambda: self.state), self._propose, self.now)
        self.term = 0
        self.lead()

    def configure(self, **compaction: Any) -> None:
        settings = Settings(compaction=Compaction(**compaction), timings=Timings(request_ttl=self.request_ttl))
        self.state.settings = encode_settings(settings)

    def lead(self, *, restarted: bool = False) -> None:
        if restarted:
            self.time = ClusterTime(turn_of(lambda: self.state), self._propose, self.now)
        self.term += 1
        self.time.lead(self.term, self.now)
        self.compactor = Compactor(turn_of(lambda: self.state), self._propose, self.time)
        self.compactor.lead(self.term, self.now)

    def _propose(self, command: Command) -> int:
        if not self.taking:
            return 0
        state = self.state
        state.applied_index += 1
        if isinstance(command, PassTime):
            self.readings += 1
            assert state.clock.pass_time(command, state.applied_index, HORIZON)
            self.time.applied(self.now)
        elif isinstance(command, ForgetRequests):
            self.forgotten.append(command.index)
            state.oldest_request = command.index + 1
        else:
            assert isinstance(command, CompactHistory)
            self.compacted.append(command.revision)
            state.compact_revision = command.revision
        return int(state.applied_index)

    def pass_time(self, seconds: float, *, revisions: float = 0.0) -> None:
        start, first = self.now, self.state.revision
        while self.now < start + seconds:
            self.now += 0.25
            self.state.revision = first + int((self.now - start) * revisions)
            self.time.work(self.now, 0.1)
            self.compactor.work(self.now)


def test_so_many_revisions_are_kept() -> None:
    leading = Leading(mode="revisions", keep=100)
    leading.pass_time(9, revisions=10)
    assert leading.compacted == []
    leading.pass_time(1000, revisions=10)
    assert all(leading.compacted)
    assert 100 <= leading.state.revision - leading.state.compact_revision <= 120
    at_once = len(leading.compacted)
    leading.pass_time(100)
    assert len(leading.compacted) <= at_once + 1, "nothing to do, nothing done"


def test_what_is_younger_is_kept() -> None:
    leading = Leading(mode="age", keep=100)
    leading.pass_time(99, revisions=10)
    assert leading.compacted == []
    leading.pass_time(1000, revisions=10)
    assert 1000 <= leading.state.revision - leading.state.compact_revision <= 1200
    leading.pass_time(200)
    assert leading.state.compact_revision == leading.state.revision


@pytest.mark.parametrize(
    ("life", "restarted"),
    [(0.5, False), (2.0, False), (9.0, False), (55.0, False), (95.0, False), (400.0, False), (2.0, True), (55.0, True)],
)
@pytest.mark.parametrize("keep", [20, 200])
def test_history_is_kept_for_its_time_and_little_longer_whoever_leads(keep: int, life: float, restarted: bool) -> None:
    """Each leader is another one; if it was started just before, it loses the time since the last reading."""
    leading = Leading(mode="age", keep=keep)
    made: list[tuple[float, int]] = []
    late = keep / 8 + max(1.0, keep / 16) + COMPACTION_CHECK_S + 0.5
    most = (2.2 * (keep + late) + 2 * life) if restarted else keep + late
    while leading.now < 1000.0 + 4 * max(keep, life):
        leading.pass_time(life, revisions=4)
        made.append((leading.now, leading.state.revision))
        leading.lead(restarted=restarted)
        compacted = leading.state.compact_revision
        for at, revision in made:
            if leading.now - at < keep:
                assert compacted <= revision, f"revision {revision} was {leading.now - at:.0f} s old"
            if leading.now - at > most:
                assert compacted >= revision, f"revision {revision} is {leading.now - at:.0f} s old"


def test_request_ids_are_forgotten_though_no_leader_lives_as_long_as_they() -> None:
    leading = Leading(mode="off", keep=1, request_ttl=3600.0)
    leading.state.remembered_requests = 1
    first = leading.state.applied_index
    for _ in range(3):
        leading.pass_time(55 * 60.0)
        leading.lead()
    assert max(leading.forgotten, default=0) >= first


def test_a_clock_that_nothing_needs_stands_still() -> None:
    leading = Leading(mode="age", keep=100)
    leading.pass_time(1000)
    assert leading.readings == 0
    leading.state.revision = 2
    leading.pass_time(1000)
    assert 0 < leading.readings <= 30, "while it ages, every few seconds; afterwards no more"
    before = leading.readings
    leading.pass_time(1000)
    assert leading.readings == before


def test_a_clock_takes_little_room_in_the_log() -> None:
    leading = Leading(mode="age", keep=3600)
    leading.pass_time(10_000, revisions=1)
    assert leading.readings <= 10_000 / CLOCK_STEP_S + 10


def test_a_proposal_that_is_not_taken_is_made_again() -> None:
    leading = Leading(mode="revisions", keep=1)
    leading.taking = False
    leading.pass_time(10, revisions=10)
    leading.taking = True
    leading.pass_time(2)
    assert leading.compacted


def test_nothing_is_forgotten_where_that_is_off_and_settings_count_at_once() -> None:
    leading = Leading(mode="off", keep=1)
    leading.pass_time(100, revisions=10)
    assert leading.compacted == []
    leading.configure(mode="revisions", keep=1)
    leading.pass_time(2)
    assert leading.state.compact_revision == leading.state.revision - 1
