"""The supervisor: a detached actor that keeps its cluster at full strength, and is never on the data path.

It looks, plans one step (``healing.plan``), does it (``membership.Hands``), and looks again. All that it remembers is
how long it has missed whom (``watchman.py``); whoever kills it loses that and nothing else. It is pinned to no node and
needs no leader: Ray starts it anew on any node that is alive, and from there it finds the members' data.

So a supervisor that hangs, in a call of Ray's that does not come back, is of less use than none: it has a watchdog, and
ends. What it sees, and why it does nothing about it, is noted whenever that changes (``lines``).
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..errors import KeeperError, Unavailable
from ..limits import (
    LOOK_AROUND_PAUSE,
    MAX_SUPERVISOR_LINES,
    MOVE_PATIENCE,
    SEARCH_TIMEOUT,
    STATUS_TIMEOUT,
    STOP_TIMEOUT,
    SUPERVISOR_LOOK_TIMEOUT,
    SUPERVISOR_LOOKS,
    SUPERVISOR_MAX_PAUSE,
    SUPERVISOR_MIN_PAUSE,
    SUPERVISOR_PATIENCE,
    SUPERVISOR_STEP_TIMEOUT,
)
from . import supervisor_class
from .client.deadline import at_most
from .healing import Join, Leave, Move, Promote, Reserve, Retire, Start, Step, obstacles, plan
from .markers import MarkedMember, Marker, base_of, read_markers
from .membership import Hands
from .outlook import Outlook, look
from .placement import Node, run_where_possible
from .priority import as_daemon
from .ray_calls import in_time
from .roster import gone, wait_for
from .seat import NAMESPACE, actor_name
from .sites import Site, survey
from .surroundings import Surroundings
from .watchman import Watchman, lacks_pins

_encode = msgspec.msgpack.Encoder().encode


class Charge(msgspec.Struct, frozen=True):
    """Which cluster a supervisor looks after."""

    cluster_name: str
    cluster: int
    data_dir: str
    placement: tuple[str, ...] = ()
    members: tuple[MarkedMember, ...] = ()
    """Where each member lived when this was written: should the supervisor come up where nobody knows more."""


decode_charge = msgspec.msgpack.Decoder(Charge).decode


def _marker_here(charge: Charge) -> Marker:
    """What the marker on this node knows of the cluster."""
    known = read_markers(base_of(charge.data_dir, charge.cluster_name), charge.cluster_name)
    plain = Marker(charge.cluster_name, charge.cluster, charge.members, version=-1)  # any other one knows more
    return next((marker for marker in known if marker.cluster == charge.cluster and not marker.destroyed), plain)


def do(step: Step, hands: Hands, outlook: Outlook) -> None:
    """Do one step; raises a ``KeeperError`` or an error of Ray's if it cannot be done now."""
    if isinstance(step, Start):
        hands.start(step.member)
    elif isinstance(step, Move):
        hands.end(step.member.id, MOVE_PATIENCE)
        hands.start(step.member)
    elif isinstance(step, Reserve):
        hands.reserve(step.nonce, step.spot, replaces=step.replaces, voter=step.voter)
    elif isinstance(step, Join):
        if hands.enroll(step.member, outlook.nodes):
            hands.learn(step.member.id)
    elif isinstance(step, Promote):
        hands.promote(step.member, step.replaces)
    elif isinstance(step, Leave):
        hands.leave(step.member)
    elif isinstance(step, Retire):
        hands.retire(step.member)
    else:
        hands.end(step.member.id)
        if step.node and not hands.clear(step.member, outlook.nodes, step.node):
            raise Unavailable(f"the data of {step.member.name} cannot be removed yet")


def search(nodes: Sequence[Node], charge: Charge) -> dict[str, Site | Exception]:
    """What these nodes hold of the cluster, by node id; an error for one that does not say."""
    on = {node.id: node for node in nodes}
    arguments = dict.fromkeys(on, (charge.data_dir, charge.cluster_name))
    return run_where_possible(on, survey, arguments, SEARCH_TIMEOUT)


