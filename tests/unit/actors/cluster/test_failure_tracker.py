"""What a supervisor makes of what it sees: who is missed, whose data is looked for, what it waits for; without Ray."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from lab.observations import LOST, PINS, Disks, after_search, data, known, node, observation, status, watched
from raykeeper.actors.cluster import supervisor
from raykeeper.actors.cluster.failure_tracker import FailureTracker, lacks_pins
from raykeeper.actors.cluster.heal_plan import (
    Clear,
    ClusterView,
    EndProcess,
    Move,
    Reserve,
    Retire,
    StartMember,
    Step,
    obstacles,
    plan,
)
from raykeeper.actors.cluster.node_storage import FoundData, NodeInventory
from raykeeper.actors.cluster.observe import Observation
from raykeeper.actors.cluster.ray_nodes import PackageMissing
from raykeeper.actors.cluster.supervisor_spec import SupervisorSpec
from raykeeper.actors.naming import GAVE_UP
from raykeeper.actors.ray_view import RayNode
from raykeeper.errors import Unavailable
from raykeeper.limits import OPENING_MAX_S, SEARCH_MIN_PAUSE_S
from raykeeper.raft.messages import Configuration
from raykeeper.schema.member_record import MemberRecord
from raykeeper.schema.operator_frames import MemberStatus
from raykeeper.store.data_copies import Served
from raykeeper.store.membership_note import MembershipNote

# --- who is missed ---------------------------------------------------------------------------------------------------

LOST_UNREGISTERED = [observation(silent=float(n), answers=False, there=False, registered=False) for n in range(5)]


def test_a_member_whose_node_is_gone_is_replaced() -> None:
    step = plan(watched(*LOST))
    assert isinstance(step, Reserve)
    assert (step.replaces, step.placement.pin) == (3, "d")


def test_so_it_is_though_no_leader_leads_as_long_as_that_takes() -> None:
    observations = [observation(silent=0.1 + n % 2, leading=0.1 + n % 2, answers=False, there=False) for n in range(6)]
    assert isinstance(plan(watched(*observations)), Reserve)


def test_one_that_each_leader_hears_is_not() -> None:
    observations = [observation(silent=0.5, leading=1.0, answers=False, there=False) for _ in range(8)]
    assert plan(watched(*observations)) is None


def test_so_is_one_that_was_lost_before_it_could_tell_where_it_lives() -> None:
    """A call to its actor waits forever for a node that is gone, so by that alone it looks like a slow one."""
    assert lacks_pins(LOST_UNREGISTERED[0])
    assert not lacks_pins(LOST[0])
    assert plan(watched(*LOST_UNREGISTERED)) is None
    step = plan(watched(*LOST_UNREGISTERED, first_pins={1: "a", 2: "b", 3: "c"}))
    assert isinstance(step, Reserve)
    assert (step.replaces, step.placement.pin) == (3, "d")


def test_what_the_table_says_of_a_place_comes_before_how_the_cluster_began() -> None:
    assert plan(watched(*[observation(silent=9.0, answers=False)] * 5, first_pins={3: "elsewhere"})) is None


@pytest.mark.parametrize("registered", [True, False])
def test_a_member_that_is_only_slow_is_not_replaced(registered: bool) -> None:
    observations = [observation(silent=float(n), answers=False, registered=registered) for n in range(9)]
    view = watched(*observations, first_pins={3: "c"})
    assert not view.missed_since
    assert plan(view) is None


# --- whose data is elsewhere -----------------------------------------------------------------------------------------


def quiet(seconds: int, **fields: Any) -> list[Observation]:
    """Member 3 does not answer, or says this, and the leader does not hear it, for this long."""
    shows = [observation(silent=float(n), leading=500.0, answers=False) for n in range(seconds + 1)]
    return [replace(each, statuses={**each.statuses, 3: status(3, **fields)}) if fields else each for each in shows]


@pytest.mark.parametrize("says", [{}, {"stuck_for": 99.0}], ids=["answers nothing", "says that it is stuck"])
def test_who_hangs_has_its_process_ended_and_is_replaced_if_that_does_not_help(says: dict[str, Any]) -> None:
    tracker, tried = FailureTracker(7, PINS), []
    for now, shown in enumerate(quiet(60, **says)):
        step = plan(after_search(tracker, shown, float(now), {}))
        if step is not None:
            tried.append((now, step))
            tracker.step_done(step)
        if isinstance(step, Reserve):
            break
    assert [(now, type(step)) for now, step in tried] == [(20, EndProcess), (40, Reserve)]


@pytest.mark.parametrize(
    ("says", "replaced"),
    [
        ({"opening": True, "stuck_for": OPENING_MAX_S - 1}, False),
        ({"opening": True, "stuck_for": OPENING_MAX_S}, True),
        ({"stuck_for": 99.0}, True),
    ],
    ids=["opens its data", "for too long", "waits for the lock"],
)
def test_who_opens_its_data_is_not_replaced_for_long(says: dict[str, Any], replaced: bool) -> None:
    tracker, steps = FailureTracker(7, PINS), []
    for now, shown in enumerate(quiet(60, role="starting", **says)):
        step = plan(after_search(tracker, shown, float(now), {}))
        if step is not None:
            steps.append(type(step))
            tracker.step_done(step)
    assert (Reserve in steps) == replaced


def test_where_each_member_was_seen_last_is_remembered() -> None:
    elsewhere = observation()
    seen = replace(elsewhere, statuses={**elsewhere.statuses, 3: status(3, node="node-z")})
    assert watched(seen, observation(answers=False)).seen_on == {1: "node-a", 2: "node-b", 3: "node-z"}


def test_who_answers_in_between_does_not_hang() -> None:
    view = watched(*quiet(15), observation(), *quiet(15))
    assert plan(view) is None
    assert view.hung_since == {3: 17.0}
    assert watched(*quiet(15, stuck_for=1.0)).hung_since == {}, "turns take time"


def alive(*pins: str) -> tuple[RayNode, ...]:
    return tuple(node(pin) for pin in pins)


def silent_observation(*pins: str, actors: tuple[int, ...] = (1, 2, 3), **said: MemberStatus) -> Observation:
    """These nodes are alive; of the members' actors answer only these."""
    return Observation(alive(*pins), dict.fromkeys(actors), {each.member: each for each in said.values()}, frozenset())


