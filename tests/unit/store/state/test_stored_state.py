"""The state's database: what does not fit together is neither written nor read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lab.store_model import FIRST, Hand
from raykeeper.errors import DataCorrupted
from raykeeper.raft.messages import Configuration
from raykeeper.schema.operations import Compact, Put
from raykeeper.store.state.machine import State
from raykeeper.store.state.mvcc import change_key
from simulation.disk import SimDisk


def applied(index: int, term: int, revision: int, compact_revision: int) -> bytes:
    return msgspec.msgpack.encode((index, term, revision, compact_revision, 0, 0))


def test_a_state_that_fits_together_is_opened() -> None:
    disk = SimDisk()
    State.create(disk, "s", FIRST).close()
    hand = Hand(State.open(disk, "s"))
    assert hand.state.revision == 1
    for n in range(5):
        hand.do(Put(b"k%d" % n, b""))
    hand.do(Compact(hand.state.revision))
    while hand.state.compact_slice(1):
        pass
    index, revision = hand.state.applied_index, hand.state.revision
    hand.state.close()
    state = State.open(disk, "s")
    assert (state.applied_index, state.revision, state.compact_revision) == (index, revision, revision)


def test_a_lost_state_may_have_a_configuration_that_it_has_not_applied() -> None:
    """It comes from the log."""
    disk, configuration = SimDisk(), Configuration(index=22, voters=(1, 2))
    State.create(disk, "s", configuration, lost="its bytes have changed").close()
    assert State.open(disk, "s").configuration == configuration


@pytest.mark.parametrize(
    "write",
    [
        ("history", change_key(4, b"k2"), None),
        ("history", change_key(5, b"k"), b"\0" * 5),
        ("history", b"\xff", b""),
        ("meta", b"applied", applied(6, 1, 3, 0)),
        ("meta", b"applied", applied(6, 1, 5, 0)),
        ("meta", b"applied", applied(6, 1, 4, 5)),
        ("meta", b"configuration", msgspec.msgpack.encode(Configuration(index=99, voters=(1,)))),
    ],
    ids=[
        "its last change is gone",
        "a change after the revision",
        "no revision",
        "an older revision",
        "a newer revision",
        "compacted beyond its end",
        "a configuration that is not applied",
    ],
)
def test_a_state_that_does_not_fit_together_is_damage(write: Any) -> None:
    disk = SimDisk()
    hand = Hand(State.create(disk, "s", FIRST))
    for n in range(3):
        hand.do(Put(b"k%d" % n, b""))
    assert hand.state.revision == 4
    hand.state._engine.write([write])
    hand.state.close()
    with pytest.raises(DataCorrupted):
        State.open(disk, "s")


def test_a_write_that_would_go_back_is_refused(hand: Hand) -> None:
    hand.do(Put(b"k", b"1"))
    state, disk_before = hand.state, hand.state._engine.get("meta", b"applied")
    index, term = state.applied_index, state.applied_term
    with pytest.raises(ValueError):
        list(state._write_applied(index, term))
    with pytest.raises(ValueError):
        list(state._write_applied(index + 1, term - 1))
    state._mvcc.revision -= 1
    with pytest.raises(ValueError):
        list(state._write_applied(index + 1, term))
    state._mvcc.revision += 1
    state._executor.compact_revision = state.revision + 1
    with pytest.raises(ValueError):
        list(state._write_applied(index + 1, term))
    state._executor.compact_revision = 0
    state._mvcc.sub = 1
    with pytest.raises(ValueError):
        list(state._write_applied(index + 1, term))
    state._mvcc.sub = 0
    assert state._engine.get("meta", b"applied") == disk_before