class Watchdog:
    """Knows what a supervisor does just now, and by when that must be over.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._doing = ("rests", clock(), SUPERVISOR_LOOK_TIMEOUT)

    def begin(self, what: str, seconds: float) -> None:
        """This begins now, and takes no longer than that."""
        self._doing = (what, self._clock(), seconds)

    @property
    def doing(self) -> str:
        """What is done, and for how long by now."""
        what, since, _ = self._doing
        return f"{what}, for {self._clock() - since:.1f} s"

    @property
    def bites(self) -> bool:
        """Whether that should be over."""
        _, since, seconds = self._doing
        return self._clock() - since > seconds


class Supervisor:
    """What runs in the actor (``supervisor_class.py``). ``launch`` starts it; its methods are for those who wonder what
    it does.

    Args:
        charge: an encoded :class:`Charge`.
    """

    def __init__(self, charge: bytes) -> None:
        as_daemon()
        self._charge = decode_charge(charge)
        self._lines: deque[str] = deque(maxlen=MAX_SUPERVISOR_LINES)
        self._last_line = ""
        self._seen: list[str] = []
        self._surroundings = Surroundings(self._charge.data_dir, _marker_here(self._charge))
        self._ended = threading.Event()
        """Set by nobody but tests: an actor ends with its process."""
        self._watchdog = Watchdog()
        for name, run in (
            ("supervisor", self._run),
            ("watchdog", self._watch),
            ("surroundings", self._look_around),
        ):
            threading.Thread(target=run, name=name, daemon=True).start()

    def pid(self) -> int:
        """Its process."""
        return os.getpid()

    def charge(self) -> bytes:
        """What it was started with."""
        return _encode(self._charge)

    def marker(self) -> Marker:
        """Its cluster, and where each member was last; no members if it has not heard of them yet."""
        return self._surroundings.marker

    def alarms(self) -> list[str]:
        """What an operator should see to, that no member knows of."""
        return list(self._surroundings.alarms)

    def stop(self) -> bool:
        """It is about to be ended: start no more tasks on nodes, and wait a little for those under way; whether all are
        over."""
        return self._surroundings.end(0.8 * STATUS_TIMEOUT)

    def lines(self) -> list[str]:
        """Its last steps, what came in their way, and what it saw and waited for; oldest first, each with its time."""
        return list(self._lines)

    def doing(self) -> str:
        """What it does just now, and for how long by now."""
        return self._watchdog.doing

    def situation(self) -> list[str]:
        """What is the matter, and what it waits for, as of its last look; nothing if all members are well."""
        return list(self._seen)

    def _run(self) -> None:
        charge = self._charge
        hands = Hands(charge.cluster_name, charge.cluster, charge.data_dir, charge.placement)
        watchman = Watchman(charge.cluster, charge.placement)
        leads = False
        pause = 0.0
        while not self._ended.wait(pause):
            step: Step | None = None
            try:
                self._watchdog.begin("looks", SUPERVISOR_LOOK_TIMEOUT)
                # A member that is lost answers nothing: do not wait for it each time, as long as the leader does.
                outlook = look(charge.cluster_name, SUPERVISOR_PATIENCE if leads else STATUS_TIMEOUT)
                leads = outlook.leader is not None
                self._surroundings.tell(outlook)
                if lacks_pins(outlook) and not watchman.first_pins:
                    with suppress(Unavailable):
                        first = hands.beginning().members
                        watchman.first_pins = {member.id: member.pin for member in first if member.pin}
                view = watchman.view(outlook, time.monotonic())
                if due := watchman.due(view):
                    self._watchdog.begin("looks for data", SEARCH_TIMEOUT + SUPERVISOR_LOOK_TIMEOUT)
                    watchman.learn(search(due, charge), time.monotonic())
                    view = watchman.view(outlook, time.monotonic())
                self._note_all(obstacles(view))
                step = plan(view)
                if step is not None:
                    self._note(str(step))
                    self._watchdog.begin(str(step), SUPERVISOR_STEP_TIMEOUT)
                    do(step, hands, outlook)
                    watchman.done(step)
            except (KeeperError, ray.exceptions.RayError, OSError) as error:
                self._note(f"{type(error).__name__}: {error}")
                if step is not None:
                    watchman.failed(step, time.monotonic())
                step = None
            except Exception:
                self._note(traceback.format_exc())
                step = None
            pause = SUPERVISOR_MIN_PAUSE
            if step is None:
                pause = min(SUPERVISOR_MAX_PAUSE, max(pause, watchman.replace_after / SUPERVISOR_LOOKS))
            self._watchdog.begin("rests", pause + SUPERVISOR_LOOK_TIMEOUT)

    def _look_around(self) -> None:
        said: list[str] = []
        while not self._ended.wait(LOOK_AROUND_PAUSE):
            try:
                failed = self._surroundings.look_around(time.monotonic())
            except Exception as error:
                failed = [f"looking around: {type(error).__name__}: {error}"]
            for line in (*failed, *self._surroundings.alarms):
                if line not in said:
                    self._note(line)
            said = [*failed, *self._surroundings.alarms, *said][:MAX_SUPERVISOR_LINES]

    def _watch(self) -> None:
        while not self._watchdog.bites:
            if self._ended.wait(SUPERVISOR_MAX_PAUSE):
                return
        print(
            f"raykeeper: the supervisor of cluster {self._charge.cluster_name} hangs ({self._watchdog.doing}); "
            "ending the process",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    def _note(self, line: str) -> None:
        if line != self._last_line:
            self._last_line = line
            self._lines.append(f"{time.strftime('%H:%M:%S')} {line}")

    def _note_all(self, seen: list[str]) -> None:
        """Note what is seen, if it is not what was seen the last time."""
        for line in seen:
            if line not in self._seen:
                self._note(line)
        if self._seen and not seen:
            self._note("all members are well")
        self._seen = seen


def supervisor_name(cluster_name: str) -> str:
    """The name of a cluster's supervisor in ``NAMESPACE``."""
    return actor_name(cluster_name, "supervisor")


