"""For how many seconds a member lags, by when the leader's commit index came how far."""

from __future__ import annotations

import pytest

from raykeeper.actors.member import commit_times
from raykeeper.actors.member.commit_times import CommitTimes


def test_a_member_lags_since_the_first_look_at_which_more_was_committed() -> None:
    times = CommitTimes()
    assert times.lacking_for(0, 10.0) == 0.0, "nothing is known"
    for now, index in ((10.0, 100), (11.0, 100), (12.0, 130), (13.0, 160)):
        times.note(index, now)
    found = [(index, times.lacking_for(index, 20.0)) for index in (50, 99, 100, 129, 130, 159, 160, 500)]
    assert found == [(50, 10.0), (99, 10.0), (100, 8.0), (129, 8.0), (130, 7.0), (159, 7.0), (160, 0.0), (500, 0.0)]
    times.begin()
    assert times.lacking_for(50, 20.0) == 0.0


def test_looks_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_times, "COMMIT_TIMES_KEPT", 3)
    times = CommitTimes()
    for number in range(10):
        times.note(number, float(number))
    assert times.lacking_for(0, 10.0) == 3.0, "since the oldest that is known"
