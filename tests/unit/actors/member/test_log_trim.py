"""The log is trimmed by entries and by bytes, as the spec says, and not past a snapshot that is being sent."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from lab.store_model import encode
from raykeeper.actors.member.events import BackgroundDone, Proposal
from raykeeper.actors.member.replica import Replica
from raykeeper.errors import NoSpace
from raykeeper.limits import Limits, Timings
from raykeeper.schema.commands import OpenSession
from raykeeper.store.data_dir import DataDir, DataMissing, FirstMember, Identity
from simulation.disk import SimDisk

TIMINGS = Timings(heartbeat_interval=0.1, election_timeout=0.5)


class Alone:
    """The one member of a cluster, whose time passes turn by turn."""

    def __init__(self, **limits: int) -> None:
        self.disk = SimDisk()
        self.limits = Limits(**limits)
        identity = Identity("c", 7, 1, "m1", (FirstMember(1, "m1"),))
        self.folder = DataDir.create(self.disk, "m", identity)
        self.now = 0.0
        self.start()

    def start(self) -> None:
        self.events: list[Any] = []
        self.replica = Replica(
            folder=self.folder,
            timings=TIMINGS,
            limits=self.limits,
            send=lambda messages: None,
            clock=lambda: self.now,
            rng=random.Random(1),
            background=self._background,
        )
        while not self.replica.is_leader:
            self.turn()

    def _background(self, work: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        failed: Exception | None = None
        try:
            work()
        except NoSpace as error:
            failed = error
        self.events.append(BackgroundDone(lambda: then(failed)))

    def turn(self) -> None:
        self.now += 0.1
        events, self.events = self.events, []
        self.replica.turn([], events)

    def propose(self, count: int, size: int = 20) -> None:
        for _ in range(count):
            data = encode(OpenSession(random.Random(self.now).randbytes(size), 60.0))
            self.events.append(Proposal(data, self.now + 10, self.now, lambda outcome: None))
            self.turn()
        for _ in range(3):
            self.turn()


def test_by_entries() -> None:
    member = Alone(log_cut_entries=30, log_keep_entries=5)
    member.propose(25)
    assert member.folder.log.first_index() == 1
    member.propose(30)
    log = member.folder.log
    assert 0 < log.last_index() - log.first_index() < 36
    assert log.configuration is not None
    assert log.configuration.voters == (1,)


def test_by_bytes() -> None:
    member = Alone(log_cut_bytes=100_000, log_keep_entries=1000)
    member.propose(8, 10_000)
    assert member.folder.log.first_index() == 1
    member.propose(20, 10_000)
    log = member.folder.log
    assert log.first_index() > 1
    assert log.size_bytes < 110_000
    assert log.last_index() - log.first_index() > 2, "some are kept for followers that lag a little"


def test_what_was_cut_is_durable_in_the_state_before() -> None:
    member = Alone(log_cut_entries=30, log_keep_entries=5)
    member.propose(60)
    member.disk.lose_power(random.Random(3))
    member.disk.restart()
    folder = DataDir.open(member.disk, "m")
    assert folder.state.applied_index >= folder.log.first_index() - 1


def test_a_flush_that_fails_trims_nothing(caplog: pytest.LogCaptureFixture) -> None:
    member = Alone(log_cut_entries=30, log_keep_entries=5)
    member.propose(20)
    member.disk.room = 0
    with pytest.raises(NoSpace):  # what is applied next ends the process
        member.propose(30)
    assert member.folder.log.first_index() == 1
    assert "flush of the state has failed" in caplog.text
    last = member.folder.log.last_index()
    member.disk.crash()
    member.disk.restart()
    member.disk.room = None
    member.folder = DataDir.open(member.disk, "m")
    member.start()
    member.propose(5)
    assert member.folder.log.first_index() > 1
    assert member.folder.state.applied_index >= last


def test_the_log_is_kept_for_a_snapshot_that_is_being_fetched() -> None:
    member = Alone(log_cut_entries=30, log_keep_entries=5)
    member.propose(40)
    snapshots = member.replica.snapshots
    assert snapshots.offer_snapshot() is None
    for _ in range(3):
        member.turn()
    meta = snapshots.offer_snapshot()
    assert meta is not None
    member.propose(80)
    assert member.folder.log.first_index() <= meta.index + 1
    member.now += 120  # it is no longer fetched
    member.turn()
    member.propose(2)
    assert member.folder.log.first_index() > meta.index + 1


def test_a_directory_that_is_gone_ends_the_member() -> None:
    member = Alone()
    member.disk.remove("m/identity.json")
    member.now += 1
    with pytest.raises(DataMissing):
        member.turn()
