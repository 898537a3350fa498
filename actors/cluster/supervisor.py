"""The supervisor: a detached actor that keeps its cluster at full strength, and is never on the data path.

It observes, plans one step (``heal_plan.plan``), does it (``membership.MembershipOps``), and observes again. All that
it remembers is for how long it has missed which members (``failure_tracker.py``); when it is killed, that is lost and
nothing else. It is pinned to no node and needs no leader: Ray restarts it on any node that is alive, and from there it
finds the members' data.

A supervisor that hangs in a call to Ray is worse than none. So a watchdog ends its process if an activity takes too
long. The log says at INFO each step with its reason, and at WARNING which members are not well and what is waited for:
when that changes, not after every observation. ``lines`` returns the same to a caller.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import ray

from ...errors import KeeperError, Unavailable
from ...limits import (
    MAX_SUPERVISOR_LINES,
    MOVE_STOP_TIMEOUT_S,
    NODE_SURVEY_PAUSE_S,
    PROXY_KEEPER_PAUSE_S,
    SEARCH_TIMEOUT_S,
    STATUS_TIMEOUT_S,
    SUPERVISOR_MAX_PAUSE_S,
    SUPERVISOR_MIN_PAUSE_S,
    SUPERVISOR_OBSERVE_TIMEOUT_S,
    SUPERVISOR_PAUSE_DIVISOR,
    SUPERVISOR_STATUS_TIMEOUT_S,
    SUPERVISOR_STEP_TIMEOUT_S,
)
from ...schema.commands import ClusterEvent, RecordEvents
from ...telemetry import PROCESS, Family, Sample, gauge
from ..actor_access import as_the_cluster
from ..leader_call import administer, administer_as
from ..log_files import flush_log, log_to_ray
from ..logs import MemberLog
from ..one_thread import start_thread
from ..process import as_daemon
from ..ray_metrics import hand_to_ray
from ..ray_view import RayNode
from .failure_tracker import FailureTracker, lacks_pins
from .heal_plan import (
    EndProcess,
    Join,
    Leave,
    Move,
    Promote,
    Reserve,
    Retire,
    StartMember,
    Step,
    describe,
    obstacles,
    plan,
)
from .markers import Marker, base_of, read_markers
from .membership import MembershipOps
from .node_storage import NodeInventory, no_answer, survey
from .node_survey import NodeSurvey
from .observe import Observation, observe_cluster
from .proxy_keeper import ProxyKeeper, RayProxies
from .ray_nodes import PackageMissing, run_where_possible
from .supervisor_spec import SupervisorSpec, decode_supervisor_spec, encode_supervisor_spec


def _marker_here(spec: SupervisorSpec) -> Marker:
    """What the marker on this node knows of the cluster; nothing if the disk refuses to tell, since it is a hint."""
    known: tuple[Marker, ...] = ()
    with suppress(OSError):
        known = read_markers(base_of(spec.data_dir, spec.cluster_name), spec.cluster_name)
    plain = Marker(spec.cluster_name, spec.cluster, spec.members, version=-1)  # any other one knows more
    return next((marker for marker in known if marker.cluster == spec.cluster and not marker.destroyed), plain)


def do_step(step: Step, ops: MembershipOps, observation: Observation) -> str:
    """Do one step; what is to be said of its outcome, if anything. Raises a ``KeeperError`` or an error of Ray if it
    cannot be done now."""
    if isinstance(step, StartMember):
        ops.start_member(step.member)
    elif isinstance(step, Move):
        ops.stop_member(step.member.id, MOVE_STOP_TIMEOUT_S)
        ops.start_member(step.member)
    elif isinstance(step, EndProcess):
        return f"{step.member.name}: {ops.end_hung_member(step.member, observation.nodes)}"
    elif isinstance(step, Reserve):
        ops.reserve(step.nonce, step.placement, replaces=step.replaces, voter=step.voter)
    elif isinstance(step, Join):
        if ops.create_member(step.member, observation.nodes):
            ops.add_learner(step.member.id)
    elif isinstance(step, Promote):
        ops.promote(step.member, step.replaces)
    elif isinstance(step, Leave):
        ops.remove_from_configuration(step.member)
    elif isinstance(step, Retire):
        ops.retire(step.member)
    else:
        ops.stop_member(step.member.id)
        if step.node and not ops.delete_data(step.member, observation.nodes, step.node):
            raise Unavailable(f"the data of {step.member.name} cannot be removed yet")
    return ""


def search(nodes: Sequence[RayNode], spec: SupervisorSpec) -> dict[str, NodeInventory | Exception]:
    """What these nodes hold of the cluster, by node id; an error for one that does not say."""
    on = {node.id: node for node in nodes}
    arguments = dict.fromkeys(on, (spec.data_dir, spec.cluster_name))
    answers = run_where_possible(on, survey, arguments, SEARCH_TIMEOUT_S)
    return {
        id: no_answer(str(answer), lacks_package=True) if isinstance(answer, PackageMissing) else answer
        for id, answer in answers.items()
    }


class Watchdog:
    """Knows a supervisor's current activity, and by when it must be over.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current = ("idle", clock(), SUPERVISOR_OBSERVE_TIMEOUT_S)

    def enter(self, what: str, seconds: float) -> None:
        """A new activity starts now, and must take no longer than that."""
        self._current = (what, self._clock(), seconds)

    @property
    def activity(self) -> str:
        """The current activity, and how long it has taken."""
        what, since, _ = self._current
        return f"{what}, for {self._clock() - since:.1f} s"

    @property
    def expired(self) -> bool:
        """Whether the current activity should be over."""
        _, since, seconds = self._current
        return self._clock() - since > seconds


