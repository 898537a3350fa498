"""What a supervisor makes of what it sees, what it tells of it, and that it does not hang; without Ray."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import ray

from raykeeper.actors import supervisor
from raykeeper.actors.copies import Served
from raykeeper.actors.healing import Clear, Move, Reserve, Retire, Step, View, obstacles, plan
from raykeeper.actors.outlook import Outlook
from raykeeper.actors.placement import Node
from raykeeper.actors.protocol import MemberStatus
from raykeeper.actors.raft.messages import Configuration
from raykeeper.actors.sites import Found, Site
from raykeeper.actors.supervisor import Charge, Supervisor, Watchdog, actor_class
from raykeeper.actors.supervisor_class import SupervisorActor
from raykeeper.actors.watchman import Watchman, lacks_pins
from raykeeper.limits import SEARCH_AGAIN, Settings, Timings, encode_settings
from raykeeper.store.folder import FirstMember, Identity
from raykeeper.store.members import Description
from raykeeper.store.membership_note import MembershipNote

AFTER = 2.0
PINS = ("a", "b", "c", "d")
SETTINGS = encode_settings(Settings(timings=Timings(replace_after=AFTER)))


def node(pin: str) -> Node:
    return Node(f"node-{pin}", "10.0.0.1", frozenset({pin}))


def status(member: int, **fields: Any) -> MemberStatus:
    plain: dict[str, Any] = {
        "cluster_name": "heal",
        "cluster": 7,
        "member": member,
        "name": f"m{member}",
        "role": "follower",
        "term": 1,
        "leader": 1,
        "commit_index": 9,
        "applied_index": 9,
        "last_log_index": 9,
        "first_log_index": 1,
        "revision": 1,
        "compact_revision": 0,
        "voters": (1, 2, 3),
        "learners": (),
        "db_size": 0,
        "pid": 1,
        "node": f"node-{PINS[member - 1]}",
        "settings": SETTINGS,
    }
    return MemberStatus(**{**plain, **fields})


def known(member: int) -> Description:
    return Description(member, f"m{member}", PINS[member - 1], "/data", joined=True)


def outlook(
    *, silent: float = 0.0, leading: float = 0.0, answers: bool = True, there: bool = True, registered: bool = True
) -> Outlook:
    """Member 1 leads; of member 3 this is to be said. A call to it does not fail: it only is not answered."""
    leader = status(
        1,
        role="leader",
        silent={2: 0.0, 3: silent},
        leading_for=leading,
        caught_up=(1, 2, 3),
        table=(known(1), known(2), *((known(3),) if registered else ())),
    )
    statuses = {1: leader, 2: status(2), **({3: status(3)} if answers else {})}
    nodes = tuple(node(pin) for pin in PINS if there or pin != "c")
    return Outlook(nodes, dict.fromkeys((1, 2, 3)), statuses, frozenset())


Disks = dict[str, tuple[Found, ...]]


def watched(*looks: Outlook, first_pins: dict[int, str] | None = None, disks: Disks | None = None) -> View:
    """What a supervisor knows after these looks, a second after another, where the nodes hold this, by node id."""
    watchman = Watchman(7, PINS)
    watchman.first_pins = first_pins or {}
    for now, each in enumerate(looks):
        view = after_search(watchman, each, float(now), disks or {})
    return view


def after_search(watchman: Watchman, shown: Outlook, now: float, disks: Disks) -> View:
    """What a supervisor knows after one more look, and a search if it wants one."""
    due = watchman.due(watchman.view(shown, now))
    watchman.learn({each.id: Site("/data/heal", each.id, disks.get(each.id, ())) for each in due}, now)
    return watchman.view(shown, now)


def data(*members: int, **fields: Any) -> tuple[Found, ...]:
    """Members' folders on a disk."""
    first = tuple(FirstMember(n, f"m{n}", PINS[n - 1]) for n in (1, 2, 3))
    return tuple(
        Found(
            f"m{member}",
            f"/data/heal/m{member}",
            (1, member),
            Identity(cluster_name="heal", cluster=7, member=member, name=f"m{member}", members=first),
            **fields,
        )
        for member in members
    )


# --- who is missed ---------------------------------------------------------------------------------------------------

