"""What a supervisor makes of what it sees, what it tells of it, and that it does not hang; without Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from raykeeper.actors import supervisor
from raykeeper.actors.healing import Reserve, View, obstacles, plan
from raykeeper.actors.outlook import Outlook
from raykeeper.actors.placement import Node
from raykeeper.actors.protocol import MemberStatus
from raykeeper.actors.supervisor import Charge, Supervisor, Watchdog, Watchman, lacks_pins
from raykeeper.limits import Settings, Timings, encode_settings
from raykeeper.store.members import Description

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


def outlook(*, silent: float = 0.0, answers: bool = True, there: bool = True, registered: bool = True) -> Outlook:
    """Member 1 leads; of member 3 this is to be said. A call to it does not fail: it only is not answered."""
    leader = status(
        1,
        role="leader",
        silent={2: 0.0, 3: silent},
        caught_up=(1, 2, 3),
        table=(known(1), known(2), *((known(3),) if registered else ())),
    )
    statuses = {1: leader, 2: status(2), **({3: status(3)} if answers else {})}
    nodes = tuple(node(pin) for pin in PINS if there or pin != "c")
    return Outlook(nodes, dict.fromkeys((1, 2, 3)), statuses, frozenset())


def watched(*looks: Outlook, first_pins: dict[int, str] | None = None) -> View:
    """What a supervisor knows after these looks, a second after another."""
    watchman = Watchman(PINS)
    watchman.first_pins = first_pins or {}
    for now, each in enumerate(looks):
        view = watchman.view(each, float(now))
    return view


# --- who is missed ---------------------------------------------------------------------------------------------------

LOST = [outlook(silent=float(n), answers=False, there=False) for n in range(5)]
LOST_UNREGISTERED = [outlook(silent=float(n), answers=False, there=False, registered=False) for n in range(5)]


def test_a_member_whose_node_is_gone_is_replaced() -> None:
    step = plan(watched(*LOST))
    assert isinstance(step, Reserve)
    assert (step.replaces, step.spot.pin) == (3, "d")


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
    assert obstacles(watched(nobody)) == ["no member has said who takes part"]
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