def moved(view: ClusterView) -> list[tuple[int, str, str]]:
    """Whom the supervisor would start elsewhere, and where, one after the other."""
    return [(member, known.pin, known.base) for member, known in sorted(view.found.items())]


NOTE = MembershipNote(Configuration(voters=(1, 2, 3), index=4), (known(1), known(2), known(3)))
MINORITY = status(1, table=(known(1), known(2), known(3)))
MISSING = status(3, role="not serving", why_not_serving="DataMissing", lost=True, missing=True, voters=())
DAMAGED = status(3, role="not serving", why_not_serving="LogDamaged", lost=True, voters=())
TWO, THREE = data(2), data(3)
REFUSED = data(3, damage="it cannot be read: no", refused=True)
UNREAD = (FoundData("m3", "/data/heal/m3", (0, 0), damage="it cannot be read: no", refused=True),)
COPY = data(3, served=Served(4, 9, copied=True))


@pytest.mark.parametrize(
    ("shown", "disks", "expected"),
    [
        (silent_observation("a", "d", one=MINORITY), {"node-d": TWO}, [(2, "d", "/data/heal")]),
        (silent_observation("x", "y", "z"), {"node-x": data(1), "node-y": TWO, "node-z": THREE}, [1, 2, 3]),
        (silent_observation("x", actors=()), {"node-x": data(1, 2, note=NOTE)}, [1, 2]),
        (silent_observation("a", "b", "x", one=MINORITY), {"node-x": data(2)}, []),
        (observation(silent=9.0, answers=False, there=False), {"node-d": THREE}, [3]),
        (replace(observation(silent=9.0), statuses={**observation().statuses, 3: MISSING}), {"node-d": THREE}, []),
        (silent_observation("a", "b", "c", "d", one=MINORITY, three=MISSING), {"node-b": THREE}, [3]),
        (silent_observation("a", "b", "c", one=MINORITY, three=MISSING), {"node-c": THREE}, [3]),
        (silent_observation("a", "b", "c", "d", one=MINORITY, three=DAMAGED), {"node-d": THREE}, []),
        (silent_observation("a", "b", "d", one=MINORITY), {"node-d": COPY}, []),
        (silent_observation("a", "b", "d", one=MINORITY), {"node-d": data(3), "node-b": COPY}, []),
        (silent_observation("a", "b", "d", one=MINORITY), {"node-d": data(5)}, []),
        (silent_observation("a", "b", "d", actors=(1, 2), one=MINORITY), {"node-d": THREE}, [3]),
    ],
    ids=[
        "a majority is at other addresses",
        "all are, and no member answers",
        "nor is there an actor",
        "only slow",
        "the leader misses it",
        "the leader has heard it a moment ago",
        "addresses were swapped",
        "its disk is back",
        "its log is damaged where it is",
        "only a copy is there",
        "the copy served later",
        "it does not take part",
        "its actor is gone",
    ],
)
def test_whose_data_is_found_elsewhere_is_started_there(shown: Observation, disks: Disks, expected: list[Any]) -> None:
    if shown.leader is not None and 3 in shown.statuses:
        shown.leader.silent[3] = 0.0
    view = watched(*[shown] * 5, disks=disks)
    step, found = plan(view), moved(view)
    if not expected:
        assert not isinstance(step, Move)
        return
    assert isinstance(step, Move)
    assert step.member.id == found[0][0]
    assert [each if isinstance(expected[0], tuple) else each[0] for each in found] == expected
    said = obstacles(view)
    assert [line for line in said if "where it is started" in line]


