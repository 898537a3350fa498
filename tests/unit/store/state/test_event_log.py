"""The events of a cluster: bounded, on disk, the same on every member, and none twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.store_model import FIRST, Hand
from raykeeper.limits import MAX_EVENT_LETTERS
from raykeeper.schema.commands import ClusterEvent, RecordEvents
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state import event_log
from raykeeper.store.state.event_log import subject_of
from raykeeper.store.state.machine import State

LOST, BACK = ClusterEvent("lost", "m2 is lost", 10.0, 2), ClusterEvent("back", "m2 is back", 12.0, 2)


def texts(state: State) -> list[str]:
    return [event.text for _, event in state.events]


def test_events_are_kept_in_order_with_numbers(hand: Hand) -> None:
    hand.apply(RecordEvents((LOST, BACK)))
    hand.apply(RecordEvents((LOST,)))
    assert hand.state.events == ((1, LOST), (2, BACK), (3, LOST))


def test_the_oldest_are_forgotten(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "MAX_EVENTS", 3)
    for number in range(5):
        hand.apply(RecordEvents((ClusterEvent("supervisor", f"step {number}"),)))
    assert hand.state.events[0][0] == 3
    assert texts(hand.state) == ["step 2", "step 3", "step 4"]
    stored = [key for key, _ in hand.state._engine.iterate("meta", b"event/", b"event0")]
    assert len(stored) == 3


def test_an_event_with_an_id_is_kept_once(hand: Hand) -> None:
    """Its sender asks again when no answer has come."""
    step = ClusterEvent("supervisor", "replacing m3", id=b"12345678")
    hand.apply(RecordEvents((step,)))
    hand.apply(RecordEvents((step, LOST)))
    assert texts(hand.state) == ["replacing m3", "m2 is lost"]


def test_a_long_text_is_cut(hand: Hand) -> None:
    hand.apply(RecordEvents((ClusterEvent("supervisor", "x" * 10_000),)))
    assert len(texts(hand.state)[0]) == MAX_EVENT_LETTERS


def test_the_newest_of_each_subject_is_known(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ClusterEvent("lost", "m3 is lost", 11.0, 3)
    hand.apply(RecordEvents((LOST, other, BACK)))
    assert hand.state.latest_events == {subject_of(LOST): BACK, subject_of(other): other}
    monkeypatch.setattr(event_log, "MAX_EVENTS", 2)
    hand.apply(RecordEvents((ClusterEvent("election", "m1 leads", 13.0, 1, 5),)))
    assert set(hand.state.latest_events) == {("member", 2, 0), ("election", 0, 0)}


def test_they_are_on_disk_and_hashed(disk: RocksDisk, tmp_path: Path) -> None:
    hand = Hand(State.create(disk, str(tmp_path / "state"), FIRST))
    empty = hand.state.content_hash()
    hand.apply(RecordEvents((LOST, BACK)))
    before, events, latest = hand.state.content_hash(), hand.state.events, dict(hand.state.latest_events)
    assert before != empty
    hand.state.close()
    opened = State.open(disk, str(tmp_path / "state"))
    assert (opened.content_hash(), opened.events, dict(opened.latest_events)) == (before, events, latest)
    opened.close()
