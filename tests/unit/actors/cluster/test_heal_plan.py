"""What the supervisor does, as tables; then in a small world in which nodes die and come back, with two supervisors."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from raykeeper.actors.cluster.heal_plan import (
    Clear,
    ClusterView,
    EndProcess,
    Join,
    Leave,
    Move,
    Promote,
    Reserve,
    Retire,
    StartMember,
    Step,
    obstacles,
    plan,
)
from raykeeper.actors.ray_view import RayNode
from raykeeper.raft.messages import Configuration
from raykeeper.schema.commands import RegisterMember, ReserveMember
from raykeeper.schema.member_record import MemberRecord
from raykeeper.store.state.members import Members

AFTER = 60.0
HUNG = 3 * AFTER
GONE = 4 * AFTER
"""From then on a member that hangs is replaced."""


def node(name: str) -> RayNode:
    return RayNode(f"node-{name}", f"10.0.0.{ord(name)}", frozenset({name}))


def known(member: int, pin: str, **fields: object) -> MemberRecord:
    return MemberRecord(member, f"m{member}", pin, "/data", joined=True, **fields)  # type: ignore[arg-type]


def healthy() -> ClusterView:
    """Three voters on the nodes a, b, c, and a spare node d."""
    return ClusterView(
        now=1000.0,
        replace_after=AFTER,
        leads=True,
        configuration=Configuration(voters=(1, 2, 3)),
        table={1: known(1, "a"), 2: known(2, "b"), 3: known(3, "c")},
        silent={2: 0.0, 3: 0.0},
        caught_up={1, 2, 3},
        actors={1, 2, 3},
        homes={1: "node-a", 2: "node-b", 3: "node-c"},
        nodes=(node("a"), node("b"), node("c"), node("d")),
        placement=("a", "b", "c", "d"),
    )


def lost(view: ClusterView, member: int = 3, seconds: float = AFTER) -> ClusterView:
    """The node of a member is gone for this long, for Ray and for the leader."""
    pin = view.table[member].pin
    return replace(
        view,
        missed_since={**view.missed_since, member: view.now - seconds},
        silent={**view.silent, member: seconds},
        homes={other: home for other, home in view.homes.items() if other != member},
        nodes=tuple(each for each in view.nodes if pin not in each.resources),
    )


def hung(view: ClusterView, member: int = 3, seconds: float = HUNG) -> ClusterView:
    """A member has answered nothing for this long on a node that is alive, neither the supervisor nor the leader."""
    since = {**view.hung_since, member: view.now - seconds}
    return replace(view, hung_since=since, silent={**view.silent, member: seconds})


def with_successor(view: ClusterView, *, reserved: bool = False, caught_up: bool = True) -> ClusterView:
    """Member 4 on node d is to take the place of member 3."""
    successor = replace_fields(known(4, "d", replaces=3), joined=not reserved)
    return replace(
        view,
        configuration=Configuration(voters=(1, 2, 3), learners=() if reserved else (4,)),
        table={**view.table, 4: successor},
        caught_up={1, 2, *((4,) if caught_up else ())},
        actors={1, 2, 3} if reserved else {1, 2, 3, 4},
        silent={**view.silent, **({} if reserved else {4: 0.0})},
        homes={**view.homes, 4: "node-d"},
    )


def replace_fields(description: MemberRecord, **fields: object) -> MemberRecord:
    import msgspec

    return msgspec.structs.replace(description, **fields)


def test_nothing_is_to_be_done_for_a_healthy_cluster() -> None:
    assert plan(healthy()) is None


def test_a_member_that_both_have_missed_for_long_gets_a_successor_on_the_spare_node() -> None:
    step = plan(lost(healthy()))
    assert isinstance(step, Reserve)
    assert (step.replaces, step.voter, step.placement.pin) == (3, True, "d")


@pytest.mark.parametrize(
    "view",
    [
        lost(healthy(), seconds=AFTER - 1),
        replace(lost(healthy()), silent={2: 0.0, 3: 1.0}),
        replace(lost(healthy()), missed_since={}),
        replace(lost(healthy()), leads=False),
        replace(lost(healthy()), configuration=Configuration(voters=(1, 2, 3), outgoing=(1, 2))),
        lost(lost(healthy()), 2),
        replace(lost(healthy()), nodes=(node("a"), node("b"))),
    ],
    ids=["not long enough", "heard by the leader", "seen by Ray", "no leader", "joint", "no quorum", "no spare place"],
)
def test_otherwise_it_does_not(view: ClusterView) -> None:
    assert plan(view) is None


def test_a_lost_disk_gets_a_successor_on_its_own_node_if_there_is_no_other() -> None:
    view = replace(healthy(), nodes=healthy().nodes[:3], missed_since={3: 900.0}, silent={2: 0.0, 3: 99.0})
    step = plan(view)
    assert isinstance(step, Reserve)
    assert step.placement.pin == "c"


def test_the_spare_node_comes_before_the_node_of_the_lost_disk() -> None:
    step = plan(replace(healthy(), missed_since={3: 900.0}, silent={2: 0.0, 3: 99.0}))
    assert isinstance(step, Reserve)
    assert step.placement.pin == "d"


def test_members_that_share_nodes_anyway_are_replaced_where_there_is_room() -> None:
    view = replace(healthy(), placement=(), homes={1: "node-a", 2: "node-a", 3: "node-b"}, nodes=(node("a"), node("b")))
    view = replace(view, missed_since={3: 900.0}, silent={2: 0.0, 3: 99.0})
    step = plan(view)
    assert isinstance(step, Reserve)
    assert step.placement.node.id == "node-b"


def test_the_process_of_a_member_that_hangs_is_ended_first_and_it_is_replaced_if_that_does_not_help() -> None:
    three = healthy().table[3]
    assert plan(hung(healthy(), seconds=HUNG - 1)) is None, "it may be slow"
    assert plan(hung(healthy())) == EndProcess(three)
    assert plan(replace(hung(healthy()), tried_to_end={3})) is None, "that is given time to help"
    assert plan(hung(healthy(), seconds=GONE)) == EndProcess(three), "again, before anybody takes its place"
    step = plan(replace(hung(healthy(), seconds=GONE), tried_to_end={3}))
    assert isinstance(step, Reserve)
    assert (step.replaces, step.placement.pin) == (3, "d")


def test_whoever_opens_its_data_is_not_replaced() -> None:
    """Another process may keep its folder locked, which is looked for; its own is left alone there."""
    view = replace(hung(healthy(), seconds=10 * GONE), opening={3})
    assert plan(view) == EndProcess(view.table[3])
    assert plan(replace(view, tried_to_end={3})) is None
    assert ["it is opening its data" in line for line in obstacles(view)] == [True]
    assert plan(with_successor(replace(view, tried_to_end={3}))) is None, "nor does a successor take its place"


@pytest.mark.parametrize(("seen_on", "avoids"), [({3: "node-c"}, "node-c"), ({3: "node-d"}, "node-d")])
def test_of_nodes_that_offer_one_resource_that_where_it_was_seen_is_its_home(
    seen_on: dict[int, str], avoids: str
) -> None:
    nodes = tuple(RayNode(f"node-{name}", f"10.0.0.{ord(name)}", frozenset({"coord"})) for name in "abcd")
    table = {member: known(member, "coord") for member in (1, 2, 3)}
    view = replace(healthy(), nodes=nodes, table=table, placement=("coord",), homes={1: "node-a", 2: "node-b"})
    view = replace(hung(view, seconds=GONE), tried_to_end={3}, seen_on={1: "node-a", 2: "node-b", **seen_on})
    step = plan(view)
    assert isinstance(step, Reserve)
    assert step.placement.node.id in {"node-c", "node-d"} - {avoids}
    assert view.home_of(1) == nodes[0]
    assert replace(view, seen_on={}).home_of(3) is None, "it may be any"


@pytest.mark.parametrize("seconds", [HUNG, 10 * HUNG])
def test_whom_the_leader_hears_does_not_hang(seconds: float) -> None:
    heard = replace(hung(healthy(), seconds=seconds), silent={2: 0.0, 3: 1.0})
    assert plan(heard) is None
    assert obstacles(heard) == []


def test_without_a_leader_all_that_hang_are_ended_and_nobody_is_replaced() -> None:
    both = replace(hung(hung(healthy(), 2), 3), leads=False, silent={})
    assert plan(both) == EndProcess(both.table[2])
    assert plan(replace(both, tried_to_end={2})) == EndProcess(both.table[3])
    assert plan(replace(hung(hung(both, 2, GONE), 3, GONE), silent={}, tried_to_end={2, 3})) is None
    assert len([line for line in obstacles(both) if "it hangs" in line]) == 2


def test_a_leader_that_says_that_it_is_stuck_needs_no_other_word() -> None:
    alone = replace(
        healthy(), configuration=Configuration(voters=(1,)), table={1: known(1, "a")}, actors={1}, silent={}
    )
    stuck = replace(alone, hung_since={1: alone.now - HUNG})
    assert plan(stuck) == EndProcess(stuck.table[1])
    assert plan(replace(stuck, tried_to_end={1})) is None, "there is no quorum but itself"


def test_a_node_where_processes_hang_is_no_place_for_a_successor_unless_others_live_there() -> None:
    view = replace(hung(healthy(), seconds=GONE), tried_to_end={3}, nodes=healthy().nodes[:3])
    assert plan(view) is None, "its own node is the only one without a member"
    shared = replace(view, placement=(), homes={1: "node-a", 2: "node-c", 3: "node-c"}, nodes=(node("a"), node("c")))
    assert isinstance(plan(shared), Reserve)


def test_who_hangs_no_more_keeps_the_place_and_the_successor_goes() -> None:
    view = with_successor(replace(hung(healthy(), seconds=GONE), tried_to_end={3}))
    assert plan(view) == Promote(4, 3)
    back = replace(view, hung_since={}, silent={2: 0.0, 3: 0.0, 4: 0.0})
    assert plan(back) == Leave(4)
    started_again = replace(view, hung_since={3: view.now - 1})
    assert plan(started_again) is None, "a new process is given time, too"


def test_it_says_that_a_member_hangs_and_what_comes_of_it() -> None:
    said = [obstacles(hung(healthy(), seconds=seconds)) for seconds in (AFTER / 2, HUNG, GONE)]
    assert [len(lines) for lines in said] == [1, 1, 1]
    assert "its process is ended after 3 times replace_after" in said[0][0]
    assert "it hangs, and its process is ended" in said[1][0]
    assert "it is gone, and is replaced" in said[2][0]


def test_a_successor_joins_catches_up_and_takes_the_place_in_one_change() -> None:
    view = lost(healthy())
    assert plan(with_successor(view, reserved=True)) == Join(with_successor(view, reserved=True).table[4])
    assert plan(with_successor(view, caught_up=False)) is None
    assert plan(with_successor(view)) == Promote(4, 3)


def test_members_are_replaced_one_after_the_other() -> None:
    five = replace(
        healthy(),
        configuration=Configuration(voters=(1, 2, 3, 4, 5)),
        table={**healthy().table, 4: known(4, "d"), 5: known(5, "e")},
        silent=dict.fromkeys((2, 3, 4, 5), 0.0),
        actors={1, 2, 3, 4, 5},
        homes={**healthy().homes, 4: "node-d", 5: "node-e"},
        nodes=tuple(map(node, "abcdefg")),
        placement=tuple("abcdefg"),
    )
    two_lost = lost(lost(five, 4), 5)
    first = plan(two_lost)
    assert isinstance(first, Reserve)
    assert first.replaces == 4
    successor = known(6, "f", replaces=4)
    configuration = Configuration(voters=(1, 2, 3, 4, 5), learners=(6,))
    begun = replace(two_lost, configuration=configuration, table={**two_lost.table, 6: successor}, actors=range(1, 7))
    assert plan(begun) is None, "it catches up first"


def test_whoever_comes_back_in_time_keeps_the_place() -> None:
    assert plan(with_successor(healthy())) == Leave(4)
    assert plan(with_successor(healthy(), reserved=True)) == Retire(4)


def test_a_supervisor_that_is_new_waits_before_it_ends_what_another_began() -> None:
    assert plan(with_successor(lost(healthy(), seconds=1.0))) is None


def test_no_change_without_a_live_quorum_in_what_follows() -> None:
    view = with_successor(lost(healthy()))
    weak = replace(view, missed_since={**view.missed_since, 2: view.now - 1})
    assert plan(weak) is None


def test_a_successor_that_cannot_be_made_where_it_should_live_is_given_up() -> None:
    view = with_successor(lost(healthy()), reserved=True)
    assert plan(replace(view, reserved_since={4: view.now - 200})) == Retire(4)
    assert plan(replace(lost(healthy()), avoided={"node-d"})) is None, "that place is tried again later"


def test_a_successor_that_is_lost_itself_is_given_up() -> None:
    assert plan(lost(with_successor(lost(healthy())), 4)) == Leave(4)
    view = with_successor(lost(healthy()), reserved=True)
    gone = replace(view, nodes=view.nodes[:2], reserved_since={4: view.now - AFTER})
    assert plan(gone) == Retire(4)


def test_an_actor_that_died_for_good_is_started_where_its_data_is_even_without_a_leader() -> None:
    view = replace(healthy(), actors={1, 2}, missed_since={3: 999.0}, leads=False)
    assert plan(view) == StartMember(view.table[3])
    assert plan(replace(view, nodes=view.nodes[:2])) is None


@pytest.mark.parametrize("where", ["found", "delayed", "doubts", "unread"])
def test_it_is_not_started_by_the_table_while_its_data_may_be_elsewhere(where: str) -> None:
    """Its place by the table may hold an older folder, from before the data has moved."""
    view = replace(healthy(), actors={1, 2}, missed_since={3: 999.0}, silent={2: 0.0, 3: 0.0})
    for leads in (True, False):
        step = plan(replace(view, leads=leads, **{where: {3: known(3, "d")}}))  # type: ignore[arg-type]
        assert not isinstance(step, StartMember)
    assert plan(replace(view, searched=False)) is None, "nor before it was looked for"


def test_whose_only_folder_cannot_be_read_is_started_where_it_is_and_not_replaced() -> None:
    """It tries again by itself, every few seconds."""
    refused = replace(lost(healthy()), nodes=healthy().nodes, doubts={3: "no"}, unread={3}, unread_at_home={3})
    view = replace(refused, actors={1, 2})
    assert plan(view) == StartMember(view.table[3])
    assert plan(replace(view, actors={1, 2, 3})) is None


def test_what_a_person_began_to_add_is_theirs_for_a_while() -> None:
    view = healthy()
    table = {**view.table, 4: replace_fields(known(4, "d"), joined=False)}
    view = replace(view, table=table, reserved_since={4: view.now})
    assert plan(view) is None
    later = replace(view, reserved_since={4: view.now - 30})
    assert plan(later) == Join(table[4])
    learns = replace(view, configuration=Configuration(voters=(1, 2, 3), learners=(4,)), actors={1, 2, 3, 4})
    learns = replace(learns, table={**table, 4: known(4, "d")}, caught_up={1, 2, 3, 4}, silent={2: 0, 3: 0, 4: 0})
    assert plan(learns) == Promote(4)
    assert plan(replace(learns, table={**table, 4: known(4, "d", voter=False)})) is None


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("seconds", [2.0, AFTER, 10 * AFTER])
def test_whose_data_is_found_elsewhere_is_started_there_and_never_replaced(leads: bool, seconds: float) -> None:
    view = replace(lost(healthy(), seconds=seconds), found={3: known(3, "d")}, leads=leads)
    assert plan(view) == Move(known(3, "d"))
    heard = replace(view, silent={2: 0.0, 3: 0.0})
    assert plan(heard) == (None if leads else Move(known(3, "d"))), "who is heard runs somewhere"


def test_it_is_started_though_a_successor_is_on_its_way_which_then_goes() -> None:
    view = replace(with_successor(lost(healthy())), found={3: known(3, "e")})
    assert plan(view) == Move(known(3, "e"))
    assert plan(with_successor(healthy())) == Leave(4)


def test_all_are_started_where_their_data_is_one_after_the_other() -> None:
    view = lost(lost(lost(healthy(), 1, 5.0), 2, 5.0), 3, 5.0)
    view = replace(view, leads=False, found={2: known(2, "d"), 3: known(3, "e")})
    assert plan(view) == Move(known(2, "d"))
    assert plan(replace(view, found={3: known(3, "e")})) == Move(known(3, "e"))


def test_nobody_is_replaced_who_was_not_looked_for() -> None:
    assert plan(replace(lost(healthy()), searched=False)) is None
    assert isinstance(plan(lost(healthy())), Reserve)


def test_what_a_removed_member_left_elsewhere_is_cleared_if_a_quorum_says_it_is_out() -> None:
    view = replace(healthy(), leftovers=((3, "/data", "node-c"), (9, "/data", "node-d")))
    assert plan(view) is None, "one takes part, the other is unknown"
    out = replace(view, configuration=Configuration(voters=(1, 2, 4)), actors={1, 2, 4})
    out = replace(out, table={1: view.table[1], 2: view.table[2], 4: known(4, "d")}, silent={2: 0.0, 4: 0.0})
    assert plan(out) == Retire(3)
    gone = replace(out, removed={3: MemberRecord(3, "m3", removed=True)})
    assert plan(gone) == Clear(MemberRecord(3, "m3", base="/data"), "node-c")
    assert plan(replace(gone, cleared={(3, "node-c")})) is None
    assert plan(replace(gone, leads=False)) is None


def test_who_left_is_noted_as_gone_and_cleared_away_once() -> None:
    view = replace(healthy(), configuration=Configuration(voters=(1, 2)))
    assert plan(view) == Retire(3)
    three = view.table[3]
    view = replace(view, table={1: view.table[1], 2: view.table[2]}, removed={3: three})
    assert plan(view) == Clear(three, "node-c")
    view = replace(view, actors={1, 2})
    assert plan(view) == Clear(three, "node-c")
    assert plan(replace(view, cleared={(3, "node-c")})) is None
    assert plan(replace(view, nodes=view.nodes[:2])) is None, "its node is not there"


def test_an_actor_that_nobody_knows_any_more_is_retired_first() -> None:
    view = replace(healthy(), configuration=Configuration(voters=(1, 3)), table={1: known(1, "a"), 3: known(3, "c")})
    assert plan(view) == Retire(2)


# --- a world in which nodes die and come back ------------------------------------------------------------------------


class _Batch:
    """Takes what the table writes."""

    def set(self, family: str, key: bytes, value: bytes | None) -> None:
        pass


@dataclass
class World:
    """A cluster as its log has it, on nodes of which some are dead. Every step costs a second."""

    rng: random.Random
    now: float = 1000.0
    alive: set[str] = field(default_factory=lambda: set("abcdef"))
    died: dict[str, float] = field(default_factory=dict)
    actors: set[int] = field(default_factory=lambda: {1, 2, 3})
    data: dict[int, str] = field(default_factory=lambda: {1: "a", 2: "b", 3: "c"})
    caught_up: set[int] = field(default_factory=lambda: {1, 2, 3})
    reserved_at: dict[int, float] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    hung: dict[int, float] = field(default_factory=dict)
    """Members that hang on their nodes, and since when."""
    stuck: set[int] = field(default_factory=set)
    """Those of them that no signal ends."""

    def __post_init__(self) -> None:
        self.configuration = Configuration(voters=(1, 2, 3))
        self.table = Members(_Batch())  # type: ignore[arg-type]
        for member, pin in self.data.items():
            self.table.register(RegisterMember(member, pin, "/data", 1), self.configuration.members)

    def lives(self, member: int) -> bool:
        """Its process is there, and works."""
        return self.is_there(member) and member not in self.hung

    def is_there(self, member: int) -> bool:
        return member in self.actors and self.data.get(member) in self.alive

    def quorum(self, voters: tuple[int, ...]) -> bool:
        return 2 * sum(map(self.lives, voters)) > len(voters)

    def silence(self, member: int) -> float:
        if self.lives(member):
            return 0.0
        died = self.now - self.died.get(self.data.get(member, ""), self.now - 1)
        return max(self.now - self.hung[member], died) if member in self.hung else died

    def view(self, began: float, cleared: set[tuple[int, str]], tried: dict[int, float]) -> ClusterView:
        """The view of a supervisor that has observed since ``began``."""
        table = {m: d for m, d in self.table.by_id.items() if not d.removed}
        members = self.configuration.members
        missed = {m: max(began, self.now - self.silence(m)) for m in members if not self.is_there(m)}
        hung = {m: max(began, self.hung[m]) for m in members if self.is_there(m) and m in self.hung}
        return ClusterView(
            now=self.now,
            replace_after=AFTER,
            leads=self.quorum(self.configuration.voters),
            configuration=self.configuration,
            table=table,
            removed={m: d for m, d in self.table.by_id.items() if d.removed},
            silent={m: self.silence(m) for m in members},
            caught_up=frozenset(self.caught_up),
            actors=frozenset(self.actors),
            missed_since=missed,
            hung_since=hung,
            tried_to_end=frozenset(member for member, until in tried.items() if until > self.now),
            reserved_since={m: max(began, self.reserved_at.get(m, 0.0)) for m in set(table) - members},
            homes={m: f"node-{self.data[m]}" for m in members if self.is_there(m)},
            nodes=tuple(node(name) for name in sorted(self.alive)),
            placement=tuple("abcdef"),
            cleared=frozenset(cleared),
        )

    def do(self, step: Step, cleared: set[tuple[int, str]], tried: dict[int, float]) -> None:
        """Apply a step as the cluster does: it may rest on an old observation."""
        self.steps.append(step)
        members, voters = self.configuration.members, self.configuration.voters
        learners = self.configuration.learners
        if isinstance(step, StartMember):
            self.actors.add(step.member.id)
        elif isinstance(step, EndProcess):
            tried[step.member.id] = self.now + 30.0
            if step.member.id not in self.stuck:
                self.hung.pop(step.member.id, None)
        elif isinstance(step, Clear):
            assert self.table.is_removed(step.member.id), "what is cleared away never comes back"
            self.actors.discard(step.member.id)
            self.hung.pop(step.member.id, None)
            self.stuck.discard(step.member.id)
            self.data.pop(step.member.id, None)
            cleared.add((step.member.id, step.node))
        elif not self.quorum(voters):
            return
        elif isinstance(step, Reserve):
            command = ReserveMember(step.nonce, step.placement.pin, "/data", step.replaces, step.voter)
            self.reserved_at.setdefault(self.table.reserve(command, members), self.now)
        elif isinstance(step, Join):
            known = self.table.by_id[step.member.id]
            if known.removed or known.pin not in self.alive or known.id in members:
                return
            self.data[known.id] = known.pin
            self.actors.add(known.id)
            self.change(voters, (*learners, known.id))
        elif isinstance(step, Promote):
            if step.member in learners and step.member in self.caught_up:
                after = tuple(sorted({*voters, step.member} - {step.replaces}))
                self.change(after, tuple(m for m in learners if m != step.member))
        elif isinstance(step, Leave):
            self.change(tuple(m for m in voters if m != step.member), tuple(m for m in learners if m != step.member))
        else:
            self.table.retire(step.member, members)

    def change(self, voters: tuple[int, ...], learners: tuple[int, ...]) -> None:
        if not self.quorum(voters):
            return  # the leader refuses
        before = self.configuration
        self.configuration = Configuration(voters=voters, learners=learners, index=before.index + 1)
        self.table.on_configuration(before.members, self.configuration.members)
        assert self.quorum(voters)
        assert len(voters) == 3, "never more or fewer voters than there were"

    def happen(self) -> None:
        """Something happens to a node, now and then; never to so many that the quorum is gone for good."""
        draw = self.rng.random()
        if draw < 0.04 and len(self.alive) > 4:
            victim = self.rng.choice(sorted(self.alive))
            if self.quorum(tuple(v for v in self.configuration.voters if self.data.get(v) != victim)):
                self.alive.discard(victim)
                self.died[victim] = self.now
                for member in [member for member in self.hung if self.data.get(member) == victim]:
                    del self.hung[member]  # a process that hangs goes with its node
                    self.stuck.discard(member)
        elif draw < 0.08 and len(self.alive) < 6:
            self.alive.add(self.rng.choice(sorted(set("abcdef") - self.alive)))
        elif draw < 0.10 and self.actors:
            self.actors.discard(self.rng.choice(sorted(self.actors)))
        elif draw < 0.13:
            member = self.rng.choice(sorted(self.configuration.members))
            others = [v for v in self.configuration.voters if v != member]
            if self.lives(member) and 2 * sum(map(self.lives, others)) > len(self.configuration.voters):
                self.hung[member] = self.now
                if self.rng.random() < 0.3:
                    self.stuck.add(member)
        for member in self.configuration.members:
            if self.lives(member) and self.rng.random() < 0.2:
                self.caught_up.add(member)
        self.now += self.rng.choice((1.0, 5.0, 20.0))


@pytest.mark.parametrize("seed", range(60))
def test_two_supervisors_with_old_looks_keep_a_cluster_at_full_strength(seed: int) -> None:
    rng = random.Random(seed)
    world = World(rng)
    began = [world.now, world.now]
    tried: list[dict[int, float]] = [{}, {}]
    cleared: list[set[tuple[int, str]]] = [set(), set()]
    late: list[tuple[int, Step]] = []
    for turn in range(600):
        quiet = turn >= 450
        if quiet:
            world.now += 5.0
            world.caught_up |= {m for m in world.configuration.members if world.lives(m)}
        else:
            world.happen()
            if rng.random() < 0.02:  # a supervisor is killed: it remembers nothing
                which = rng.randrange(2)
                began[which], cleared[which], tried[which] = world.now, set(), {}
        which = rng.randrange(2)
        step = plan(world.view(began[which], cleared[which], tried[which]))
        if step is not None:
            if not quiet and rng.random() < 0.3:  # slow: it is done later, when much has changed
                late.append((which, step))
            else:
                world.do(step, cleared[which], tried[which])
        if late and (quiet or rng.random() < 0.3):
            who, old = late.pop(0)
            world.do(old, cleared[who], tried[who])
    voters = world.configuration.voters
    assert len(voters) == 3
    assert all(map(world.lives, voters)), (voters, world.actors, world.data, world.alive, world.steps[-10:])
    assert world.configuration.learners == ()
    assert world.actors == set(voters)
    assert len({world.data[voter] for voter in voters}) == 3, "each on a node of its own"
    assert [plan(world.view(*known)) for known in zip(began, cleared, tried, strict=True)] == [None, None]


@pytest.mark.parametrize("where", ["found", "delayed", "unread"])
@pytest.mark.parametrize(
    "view", [lost(healthy()), with_successor(lost(healthy())), with_successor(lost(healthy()), reserved=True)]
)
def test_whose_data_is_there_is_not_replaced_by_any_step(view: ClusterView, where: str) -> None:
    """Neither is a successor begun with, nor does one that was begun with take its place."""
    home = MemberRecord(3, "m3", "e", "/data")
    step = plan(replace(view, **{where: {3: home}}))  # type: ignore[arg-type]
    assert not isinstance(step, (Reserve, Promote, Leave, Retire)), step