def test_who_was_started_elsewhere_is_given_time_to_come_up_and_found_again_if_that_node_goes_too() -> None:
    shown = silent_observation("a", "b", "d", one=MINORITY)
    tracker = FailureTracker(7, PINS)
    for now in (0.0, 1.0):
        view = after_search(tracker, shown, now, {"node-d": THREE})
    step = plan(view)
    assert isinstance(step, Move)
    tracker.step_done(step)
    for now in (2.0, 3.0, 15.0):
        assert plan(after_search(tracker, shown, now, {"node-d": THREE})) is None
    away = silent_observation("a", "b", "x", one=MINORITY)
    for now in (16.0, 17.0):
        view = after_search(tracker, away, now, {"node-x": THREE})
    assert moved(view) == [(3, "node:10.0.0.1", "/data/heal")]


def test_who_cannot_be_started_elsewhere_is_left_for_a_while() -> None:
    shown = silent_observation("a", "d", "x", one=MINORITY)
    disks = {"node-d": TWO, "node-x": THREE}
    tracker = FailureTracker(7, PINS)
    for now in (0.0, 1.0):
        view = after_search(tracker, shown, now, disks)
    first = plan(view)
    assert isinstance(first, Move)
    assert first.member.id == 2
    tracker.step_failed(first, 1.0)
    then = plan(after_search(tracker, shown, 2.0, disks))
    assert isinstance(then, Move)
    assert then.member.id == 3
    assert any("could not be started there" in line for line in obstacles(tracker.view(shown, 2.0)))
    again = plan(after_search(tracker, shown, 90.0, disks))
    assert isinstance(again, Move)
    assert again.member.id == 2


def test_no_member_is_replaced_before_all_nodes_were_searched() -> None:
    tracker = FailureTracker(7, PINS)
    for now, each in enumerate(LOST):
        view = tracker.view(each, float(now))
    assert tracker.nodes_to_search(view) == list(LOST[0].nodes)
    assert plan(view) is None
    tracker.record_search({each.id: OSError("it has no such package") for each in view.nodes}, view.now)
    assert isinstance(plan(tracker.view(LOST[-1], view.now)), Reserve)