LOST = [outlook(silent=float(n), answers=False, there=False) for n in range(5)]
LOST_UNREGISTERED = [outlook(silent=float(n), answers=False, there=False, registered=False) for n in range(5)]


def test_a_member_whose_node_is_gone_is_replaced() -> None:
    step = plan(watched(*LOST))
    assert isinstance(step, Reserve)
    assert (step.replaces, step.spot.pin) == (3, "d")


def test_so_it_is_though_no_leader_leads_as_long_as_that_takes() -> None:
    looks = [outlook(silent=0.1 + n % 2, leading=0.1 + n % 2, answers=False, there=False) for n in range(6)]
    assert isinstance(plan(watched(*looks)), Reserve)


def test_one_that_each_leader_hears_is_not() -> None:
    looks = [outlook(silent=0.5, leading=1.0, answers=False, there=False) for _ in range(8)]
    assert plan(watched(*looks)) is None


def test_so_is_one_that_was_lost_before_it_could_tell_where_it_lives() -> None:
    """A call to its actor waits for a node that is gone, for ever, so that alone it looks like a slow one."""
    assert lacks_pins(LOST_UNREGISTERED[0])
    assert not lacks_pins(LOST[0])
    assert plan(watched(*LOST_UNREGISTERED)) is None
    step = plan(watched(*LOST_UNREGISTERED, first_pins={1: "a", 2: "b", 3: "c"}))
    assert isinstance(step, Reserve)
    assert (step.replaces, step.spot.pin) == (3, "d")


def test_what_the_table_says_of_a_place_comes_before_how_the_cluster_began() -> None:
    assert plan(watched(*[outlook(silent=9.0, answers=False)] * 5, first_pins={3: "elsewhere"})) is None


@pytest.mark.parametrize("registered", [True, False])
def test_a_member_that_is_only_slow_is_not_replaced(registered: bool) -> None:
    looks = [outlook(silent=float(n), answers=False, registered=registered) for n in range(9)]
    view = watched(*looks, first_pins={3: "c"})
    assert not view.missed_since
    assert plan(view) is None


# --- whose data is elsewhere -----------------------------------------------------------------------------------------


def alive(*pins: str) -> tuple[Node, ...]:
    return tuple(node(pin) for pin in pins)


def silent_outlook(*pins: str, actors: tuple[int, ...] = (1, 2, 3), **said: MemberStatus) -> Outlook:
    """These nodes are alive; of the members' actors answer only these."""
    return Outlook(alive(*pins), dict.fromkeys(actors), {each.member: each for each in said.values()}, frozenset())


def moved(view: View) -> list[tuple[int, str, str]]:
    """Whom the supervisor would start elsewhere, and where, one after the other."""
    return [(member, known.pin, known.base) for member, known in sorted(view.found.items())]


NOTE = MembershipNote(Configuration(voters=(1, 2, 3), index=4), (known(1), known(2), known(3)))
MINORITY = status(1, table=(known(1), known(2), known(3)))
MISSING = status(3, role="not serving", why_not_serving="DataMissing", lost=True, missing=True, voters=())
DAMAGED = status(3, role="not serving", why_not_serving="LogDamaged", lost=True, voters=())
TWO, THREE = data(2), data(3)
COPY = data(3, served=Served(4, 9, copied=True))