class Supervisor:
    """What runs in the actor (``supervisor_actor.py``). ``launch`` starts it; its methods tell what it does.

    Args:
        spec: an encoded :class:`SupervisorSpec`.
    """

    def __init__(self, spec: bytes) -> None:
        as_daemon()
        self._spec = decode_supervisor_spec(spec)
        log_to_ray(self._spec.cluster_name, "supervisor")
        self._log = MemberLog("supervisor", self._spec.cluster_name, "supervisor")
        self._lines: deque[str] = deque(maxlen=MAX_SUPERVISOR_LINES)
        self._last_line = ""
        self._last_step: Step | None = None
        self._last_error = ""
        self._obstacles: list[str] = []
        self._node_survey = NodeSurvey(self._spec.data_dir, _marker_here(self._spec))
        self._proxy_keeper = ProxyKeeper(
            self._spec.cluster_name, self._spec.cluster, RayProxies(self._spec.cluster_name)
        )
        self._ended = threading.Event()
        """Set only by tests: an actor ends with its process."""
        self._watchdog = Watchdog()
        self._steps: Counter[tuple[str, str]] = Counter()
        """Steps so far, by kind and how they ended: ``done`` or ``failed``."""
        PROCESS.add(self._families)
        hand_to_ray(self._spec.cluster_name, "supervisor", self._log)
        administer_as(self._spec.cluster_name, as_the_cluster)
        self._log.info("starts, process %d; the cluster's id is %x", os.getpid(), self._spec.cluster)
        for name, run in (
            ("supervisor", self._run),
            ("watchdog", self._watch),
            ("node-survey", self._survey_nodes),
            ("proxy-keeper", self._keep_proxies),
        ):
            start_thread(threading.Thread(target=run, name=name, daemon=True))

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def supervisor_spec(self) -> bytes:
        """What it was started with."""
        return encode_supervisor_spec(self._spec)

    def marker(self) -> Marker:
        """Its cluster, and where each member was last; without members if it has not heard of them yet."""
        return self._node_survey.marker

    def alarms(self) -> list[str]:
        """What an operator should see to, and no member knows of."""
        return list(self._node_survey.alarms)

    def stop(self) -> bool:
        """Called before it is killed: start no more tasks on nodes and no more proxies, and wait briefly for those in
        progress; whether all are over."""
        until = time.monotonic() + 0.8 * STATUS_TIMEOUT_S
        kept = self._proxy_keeper.stop(0.4 * STATUS_TIMEOUT_S)
        return self._node_survey.stop_marking(max(0.0, until - time.monotonic())) and kept

    def lines(self) -> list[str]:
        """Its last steps, their errors, and what it saw and waited for; oldest first, each with its time."""
        return list(self._lines)

    def activity(self) -> str:
        """What it does now, and for how long it has done so."""
        return self._watchdog.activity

    def situation(self) -> list[str]:
        """Which members are not well and what is waited for, by the last observation; empty if all are well."""
        return list(self._obstacles)

    def _families(self) -> Iterator[Family]:
        """Its metrics, which only Ray's show. Any thread."""
        steps = [
            Sample("_total", count, (("step", kind), ("how", how))) for (kind, how), count in list(self._steps.items())
        ]
        yield Family("raykeeper_supervisor_steps", "counter", "Steps that the supervisor has taken.", tuple(steps))
        what = "Members that are not well, and what is waited for: lines of `raykeeper status`."
        yield gauge("raykeeper_supervisor_obstacles", what, len(self._obstacles))

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Observe, plan, do one step, again and again. No error ends the loop: a step that fails is postponed, so that
        it does not keep others from being done."""
        spec = self._spec
        ops = MembershipOps(spec.cluster_name, spec.cluster, spec.data_dir, spec.placement)
        tracker = FailureTracker(spec.cluster, spec.placement)
        leads = False
        pause = 0.0
        while not self._ended.wait(pause):
            step: Step | None = None
            try:
                self._watchdog.enter("observes", SUPERVISOR_OBSERVE_TIMEOUT_S)
                # A member that is lost answers nothing: do not wait for it each time, as long as the leader answers.
                timeout = SUPERVISOR_STATUS_TIMEOUT_S if leads else STATUS_TIMEOUT_S
                observation = observe_cluster(spec.cluster_name, timeout)
                leads = observation.leader is not None
                self._node_survey.set_observation(observation)
                self._proxy_keeper.set_observation(observation)
                if lacks_pins(observation) and not tracker.first_pins:
                    with suppress(Unavailable):
                        first = ops.origin().members
                        tracker.first_pins = {member.id: member.pin for member in first if member.pin}
                view = tracker.view(observation, time.monotonic())
                if due := tracker.nodes_to_search(view):
                    self._watchdog.enter("searches for data", SEARCH_TIMEOUT_S + SUPERVISOR_OBSERVE_TIMEOUT_S)
                    asked_at = time.monotonic()  # what the disks hold they hold then or later
                    tracker.record_search(search(due, spec), asked_at)
                    view = tracker.view(observation, time.monotonic())
                self._note_obstacles(obstacles(view))
                step = plan(view)
                self._note_step(step)
                if step is not None:
                    self._watchdog.enter(str(step), SUPERVISOR_STEP_TIMEOUT_S)
                    if outcome := do_step(step, ops, observation):
                        self._note(outcome)
                        self._log.warning("%s", outcome)
                    tracker.step_done(step)
                    self._steps[type(step).__name__, "done"] += 1
                self._last_error = ""
            except (KeeperError, ray.exceptions.RayError, OSError) as error:
                self._note_error(f"{type(error).__name__}: {error}", step)
                if step is not None:
                    tracker.step_failed(step, time.monotonic())
                    self._steps[type(step).__name__, "failed"] += 1
                step = None
            except Exception:
                self._note_error(traceback.format_exc(), step)
                step = None
            pause = SUPERVISOR_MIN_PAUSE_S
            if step is None:
                pause = min(SUPERVISOR_MAX_PAUSE_S, max(pause, tracker.replace_after / SUPERVISOR_PAUSE_DIVISOR))
            self._watchdog.enter("idle", pause + SUPERVISOR_OBSERVE_TIMEOUT_S)

    def _survey_nodes(self) -> None:
        """Bring markers to the nodes, on a thread of its own; each new problem or alarm is noted once."""
        said: list[str] = []
        while not self._ended.wait(NODE_SURVEY_PAUSE_S):
            try:
                failed = self._node_survey.survey_due_nodes(time.monotonic())
            except Exception as error:
                failed = [f"surveying the nodes: {type(error).__name__}: {error}"]
            for line in (*failed, *self._node_survey.alarms):
                if line not in said:
                    self._note(line)
                    self._log.warning("of the nodes: %s", line)
            said = [*failed, *self._node_survey.alarms, *said][:MAX_SUPERVISOR_LINES]

    def _keep_proxies(self) -> None:
        """Have proxies where the settings ask for them, on a thread of its own; each new problem is noted once."""
        said: list[str] = []
        while not self._ended.wait(PROXY_KEEPER_PAUSE_S):
            try:
                failed = self._proxy_keeper.keep(time.monotonic())
            except Exception as error:
                failed = [f"keeping the proxies: {type(error).__name__}: {error}"]
            for line in failed:
                if line not in said:
                    self._note(line)
                    self._log.warning("%s", line)
            said = failed

    def _watch(self) -> None:
        """End the process, so that Ray starts another, once an activity takes too long."""
        while not self._watchdog.expired:
            if self._ended.wait(SUPERVISOR_MAX_PAUSE_S):
                return
        self._log.critical("hangs (%s); ending the process", self._watchdog.activity)
        flush_log()
        os._exit(1)

    # -- notes and log ------------------------------------------------------------------------------------------------

    def _note(self, line: str) -> None:
        if line != self._last_line:
            self._last_line = line
            self._lines.append(f"{time.strftime('%H:%M:%S')} {line}")

    def _note_step(self, step: Step | None) -> None:
        """Log a step when it is first tried, not whenever it is tried again."""
        if step is not None:
            self._note(str(step))
            if step != self._last_step:
                self._log.info("step: %s", describe(step))
                self._record(describe(step))
        self._last_step = step

    def _record(self, text: str) -> None:
        """Have the cluster keep a step among its events, if it can at once: the step is more urgent."""
        event = ClusterEvent("supervisor", text, time.time(), id=os.urandom(8))
        deadline = time.monotonic() + SUPERVISOR_STATUS_TIMEOUT_S
        with suppress(KeeperError, ray.exceptions.RayError):
            administer(self._spec.cluster_name, self._spec.cluster, RecordEvents((event,)), deadline)

    def _note_error(self, error: str, step: Step | None) -> None:
        """Log an error unless it is the one of the last attempt."""
        self._note(error)
        if error != self._last_error:
            self._log.warning("%s failed: %s", describe(step) if step is not None else "observing", error)
        self._last_error = error

    def _note_obstacles(self, seen: list[str]) -> None:
        """Note what was not seen the last time."""
        for line in seen:
            if line not in self._obstacles:
                self._note(line)
                self._log.warning("situation: %s", line)
        if self._obstacles and not seen:
            self._note("all members are well")
            self._log.info("all members are well")
        self._obstacles = seen