@pytest.mark.parametrize("elsewhere", [(), THREE], ids=["alone", "and there is another folder"])
@pytest.mark.parametrize(
    "refused",
    [
        (FoundData("m3", "/data/heal/m3", (0, 0), damage="it cannot be read: no", refused=True),),
        data(3, damage="it cannot be read: no", refused=True),
    ],
    ids=["whose it is", "how new it is"],
)
def test_whose_data_may_be_in_what_cannot_be_read_is_neither_replaced_nor_started_elsewhere(
    refused: tuple[FoundData, ...], elsewhere: tuple[FoundData, ...]
) -> None:
    disks = {"node-d": refused, "node-b": elsewhere}
    view = watched(*LOST, *[LOST[-1]] * 20, disks=disks)
    assert not isinstance(plan(view), Move | Reserve), "its newest data may be there"
    assert any("/data/heal/m3 on 10.0.0.1 (it cannot be read: no)" in line for line in obstacles(view))
    view = watched(*LOST, *[LOST[-1]] * 20, disks={"node-b": elsewhere})
    assert isinstance(plan(view), Move if elsewhere else Reserve)


@pytest.mark.parametrize(
    ("disks", "expected"),
    [
        ({"node-c": THREE}, StartMember),
        ({}, StartMember),
        ({"node-c": THREE, "node-d": REFUSED}, None),
        ({"node-c": data(3, served=Served(5, 1)), "node-d": data(3, served=Served(6, 1))}, Move),
        ({"node-c": COPY}, None),
        ({"node-c": REFUSED}, StartMember),
        ({"node-c": UNREAD}, StartMember),
        ({"node-d": UNREAD}, None),
        ({"node-c": UNREAD, "node-d": REFUSED}, None),
    ],
    ids=[
        "there",
        "nowhere",
        "there, and perhaps a newer one",
        "there, and a newer one",
        "only a copy",
        "there, and its disk refuses",
        "there, and its disk refuses all",
        "elsewhere, and its disk refuses",
        "there and elsewhere, and both refuse",
    ],
)
def test_whose_actor_is_gone_is_started_by_the_table_only_if_the_disks_agree(
    disks: Disks, expected: type[Step] | None
) -> None:
    """A launch has found the same, and has left it alone."""
    table = tuple(msgspec.structs.replace(known(member), base="/data/heal") for member in (1, 2, 3))
    shown = silent_observation("a", "b", "c", "d", actors=(1, 2), one=status(1, table=table))
    tracker = FailureTracker(7, PINS)
    assert plan(tracker.view(shown, 0.0)) is None, "it is looked for first"
    steps = [plan(after_search(tracker, shown, now, disks)) for now in (0.5, 1.0, 2.0, 9.0)]
    assert {type(step) for step in steps[1:]} == {type(None) if expected is None else expected}


BAD = NodeInventory("/data/heal", "d", problem="/data/heal: Input/output error")


@pytest.mark.parametrize(
    ("home", "leads", "expected"),
    [("c", True, None), ("c", False, StartMember), ("d", True, StartMember), ("d", False, StartMember)],
    ids=["not needed", "needed", "its last place says nothing", "nor does it, and it is needed"],
)
@pytest.mark.parametrize("says", [BAD, Unavailable("it did not answer")], ids=["bad", "silent"])
def test_whose_newer_folder_may_be_on_a_node_that_says_nothing_is_not_started_from_another(
    home: str, leads: bool, expected: type[Step] | None, says: NodeInventory | Exception
) -> None:
    """What was found of m3 is on node c. It is started at its place by the table or not at all."""
    three = MemberRecord(3, "m3", home, "/data/heal", joined=True)
    one = status(1, table=(*(msgspec.structs.replace(known(m), base="/data/heal") for m in (1, 2)), three))
    if leads:
        one = msgspec.structs.replace(one, role="leader", silent={2: 0.0, 3: 9.0}, leading_for=9.0)
    shown = silent_observation("a", "b", "c", "d", actors=(1, 2), one=one, two=status(2))
    tracker = FailureTracker(7, PINS)
    steps = []
    for now in (0.0, 1.0, 1.5):
        due = tracker.nodes_to_search(tracker.view(shown, now))
        held = {"node-c": NodeInventory("/data/heal", "c", data(3, served=Served(5, 1))), "node-d": says}
        tracker.record_search({each.id: held.get(each.id, NodeInventory("/data/heal", each.id)) for each in due}, now)
        view = tracker.view(shown, now)
        steps.append(plan(view))
    assert steps[-1] == (StartMember(three) if expected else None)
    assert any("what these nodes hold: 10.0.0.1" in line for line in obstacles(view)) == (expected is None)