@pytest.mark.parametrize(
    ("shown", "disks", "expected"),
    [
        (silent_outlook("a", "d", one=MINORITY), {"node-d": TWO}, [(2, "d", "/data/heal")]),
        (silent_outlook("x", "y", "z"), {"node-x": data(1), "node-y": TWO, "node-z": THREE}, [1, 2, 3]),
        (silent_outlook("x", actors=()), {"node-x": data(1, 2, note=NOTE)}, [1, 2]),
        (silent_outlook("a", "b", "x", one=MINORITY), {"node-x": data(2)}, []),
        (outlook(silent=9.0, answers=False, there=False), {"node-d": THREE}, [3]),
        (replace(outlook(silent=9.0), statuses={**outlook().statuses, 3: MISSING}), {"node-d": THREE}, []),
        (silent_outlook("a", "b", "c", "d", one=MINORITY, three=MISSING), {"node-b": THREE}, [3]),
        (silent_outlook("a", "b", "c", one=MINORITY, three=MISSING), {"node-c": THREE}, [3]),
        (silent_outlook("a", "b", "c", "d", one=MINORITY, three=DAMAGED), {"node-d": THREE}, []),
        (silent_outlook("a", "b", "d", one=MINORITY), {"node-d": COPY}, []),
        (silent_outlook("a", "b", "d", one=MINORITY), {"node-d": data(3), "node-b": COPY}, []),
        (silent_outlook("a", "b", "d", one=MINORITY), {"node-d": data(5)}, []),
        (silent_outlook("a", "b", "d", actors=(1, 2), one=MINORITY), {"node-d": THREE}, [3]),
    ],
    ids=[
        "a majority is at other addresses",
        "all are, and nobody answers",
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
def test_whose_data_is_found_elsewhere_is_started_there(shown: Outlook, disks: Disks, expected: list[Any]) -> None:
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
    shown = silent_outlook("a", "b", "d", one=MINORITY)
    watchman = Watchman(7, PINS)
    for now in (0.0, 1.0):
        view = after_search(watchman, shown, now, {"node-d": THREE})
    step = plan(view)
    assert isinstance(step, Move)
    watchman.done(step)
    for now in (2.0, 3.0, 90.0):
        assert plan(after_search(watchman, shown, now, {"node-d": THREE})) is None
    away = silent_outlook("a", "b", "x", one=MINORITY)
    for now in (91.0, 92.0):
        view = after_search(watchman, away, now, {"node-x": THREE})
    assert moved(view) == [(3, "node:10.0.0.1", "/data/heal")]


def test_who_cannot_be_started_elsewhere_is_left_for_a_while() -> None:
    shown = silent_outlook("a", "d", "x", one=MINORITY)
    disks = {"node-d": TWO, "node-x": THREE}
    watchman = Watchman(7, PINS)
    for now in (0.0, 1.0):
        view = after_search(watchman, shown, now, disks)
    first = plan(view)
    assert isinstance(first, Move)
    assert first.member.id == 2
    watchman.failed(first, 1.0)
    then = plan(after_search(watchman, shown, 2.0, disks))
    assert isinstance(then, Move)
    assert then.member.id == 3
    assert any("could not be started there just now" in line for line in obstacles(watchman.view(shown, 2.0)))
    again = plan(after_search(watchman, shown, 90.0, disks))
    assert isinstance(again, Move)
    assert again.member.id == 2


def test_nobody_is_replaced_before_all_nodes_were_looked_at() -> None:
    watchman = Watchman(7, PINS)
    for now, each in enumerate(LOST):
        view = watchman.view(each, float(now))
    assert watchman.due(view) == list(LOST[0].nodes)
    assert plan(view) is None
    watchman.learn({each.id: OSError("it has no such package") for each in view.nodes}, view.now)
    assert isinstance(plan(watchman.view(LOST[-1], view.now)), Reserve)


def test_whose_data_was_found_is_not_replaced_though_it_could_not_be_started_there_at_once() -> None:
    watchman = Watchman(7, PINS)
    for now, each in enumerate(LOST):
        view = after_search(watchman, each, float(now), {"node-d": THREE})
    step = plan(view)
    assert isinstance(step, Move)
    watchman.failed(step, view.now)
    for later in (0.1, 1.0, 5.0):
        assert not isinstance(plan(after_search(watchman, LOST[-1], view.now + later, {"node-d": THREE})), Reserve)
    assert isinstance(plan(after_search(watchman, LOST[-1], view.now + 90.0, {"node-d": THREE})), Move)


@pytest.mark.parametrize("served", [Served(4, 9, copied=True), Served()], ids=["a copy", "two"])
def test_what_nobody_can_be_sure_of_is_said_and_keeps_nobody_from_being_replaced(served: Served) -> None:
    again = tuple(msgspec.structs.replace(each, device=(1, 99)) for each in data(3, served=served))
    disks = {"node-d": data(3, served=served), "node-b": again}
    view = watched(*LOST, disks=disks)
    assert isinstance(plan(view), Reserve)
    assert "its data" in view.doubts[3] or "a copy" in view.doubts[3]
    quiet = watched(*[silent_outlook("a", "b", "d", one=MINORITY)] * 5, disks=disks)
    assert plan(quiet) is None
    assert any(view.doubts[3] in line for line in obstacles(quiet))


def test_it_says_that_data_is_nowhere_and_where_it_was() -> None:
    said = obstacles(watched(*[silent_outlook("a", "d", one=MINORITY)] * 5))
    assert "no leader answers" in said
    assert [line for line in said if line.startswith("m2: its data was not found on any Ray node") and "at b" in line]


def test_disks_are_looked_at_only_when_there_is_a_reason_and_then_now_and_then() -> None:
    watchman = Watchman(7, PINS)
    for now in range(5):
        assert watchman.due(watchman.view(outlook(), float(now))) == []
    nobody = silent_outlook("a", "b", actors=())
    fresh = Watchman(7, PINS)
    assert fresh.due(fresh.view(nobody, 0.0)) == list(nobody.nodes)
    fresh.learn({each.id: Site("/data/heal", each.id) for each in nobody.nodes}, 0.0)
    assert fresh.due(fresh.view(nobody, 1.0)) == []
    assert fresh.due(fresh.view(nobody, SEARCH_AGAIN)) == list(nobody.nodes)


# --- what a removed member has left ----------------------------------------------------------------------------------


def without_three(*pins: str, removed: bool = True) -> Outlook:
    """Members 1, 2 and 4 take part; 3 was replaced, and its host is gone, or has come back under another name."""
    four = Description(4, "m4", "d", "/data/heal", joined=True)
    three = Description(3, "m3", "c", "/data/heal", joined=True, removed=True)
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
    return Outlook(alive(*pins), dict.fromkeys((1, 2, 4)), statuses, frozenset())


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
    ids=["elsewhere", "where it was", "forgotten", "takes part", "not known yet", "nothing", "nobody leads"],
)
def test_what_a_replaced_member_has_left_goes_wherever_it_turns_up(
    shown: Outlook, disks: Disks, expected: list[type[Step] | None]
) -> None:
    watchman, steps = Watchman(7, PINS), []
    for now in range(len(expected)):
        step = plan(after_search(watchman, shown, float(now), disks))
        steps.append(type(step) if step is not None else None)
        if isinstance(step, Clear):
            assert (step.member.id, step.member.name, step.member.base) == (3, "m3", "/data/heal")
            disks = {}
        if step is not None:
            watchman.done(step)
    assert steps == expected


# --- what it tells ---------------------------------------------------------------------------------------------------


def spare_gone(looks: list[Outlook]) -> list[Outlook]:
    return [replace(each, nodes=each.nodes[:2]) for each in looks]


@pytest.mark.parametrize(
    ("looks", "says"),
    [
        ([outlook()], ""),
        ([outlook(silent=5.0, answers=False)] * 5, "m3: the leader does not hear it, Ray does not miss it"),
        ([outlook(silent=0.0, answers=False, there=False)] * 5, "and the leader hears it; waiting for the leader"),
        (LOST[:2], "waiting until both have for replace_after"),
        (LOST, "m3: it is gone, and is replaced as soon as there is a spare place"),
        (spare_gone(LOST), "m3: it is gone, and is replaced as soon as there is a spare place"),
    ],
    ids=["well", "slow", "only Ray", "not long", "gone", "no place"],
)
def test_it_says_what_it_waits_for(looks: list[Outlook], says: str) -> None:
    said = obstacles(watched(*looks))
    assert (says in said[0] and len(said) == 1) if says else said == []


def test_it_says_that_nobody_leads_and_that_nobody_answers() -> None:
    nobody = Outlook((), {}, {}, frozenset())
    somewhere = silent_outlook("a", actors=())
    assert obstacles(Watchman(7, PINS).view(somewhere, 0.0)) == ["no member has said who takes part"]
    searched = [obstacles(watched(*[somewhere] * looks)) for looks in (1, 2, 3)]
    assert searched[0] == searched[1] == searched[2]
    assert "no data of one was found" in searched[0][0]
    assert "no leader answers" in obstacles(watched(outlook(), nobody))


class Looks:
    """In place of ``supervisor.look``: shows these, and the last one again and again; ``over`` when all were shown."""

    def __init__(self, *shows: Outlook | Callable[[], Outlook]) -> None:
        self._shows = list(shows)
        self._last_shown = 0
        self.over = threading.Event()

    def __call__(self, cluster_name: str, timeout: float) -> Outlook:
        shown = self._shows[0]
        if len(self._shows) > 1:
            self._shows.pop(0)
        else:
            self._last_shown += 1
            if self._last_shown > 2:  # so what it made of the one before is done
                self.over.set()
        return shown if isinstance(shown, Outlook) else shown()


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Supervisor]]:
    """Runs a supervisor over some looks."""
    made: list[Supervisor] = []
    for pause in ("SUPERVISOR_MIN_PAUSE", "SUPERVISOR_MAX_PAUSE"):
        monkeypatch.setattr(supervisor, pause, 0.001)
    monkeypatch.setattr(supervisor, "as_daemon", lambda: None)

    def run(looks: Looks) -> Supervisor:
        monkeypatch.setattr(supervisor, "look", looks)
        made.append(Supervisor(msgspec.msgpack.encode(Charge("heal", 7, "/data", PINS))))
        return made[-1]

    yield run
    for each in made:
        each._ended.set()