def supervisor_actor(cluster_name: str) -> Any:
    """The handle of a cluster's supervisor, ``None`` if there is none."""
    try:
        return in_time(ray.get_actor, supervisor_name(cluster_name), namespace=NAMESPACE)
    except ValueError:
        return None


def ask_supervisor(cluster_name: str, method: str, timeout: float = STATUS_TIMEOUT) -> Any:
    """What a cluster's supervisor answers; ``None`` if there is none, or it says nothing in time."""
    with suppress(ray.exceptions.RayError, TimeoutError):
        actor = supervisor_actor(cluster_name)
        return None if actor is None else ray.get(getattr(actor, method).remote(), timeout=at_most(timeout))
    return None


def start_supervisor(charge: Charge, near: str = "") -> None:
    """Start a cluster's supervisor, if there is none; one with another charge, perhaps of a cluster of the same name
    that is no more, is replaced.

    Args:
        near: id of a node to start it on if that is possible: one that certainly can load it. It may run on any.
    """
    if _start(charge, near):
        return
    with suppress(ray.exceptions.RayError, TimeoutError):
        actor = supervisor_actor(charge.cluster_name)
        if actor is not None:
            there = decode_charge(ray.get(actor.charge.remote(), timeout=at_most(STATUS_TIMEOUT)))
            if msgspec.structs.replace(there, members=charge.members) == charge:
                return
        stop_supervisor(charge.cluster_name)
        _start(charge, near)


def actor_class() -> type:
    """The class of the actor, to be sent by value from now on."""
    by_value: Any = ray.cloudpickle.register_pickle_by_value  # which has no types
    by_value(supervisor_class)
    return supervisor_class.SupervisorActor


def _start(charge: Charge, near: str) -> bool:
    actor: Any = ray.remote(actor_class())
    where = {"scheduling_strategy": NodeAffinitySchedulingStrategy(near, soft=True)} if near else {}
    try:
        options = actor.options(
            name=supervisor_name(charge.cluster_name),
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=8,
            **where,
        )
        in_time(options.remote, _encode(charge))
    except (ray.exceptions.ActorAlreadyExistsError, ValueError):
        return False
    return True


def stop_supervisor(cluster_name: str) -> bool:
    """End a cluster's supervisor for good, if there is one, and return when it is gone; whether there was one."""
    name = supervisor_name(cluster_name)
    try:
        actor = in_time(ray.get_actor, name, namespace=NAMESPACE)
    except ValueError:
        return False
    with suppress(ray.exceptions.RayError, TimeoutError):
        ray.get(actor.stop.remote(), timeout=at_most(STATUS_TIMEOUT))
    in_time(ray.kill, actor, no_restart=True)
    wait_for(lambda: gone([name]), time.monotonic() + STOP_TIMEOUT)
    return True