def test_a_node_without_the_package_hides_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"node-a": PackageMissing("it cannot load RayKeeper"), "node-b": Unavailable("it did not answer")}
    monkeypatch.setattr(supervisor, "run_where_possible", lambda on, *others: {id: answers[id] for id in on})
    tracker = FailureTracker(7, ())
    shown = silent_observation("a", "b", one=MINORITY)
    tracker.record_search(supervisor.search(shown.nodes, SupervisorSpec("heal", 7, "/data", ())), 0.0)
    assert [each.id for each in tracker.view(shown, 0.0).unlisted] == ["node-b"]


@pytest.mark.parametrize("refused", [{}, {"node-d": REFUSED}], ids=["", "a folder of its cannot be read"])
def test_who_waits_for_a_disk_that_refuses_is_looked_for_often(refused: Disks) -> None:
    """Its folder is elsewhere than the table says, so that no actor tries again by itself."""
    table = tuple(msgspec.structs.replace(known(member), base="/data/heal") for member in (1, 2, 3))
    shown = silent_observation("a", "b", "c", "d", actors=(1, 2), one=status(1, table=table), two=status(2))
    tracker = FailureTracker(7, PINS)
    for now in (0.0, 1.0, 1000.0):
        after_search(tracker, shown, now, refused)
    due = tracker.nodes_to_search(tracker.view(shown, 1000.0 + SEARCH_MIN_PAUSE_S))
    assert due == (list(shown.nodes) if refused else [])


@pytest.mark.parametrize("refused", [{}, {"node-d": REFUSED}], ids=["", "a folder of its cannot be read"])
def test_who_hangs_is_replaced_whatever_the_search_for_another_one_has_found_of_it(refused: Disks) -> None:
    """Its process has its data. What is found elsewhere, and perhaps long ago, says nothing of it."""
    tracker = FailureTracker(7, PINS)
    for second, shown in enumerate(quiet(60)):
        lost = replace(shown, statuses={1: shown.statuses[1]}, failed=frozenset({2}))
        view = after_search(tracker, lost, float(second), refused)
    assert set(view.missed_since) == {2}
    assert view.is_gone(3)


def test_whose_data_was_found_is_not_replaced_though_it_could_not_be_started_there_at_once() -> None:
    tracker = FailureTracker(7, PINS)
    for now, each in enumerate(LOST):
        view = after_search(tracker, each, float(now), {"node-d": THREE})
    step = plan(view)
    assert isinstance(step, Move)
    tracker.step_failed(step, view.now)
    for later in (0.1, 1.0, 5.0):
        assert not isinstance(plan(after_search(tracker, LOST[-1], view.now + later, {"node-d": THREE})), Reserve)
    assert isinstance(plan(after_search(tracker, LOST[-1], view.now + 90.0, {"node-d": THREE})), Move)


@pytest.mark.parametrize("served", [Served(4, 9, copied=True), Served()], ids=["a copy", "two"])
def test_uncertain_data_is_reported_and_does_not_prevent_a_replacement(served: Served) -> None:
    again = tuple(msgspec.structs.replace(each, device=(1, 99)) for each in data(3, served=served))
    disks = {"node-d": data(3, served=served), "node-b": again}
    view = watched(*LOST, disks=disks)
    assert isinstance(plan(view), Reserve)
    assert "its data" in view.doubts[3] or "a copy" in view.doubts[3]
    quiet = watched(*[silent_observation("a", "b", "d", one=MINORITY)] * 5, disks=disks)
    assert plan(quiet) is None
    assert any(view.doubts[3] in line for line in obstacles(quiet))