def test_it_notes_what_it_sees_when_that_changes_and_not_each_time(supervise: Callable[..., Supervisor]) -> None:
    slow = outlook(silent=5.0, answers=False)
    looks = Looks(outlook(), slow, slow, slow, outlook(), outlook(), slow)
    watching = supervise(looks)
    assert looks.over.wait(20)
    said = [line.split(" ", 1)[1].split(":")[0] for line in watching.lines()]
    assert said == ["m3", "all members are well", "m3"]


def test_a_look_that_fails_is_noted_and_is_not_the_last(supervise: Callable[..., Supervisor]) -> None:
    def fails() -> Outlook:
        raise OSError("no Ray")

    looks = Looks(fails, outlook(), fails, outlook())
    watching = supervise(looks)
    assert looks.over.wait(20)
    assert [line.split(" ", 1)[1] for line in watching.lines()] == ["OSError: no Ray"]


def test_a_supervisor_that_hangs_ends_its_process(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    released, ended, statuses = threading.Event(), threading.Event(), []

    def hangs() -> Outlook:
        released.wait(20)
        return outlook()

    def end(code: int) -> None:
        statuses.append(code)
        ended.set()

    monkeypatch.setattr(supervisor, "SUPERVISOR_LOOK_TIMEOUT", 0.05)
    monkeypatch.setattr(supervisor.os, "_exit", end)
    watching = supervise(Looks(hangs))
    assert ended.wait(20)
    doing = watching.doing()
    released.set()
    assert doing.startswith("looks, for ")
    assert statuses == [1]


def test_the_watchdog_bites_once_something_takes_longer_than_it_may() -> None:
    now = [100.0]
    dog = Watchdog(lambda: now[0])
    dog.begin("looks", 5.0)
    now[0] += 5.0
    assert not dog.bites
    assert dog.doing == "looks, for 5.0 s"
    now[0] += 0.1
    assert dog.bites
    dog.begin("rests", 1.0)
    assert not dog.bites


# --- its actor -------------------------------------------------------------------------------------------------------

WITHOUT_THE_PACKAGE = """
import sys
from ray import cloudpickle

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "raykeeper":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
kind = cloudpickle.loads(sys.stdin.buffer.read())
print("loaded", flush=True)
kind(b"")
print("and it lives", flush=True)
"""


def test_its_class_can_be_sent_where_the_package_is_not_and_ends_the_process_there() -> None:
    """A class that cannot be loaded would be the end of the actor; a process that ended is started anew, elsewhere."""
    sent = ray.cloudpickle.dumps(actor_class())
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE], input=sent, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split()) == (1, [b"loaded"]), done.stderr


def test_its_actor_takes_all_its_calls(supervise: Callable[..., Supervisor]) -> None:
    calls = {name for name in vars(Supervisor) if not name.startswith("_")}
    assert calls == {name for name in vars(SupervisorActor) if not name.startswith("_")}
    watching = supervise(Looks(outlook()))
    actor = object.__new__(SupervisorActor)
    actor._supervisor = watching
    for name in sorted(calls):
        assert type(getattr(actor, name)()) is type(getattr(watching, name)())
