"""A supervisor's loop: what it notes and logs, and its watchdog; without Ray."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest
import ray

from lab.observations import LOST, PINS, observation, watched
from lab.patience import PATIENCE
from raykeeper.actors.cluster import supervisor
from raykeeper.actors.cluster.heal_plan import (
    Reserve,
    Retire,
    Step,
    plan,
)
from raykeeper.actors.cluster.observe import Observation
from raykeeper.actors.cluster.supervisor import Supervisor, Watchdog
from raykeeper.actors.cluster.supervisor_actor import SupervisorActor
from raykeeper.actors.cluster.supervisor_handle import actor_class
from raykeeper.actors.cluster.supervisor_spec import SupervisorSpec
from raykeeper.errors import Unavailable


class Observations:
    """In place of ``observe_cluster``: shows these, and the last one again and again; ``over`` when all were shown."""

    def __init__(self, *shows: Observation | Callable[[], Observation]) -> None:
        self._shows = list(shows)
        self._last_shown = 0
        self.over = threading.Event()

    def __call__(self, cluster_name: str, timeout: float) -> Observation:
        shown = self._shows[0]
        if len(self._shows) > 1:
            self._shows.pop(0)
        else:
            self._last_shown += 1
            if self._last_shown > 2:  # so what it made of the one before is done
                self.over.set()
        return shown if isinstance(shown, Observation) else shown()


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Supervisor]]:
    """Runs a supervisor over some observations."""
    made: list[Supervisor] = []
    for pause in ("SUPERVISOR_MIN_PAUSE_S", "SUPERVISOR_MAX_PAUSE_S"):
        monkeypatch.setattr(supervisor, pause, 0.001)
    monkeypatch.setattr(supervisor, "as_daemon", lambda: None)

    def run(observations: Observations) -> Supervisor:
        monkeypatch.setattr(supervisor, "observe_cluster", observations)
        made.append(Supervisor(msgspec.msgpack.encode(SupervisorSpec("heal", 7, "/data", PINS))))
        return made[-1]

    yield run
    for each in made:
        each._ended.set()


def test_it_notes_what_it_sees_when_that_changes_and_not_each_time(supervise: Callable[..., Supervisor]) -> None:
    slow = observation(silent=5.0, answers=False)
    observations = Observations(observation(), slow, slow, slow, observation(), observation(), slow)
    watching = supervise(observations)
    assert observations.over.wait(PATIENCE)
    said = [line.split(" ", 1)[1].split(":")[0] for line in watching.lines()]
    assert said == ["m3", "all members are well", "m3"]


def test_its_log_names_the_cluster_and_says_each_thing_once(
    supervise: Callable[..., Supervisor], caplog: pytest.LogCaptureFixture
) -> None:
    slow = observation(silent=5.0, answers=False)
    observations = Observations(observation(), slow, slow, observation())
    with caplog.at_level("INFO", logger="raykeeper.supervisor"):
        supervise(observations)
        assert observations.over.wait(PATIENCE)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO", "WARNING", "INFO"], "it starts, m3 is missed, all are well"
    assert all(record.getMessage().startswith("cluster heal, supervisor: ") for record in caplog.records)


def test_its_log_says_each_step_with_its_reason_and_each_error_once(
    supervise: Callable[..., Supervisor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = plan(watched(*LOST))
    assert isinstance(reserve, Reserve)
    steps: list[Step | None] = [reserve, reserve, Retire(3), None]
    tried: list[Step] = []

    def do_step(step: Step, *_: object) -> None:
        tried.append(step)
        if len(tried) < 3:
            raise Unavailable("not now")

    monkeypatch.setattr(supervisor, "do_step", do_step)
    monkeypatch.setattr(supervisor, "plan", lambda view: steps.pop(0) if len(steps) > 1 else steps[0])
    observations = Observations(*[observation()] * 5)
    with caplog.at_level("INFO", logger="raykeeper.supervisor"):
        supervise(observations)
        assert observations.over.wait(PATIENCE)
    said = [(record.levelname, record.getMessage().partition("supervisor: ")[2]) for record in caplog.records]
    reason = "replacing m3, which is lost: reserving an id for its successor at d"
    assert said[1:] == [
        ("INFO", f"step: {reason}"),
        ("WARNING", f"{reason} failed: Unavailable: not now"),
        ("INFO", "step: retiring m3: it is not in the configuration, and its id is not used again"),
    ]


def test_an_observation_that_fails_is_noted_and_is_not_the_last(supervise: Callable[..., Supervisor]) -> None:
    def fails() -> Observation:
        raise OSError("no Ray")

    observations = Observations(fails, observation(), fails, observation())
    watching = supervise(observations)
    assert observations.over.wait(PATIENCE)
    assert [line.split(" ", 1)[1] for line in watching.lines()] == ["OSError: no Ray"]


def test_a_supervisor_that_hangs_ends_its_process(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    released, ended, statuses = threading.Event(), threading.Event(), []

    def hangs() -> Observation:
        released.wait(PATIENCE)
        return observation()

    def end(code: int) -> None:
        statuses.append(code)
        ended.set()

    monkeypatch.setattr(supervisor, "SUPERVISOR_OBSERVE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(supervisor.os, "_exit", end)
    watching = supervise(Observations(hangs))
    assert ended.wait(PATIENCE)
    activity = watching.activity()
    released.set()
    assert activity.startswith("observes, for ")
    assert statuses == [1]


def test_the_watchdog_expires_once_an_activity_takes_longer_than_it_may() -> None:
    now = [100.0]
    dog = Watchdog(lambda: now[0])
    dog.enter("observes", 5.0)
    now[0] += 5.0
    assert not dog.expired
    assert dog.activity == "observes, for 5.0 s"
    now[0] += 0.1
    assert dog.expired
    dog.enter("idle", 1.0)
    assert not dog.expired


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
    """A class that cannot be loaded would be the end of the actor; a process that ended is restarted, elsewhere."""
    sent = ray.cloudpickle.dumps(actor_class())
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE], input=sent, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split()) == (1, [b"loaded"]), done.stderr


def test_its_actor_takes_all_its_calls(supervise: Callable[..., Supervisor]) -> None:
    calls = {name for name in vars(Supervisor) if not name.startswith("_")}
    assert calls == {name for name in vars(SupervisorActor) if not name.startswith("_")}
    watching = supervise(Observations(observation()))
    actor = object.__new__(SupervisorActor)
    actor._supervisor = watching
    for name in sorted(calls):
        assert type(getattr(actor, name)()) is type(getattr(watching, name)())