def test_it_says_that_data_is_nowhere_and_where_it_was() -> None:
    said = obstacles(watched(*[silent_observation("a", "d", one=MINORITY)] * 5))
    assert "no leader answers" in said
    assert [line for line in said if line.startswith("m2: its data was not found on any Ray node") and "at b" in line]


def test_disks_are_searched_only_when_there_is_a_reason_and_then_less_and_less_often() -> None:
    tracker = FailureTracker(7, PINS)
    for now in range(5):
        assert tracker.nodes_to_search(tracker.view(observation(), float(now))) == []
    nobody = silent_observation("a", "b", actors=())
    fresh = FailureTracker(7, PINS)
    assert fresh.nodes_to_search(fresh.view(nobody, 0.0)) == list(nobody.nodes)
    fresh.record_search({each.id: NodeInventory("/data/heal", each.id) for each in nobody.nodes}, 0.0)
    assert fresh.nodes_to_search(fresh.view(nobody, 1.0)) == []
    assert fresh.nodes_to_search(fresh.view(nobody, SEARCH_MIN_PAUSE_S)) == list(nobody.nodes)


def test_the_search_that_names_the_members_counts_for_them() -> None:
    """The whole cluster was lost: before the disks were searched nobody knew whom to miss."""
    nobody = silent_observation("x", "y", "z", actors=())
    disks = {"node-x": data(1), "node-y": TWO, "node-z": THREE}
    tracker = FailureTracker(7, PINS)
    due = tracker.nodes_to_search(tracker.view(nobody, 100.0))
    assert due == list(nobody.nodes)
    tracker.record_search({each.id: NodeInventory("/data/heal", each.id, disks[each.id]) for each in due}, 100.1)
    for now in (100.3, 102.0, 110.0):
        view = tracker.view(nobody, now)
        assert [member for member, _, _ in moved(view)] == [1, 2, 3]
        assert isinstance(plan(view), Move)
        assert view.searched
        assert tracker.nodes_to_search(view) == [], "they were searched a moment ago"


def test_what_was_seen_before_a_member_was_missed_says_nothing_about_it() -> None:
    """Its process dies, and the disks are searched; it comes back, and later its data is lost. It is not started where
    that was, again and again, but replaced."""
    tracker, steps, now = FailureTracker(7, PINS), list[Step](), 0.0
    dead = replace(observation(answers=False), failed=frozenset({3}))
    for shown in (dead, dead, observation()):
        assert plan(after_search(tracker, shown, now, {"node-c": THREE})) is None
        now += 1.0
    assert [each.member for each in tracker._search.sightings(observation().nodes)] == [3], "the last search saw it"
    silent, restarting = 5.0, False  # its process had ended before
    while not any(isinstance(step, Reserve) for step in steps) and now < 60.0:
        said = {} if restarting else {3: MISSING}
        shown = observation(silent=silent, leading=500.0, answers=False)
        shown = replace(shown, statuses={**shown.statuses, **said})
        step = plan(after_search(tracker, shown, now, {}))
        restarting = isinstance(step, Move)
        if step is not None:
            steps.append(step)
            tracker.step_done(step)
        now, silent = now + 1.0, silent + 1.0
    assert [type(step) for step in steps] == [Reserve]


# --- what a removed member has left ----------------------------------------------------------------------------------


def without_three(*pins: str, removed: bool = True) -> Observation:
    """Members 1, 2 and 4 take part; 3 was replaced, and its host is gone, or has come back under another name."""
    four = MemberRecord(4, "m4", "d", "/data/heal", joined=True)
    three = MemberRecord(3, "m3", "c", "/data/heal", joined=True, removed=True)
    said = status(
        1,
        role="leader",
        voters=(1, 2, 4),
        silent={2: 0.0, 4: 0.0},
        caught_up=(1, 2, 4),
        table=(known(1), known(2), four),
        removed=(three,) if removed else (),
    )
    statuses = {1: said, 2: status(2, voters=(1, 2, 4)), 4: status(4, voters=(1, 2, 4))}
    return Observation(alive(*pins), dict.fromkeys((1, 2, 4)), statuses, frozenset())


