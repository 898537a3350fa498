"""The checks of Raft's five properties must be able to fail: each is shown a world in which its property is broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lab.raft.cluster import Cluster, Machine
from lab.raft.invariants import Invariants, Violation
from raykeeper.raft import Entry, EntryKind, HardState


def busy_cluster() -> Cluster:
    cluster = Cluster()
    leader = cluster.elect(1)
    leader.propose([b"a", b"b"])
    cluster.run()
    cluster.invariants.check(*(cluster.node(member.id) for member in cluster.up))
    return cluster


def two_leaders(cluster: Cluster) -> None:
    cluster.node(2).role = "leader"


def a_shorter_leader(cluster: Cluster) -> None:
    log = cluster.node(1).log
    log.last_index = log.stable_index = log.commit_index = log.applied_index = 2
    cluster.invariants._seen[1].commit_index = 2


def a_leader_that_rewrites(cluster: Cluster) -> None:
    cluster.members[1].log.held[-1] = Entry(3, 9, EntryKind.NORMAL, b"b")
    cluster.node(1).log.last_term = 9


def restart(cluster: Cluster, id: int, log: list[Entry], state: HardState) -> None:
    """A member comes back with the log of a liar."""
    member = cluster.members[id]
    member.crash()
    member.durable = Machine(configuration=member.durable.configuration)
    member.log.held, member.log.hard_state = log, state
    member.start()


def other_data_at_the_same_place(cluster: Cluster) -> None:
    first, _, last = cluster.members[2].log.held
    restart(cluster, 2, [first, Entry(2, 1, EntryKind.NORMAL, b"other"), last], HardState(1, 1, 0))


def a_leader_without_what_is_committed(cluster: Cluster) -> None:
    restart(cluster, 2, cluster.members[2].log.held[:1], HardState(7, 2, 0))
    cluster.node(2).role = "leader"


def another_entry_committed(cluster: Cluster) -> None:
    first, second, _ = cluster.members[2].log.held
    restart(cluster, 2, [first, second, Entry(3, 5, EntryKind.NORMAL, b"c")], HardState(5, 2, 3))


def a_term_that_falls(cluster: Cluster) -> None:
    cluster.node(2).term = 0


def a_vote_that_changes(cluster: Cluster) -> None:
    cluster.node(2).vote = 3


def a_commit_index_that_falls(cluster: Cluster) -> None:
    cluster.node(2).log.commit_index = cluster.node(2).log.applied_index = 2


def applied_beyond_the_commit_index(cluster: Cluster) -> None:
    cluster.node(2).log.applied_index = 4


@pytest.mark.parametrize(
    ("break_it", "name"),
    [
        (two_leaders, "Election Safety"),
        (a_shorter_leader, "Leader Append-Only"),
        (a_leader_that_rewrites, "Leader Append-Only"),
        (other_data_at_the_same_place, "Log Matching"),
        (a_leader_without_what_is_committed, "Leader Completeness"),
        (another_entry_committed, "State Machine Safety"),
        (a_term_that_falls, "Terms"),
        (a_vote_that_changes, "Votes"),
        (a_commit_index_that_falls, "Commit"),
        (applied_beyond_the_commit_index, "Order"),
    ],
)
def test_a_broken_property_is_seen(break_it: Callable[[Cluster], None], name: str) -> None:
    cluster = busy_cluster()
    break_it(cluster)
    with pytest.raises(Violation, match=f"^{name}"):
        cluster.invariants.check(*(cluster.node(member.id) for member in cluster.up))


def test_a_look_costs_what_is_new() -> None:
    """The second look at nodes that have not changed reads no entries."""
    cluster = busy_cluster()
    reads = 0
    for member in cluster.up:
        original = member.log.entries

        def counted(
            low: int, high: int, max_bytes: int, original: Callable[..., list[Entry]] = original
        ) -> list[Entry]:
            nonlocal reads
            reads += 1
            return original(low, high, max_bytes)

        member.log.entries = counted  # type: ignore[method-assign]
    nodes = [cluster.node(member.id) for member in cluster.up]
    cluster.invariants.check(*nodes)
    assert reads == 0
    Invariants().check(*nodes)
    assert reads > 0
