"""Two voters, one of which has lost its state and holds the newer log: the other cannot win without it nor it serve."""

from __future__ import annotations

import random

import pytest

from raykeeper.limits import Limits, Timings
from raykeeper.raft import Node
from simulation.member import FOLDER
from simulation.profiles import Profile
from simulation.world import World


def _profile() -> Profile:
    return Profile(
        name="lost",
        members=2,
        faults={"transfer": 1.0},
        fault_pause=1e9,
        timings=Timings(election_timeout=0.5, session_ttl=60.0),
        limits=Limits(log_cut_entries=20, log_keep_entries=1, snapshot_chunk_bytes=4096),
        think=0.05,
        seconds=8.0,
        leader_changes=0,
    )


@pytest.mark.parametrize("seed", range(3))
def test_who_cannot_serve_leads_until_it_can_hand_over(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    handed_over: list[int] = []
    hand_over = Node.hand_over

    def watched(node: Node) -> bool:
        done = hand_over(node)
        if done:
            handed_over.append(node.id)
        return done

    monkeypatch.setattr(Node, "hand_over", watched)
    world = World(seed, _profile())
    victims: list[int] = []

    def cut_off() -> None:
        leader = world.leader()
        assert leader is not None
        heal = world.network.cut([(1, 2), (2, 1)])
        world.after(0.25, lose, leader.id)  # it appends meanwhile what the other does not get
        world.after(0.3, heal)

    def lose(member: int) -> None:
        leader, other = world.members[member], world.members[3 - member]
        assert leader.process is not None
        assert other.process is not None
        assert leader.process.folder.log.first_index() > 1
        assert leader.process.folder.log.last_index() > other.process.folder.log.last_index()
        leader.crash()
        leader.disk.damage(leader.disk.current(FOLDER), random.Random(seed))
        victims.append(member)
        world.after(0.1, leader.start)

    world.at(5.0, cut_off)
    report = world.run()
    assert not report.failure, report.failure
    assert victims
    assert handed_over
    assert set(handed_over) == set(victims)