@pytest.mark.parametrize(
    ("shown", "disks", "expected"),
    [
        (without_three("a", "b", "d", "x"), {"node-x": THREE}, [Clear, None]),
        (without_three("a", "b", "d", "c"), {"node-c": THREE}, [Clear, None]),
        (without_three("a", "b", "d", "x", removed=False), {"node-x": THREE}, [Retire, Clear, None]),
        (without_three("a", "b", "d", "x"), {"node-x": TWO}, [None]),
        (without_three("a", "b", "d", "x"), {"node-x": data(9)}, [None]),
        (without_three("a", "b", "d", "x"), {}, [None]),
        (replace(without_three("a", "b", "x"), statuses={2: status(2, voters=(1, 2, 4))}), {"node-x": THREE}, [None]),
    ],
    ids=["elsewhere", "where it was", "forgotten", "takes part", "not known yet", "nothing", "no leader"],
)
def test_what_a_replaced_member_has_left_goes_wherever_it_turns_up(
    shown: Observation, disks: Disks, expected: list[type[Step] | None]
) -> None:
    tracker, steps = FailureTracker(7, PINS), []
    for now in range(len(expected)):
        step = plan(after_search(tracker, shown, float(now), disks))
        steps.append(type(step) if step is not None else None)
        if isinstance(step, Clear):
            assert (step.member.id, step.member.name, step.member.base) == (3, "m3", "/data/heal")
            disks = {}
        if step is not None:
            tracker.step_done(step)
    assert steps == expected


# --- what it tells ---------------------------------------------------------------------------------------------------


def unserving(why: str, role: str = GAVE_UP, **says: Any) -> Observation:
    """Member 3 answers that it does not serve, and for how long the leader has not heard it changes nothing."""
    seen = observation(silent=500.0, leading=500.0)
    return replace(seen, statuses={**seen.statuses, 3: status(3, role=role, why_not_serving=why, **says)})


def spare_gone(observations: list[Observation]) -> list[Observation]:
    return [replace(each, nodes=each.nodes[:2]) for each in observations]


@pytest.mark.parametrize(
    ("observations", "says"),
    [
        ([observation()], ""),
        ([observation(silent=5.0, answers=False)] * 5, "m3: it answers nobody, and its node is alive"),
        ([observation(silent=5.0)] * 5, "m3: the leader does not hear it, but Ray does not miss it"),
        ([unserving("its data directory cannot be used: x")] * 5, "and is not replaced for that: its data directory"),
        (
            [unserving("its data directory cannot be used: x", role="starting", opening=True)] * 5,
            "and is not replaced for that: its data directory",
        ),
        ([observation(silent=0.0, answers=False, there=False)] * 5, "and the leader hears it; waiting for the leader"),
        (LOST[:2], "waiting until both have done so"),
        (LOST, "m3: it is gone, and is replaced as soon as there is a spare place"),
        (spare_gone(LOST), "m3: it is gone, and is replaced as soon as there is a spare place"),
    ],
    ids=[
        "well",
        "slow",
        "unheard",
        "refused by its disk",
        "it tries again",
        "only Ray",
        "not long",
        "gone",
        "no place",
    ],
)
def test_it_says_what_it_waits_for(observations: list[Observation], says: str) -> None:
    said = obstacles(watched(*observations))
    assert (says in said[0] and len(said) == 1) if says else said == []


def test_it_says_that_there_is_no_leader_and_that_no_member_answers() -> None:
    nobody = Observation((), {}, {}, frozenset())
    somewhere = silent_observation("a", actors=())
    assert obstacles(FailureTracker(7, PINS).view(somewhere, 0.0)) == ["no member has said who takes part"]
    searched = [obstacles(watched(*[somewhere] * observations)) for observations in (1, 2, 3)]
    assert searched[0] == searched[1] == searched[2]
    assert "no data of one was found" in searched[0][0]
    assert "no leader answers" in obstacles(watched(observation(), nobody))
