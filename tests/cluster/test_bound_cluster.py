"""Leases that are bound to a life, on a real Ray: actors, jobs and drivers that die, in every way, or live on.

What is taken has a TTL of an hour, so whatever is free again was freed by a death, and what a test says is still held
was held although its keeper had every reason to look.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import raykeeper
from lab.patience import PATIENCE
from lab.ray.crowd import Crowd
from lab.ray.faults import CLIENT, Faults, cut
from lab.ray.programs import PATH, ROOT, run_program
from lab.ray.tools import Made, is_alive, is_stopped, kill, leader, serving, start_of, wait_until
from raykeeper import Client
from raykeeper.actors.client import life_monitor
from raykeeper.actors.client.adoption import adopted
from raykeeper.actors.cluster.supervisor_handle import supervisor_name
from raykeeper.actors.naming import NAMESPACE

pytestmark = pytest.mark.survival

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

HOUR = 3600.0


class Held:
    """One of everything that can be bound to a life, held by this process."""

    def __init__(self, kv: Client, bound_to: Any, ttl: float = HOUR) -> None:
        before = {lease.id for lease in kv.leases()}
        self.kv = kv
        self.lease = kv.lease(ttl, bound_to=bound_to)
        kv.put("leased", "", lease=self.lease)
        self.lock = kv.lock("lock", ttl, bound_to=bound_to)
        assert self.lock.acquire(timeout=PATIENCE)
        self.reader = kv.rwlock("read", ttl, bound_to=bound_to).read()
        assert self.reader.acquire(timeout=PATIENCE)
        self.writer = kv.rwlock("written", ttl, bound_to=bound_to).write()
        assert self.writer.acquire(timeout=PATIENCE)
        self.slot = kv.semaphore("slots", 1, ttl, bound_to=bound_to)
        assert self.slot.acquire(timeout=PATIENCE)
        self.election = kv.election("election", ttl, bound_to=bound_to)
        assert self.election.campaign("first", timeout=PATIENCE)
        self.registration = kv.registry("topic").register("service", "address", ttl, bound_to=bound_to)
        kv.queue("queue", ttl).put("item")
        self.claim = kv.queue("queue", ttl).claim(timeout=PATIENCE, bound_to=bound_to)
        assert self.claim is not None
        self.ids = {lease.id for lease in kv.leases()} - before
        assert len(self.ids) == 8, "one lease each"

    def left(self, kv: Client) -> int:
        """How many of them are held still, as the cluster says."""
        return len(self.ids & {lease.id for lease in kv.leases(timeout=PATIENCE)})

    @property
    def lost(self) -> list[bool]:
        """Of each whether this process was told that it is lost."""
        holders = (self.lease, self.lock, self.reader, self.writer, self.slot, self.election, self.claim)
        return [*(each.lost.is_set() for each in holders), not self.registration.registered]


def take_all(kv: Client) -> None:
    """Be the next holder of everything."""
    assert kv.get("leased") is None
    assert kv.lock("lock").acquire(timeout=PATIENCE)
    assert kv.rwlock("read").write().acquire(timeout=PATIENCE)
    assert kv.rwlock("written").write().acquire(timeout=PATIENCE)
    assert kv.semaphore("slots", 1).acquire(timeout=PATIENCE)
    assert kv.election("election").campaign("second", timeout=PATIENCE)
    assert not kv.registry("topic").lookup("service")
    claim = kv.queue("queue").claim(timeout=PATIENCE)
    assert claim is not None
    assert claim.item == b"item"


class _Body:
    """An actor that others are bound to, or that holds something itself."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def pid(self) -> int:
        return os.getpid()

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(self, *arguments)

    def left(self, names: list[str]) -> list[int]:
        return [held.left(held.kv) for held in map(self.held.__getitem__, names)]

    def lost(self, name: str) -> list[bool]:
        return list(self.held[name].lost)


def body(**options: Any) -> Any:
    """A new actor."""
    return ray.remote(num_cpus=0, max_concurrency=8, **options)(_Body).remote()


def ask(call: Any) -> Any:
    return ray.get(call, timeout=2 * PATIENCE)


class Looks:
    """Counts the looks at lives that this process has finished, whether Ray has answered or not."""

    def __init__(self) -> None:
        self.done = 0
        self.failed = 0

    def wait(self) -> None:
        """Until all that was to see so far has been seen, and dealt with."""
        done = self.done
        wait_until(lambda: self.done >= done + 3, PATIENCE, "this process looks at the lives")

    def answered(self) -> None:
        """Until Ray has answered."""
        good = self.done - self.failed
        wait_until(lambda: self.done - self.failed >= good + 3, PATIENCE, "Ray answers")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks()
    ask_ray = life_monitor._Watched.ask

    def counted(watched: Any, now: float, calls: Any) -> None:
        due = watched.over is None and now >= watched.look_at
        try:
            ask_ray(watched, now, calls)
        except BaseException:
            looks.failed += due
            raise
        finally:
            looks.done += due

    monkeypatch.setattr(life_monitor._Watched, "ask", counted)
    return looks


@pytest.fixture
def kv(shared: Any, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A namespace of the test's own."""
    with shared.client(timeout=PATIENCE) as client:
        yield client.namespace(f"{request.node.name}/")


# --- an actor --------------------------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("how", ["killed by Ray", "SIGKILL", "it ends itself"])
def test_all_that_is_bound_to_an_actor_is_free_when_that_is_dead_for_good(kv: Client, looks: Looks, how: str) -> None:
    actor = body(max_restarts=0)
    pid = ask(actor.pid.remote())
    held = Held(kv, actor)
    looks.answered()
    assert held.left(kv) == 8
    assert not any(held.lost)
    if how == "killed by Ray":
        ray.kill(actor)
    elif how == "SIGKILL":
        os.kill(pid, signal.SIGKILL)
    else:
        actor.__ray_terminate__.remote()
    wait_until(lambda: not held.left(kv), 2 * PATIENCE, lambda: f"{held.left(kv)} are held, lost: {held.lost}")
    wait_until(lambda: all(held.lost), PATIENCE, lambda: f"{held.lost}")
    take_all(kv)


def test_an_actor_that_is_started_again_keeps_what_is_bound_to_it_until_no_restart_is_left(
    kv: Client, looks: Looks
) -> None:
    actor = body(max_restarts=2, max_task_retries=-1)
    held = Held(kv, actor)
    pids = [ask(actor.pid.remote())]
    looks.answered()
    # By SIGKILL, and as Ray would.
    for end in (lambda: os.kill(pids[-1], signal.SIGKILL), lambda: ray.kill(actor, no_restart=False)):
        end()
        wait_until(lambda: not is_alive(pids[-1]), PATIENCE, "its process is dead")
        pids.append(ask(actor.pid.remote()))
        looks.answered()
        assert held.left(kv) == 8
        assert not any(held.lost)
    assert len(set(pids)) == 3
    os.kill(pids[-1], signal.SIGKILL)
    wait_until(lambda: not held.left(kv), 2 * PATIENCE, lambda: f"{held.left(kv)} are held, lost: {held.lost}")
    take_all(kv)


def test_an_actor_whose_last_handle_is_gone_frees_the_lease_that_is_bound_to_it(kv: Client, looks: Looks) -> None:
    actor = body()
    ask(actor.pid.remote())
    lease = kv.lease(HOUR, bound_to=actor)
    looks.answered()
    assert not lease.lost.is_set()
    del actor
    gc.collect()
    wait_until(lambda: lease.id not in {each.id for each in kv.leases()}, 2 * PATIENCE, "the lease has ended")
    assert lease.lost.is_set()


def _hold(actor: _Body, cluster: str, prefix: str, bound_to: Any, name: str = "held") -> set[int]:
    """In an actor: hold everything, and be known to a member as a process whose death counts."""
    kv = raykeeper.connect(cluster, timeout=PATIENCE).namespace(prefix)
    held = Held(kv, bound_to)
    actor.held[name] = held
    return held.ids


def _monitored(actor: _Body, cluster: str) -> bool:
    """In an actor: whether a member has said that it would notice the death of this process."""
    kv = raykeeper.connect(cluster, timeout=PATIENCE)
    return bool(kv._hub(PATIENCE).monitor_core.monitored)


def test_an_actor_that_cannot_be_started_again_may_be_bound_to_itself(kv: Client, shared: Any) -> None:
    actor = body(max_restarts=0)
    pid = ask(actor.pid.remote())
    ids = ask(actor.run.remote(_hold, shared.name, "itself/", actor))
    wait_until(lambda: ask(actor.run.remote(_monitored, shared.name)), PATIENCE, "a member monitors it")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not ids & {each.id for each in kv.leases()}, PATIENCE, "all of it is free")


def test_another_actor_keeps_what_is_bound_to_one(kv: Client, shared: Any) -> None:
    """Neither is the driver, and the one that it is bound to goes first."""
    keeper, life = body(), body()
    pid = ask(life.pid.remote())
    ids = ask(keeper.run.remote(_hold, shared.name, "of another/", life))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not ids & {each.id for each in kv.leases()}, 2 * PATIENCE, "all of it is free")
    wait_until(lambda: all(ask(keeper.lost.remote("held"))), PATIENCE, "the keeper knows")


# --- certain death only ----------------------------------------------------------------------------------------------


@pytest.mark.core
def test_an_actor_that_is_stopped_is_not_dead(kv: Client, looks: Looks, stopped: list[int]) -> None:
    actor = body(max_restarts=0)
    pid = ask(actor.pid.remote())
    held = Held(kv, actor)
    looks.answered()
    os.kill(pid, signal.SIGSTOP)
    stopped.append(pid)
    wait_until(lambda: is_stopped(pid), PATIENCE, "it is stopped")
    looks.answered()
    assert held.left(kv) == 8
    assert not any(held.lost)
    os.kill(pid, signal.SIGCONT)
    stopped.remove(pid)
    assert ask(actor.pid.remote()) == pid
    ray.kill(actor)
    wait_until(lambda: not held.left(kv), 2 * PATIENCE, "and when it is dead, all is free")


def _cut_lanes(actor: _Body) -> int:
    """In an actor: end all its lanes on this machine, whose sockets have abstract names; how many there were."""
    ended = 0
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as one:
            if one.family == socket.AF_UNIX and isinstance(one.getpeername(), bytes) and one.getpeername():
                one.shutdown(socket.SHUT_RDWR)
                ended += 1
    return ended


def _monitor_number(actor: _Body, cluster: str) -> int:
    """In an actor: how often it has asked a member to watch over it."""
    return int(raykeeper.connect(cluster, timeout=PATIENCE)._hub(PATIENCE).monitor_core._number)


def test_a_process_whose_lanes_are_cut_is_not_dead(kv: Client, shared: Any) -> None:
    holder = body(max_restarts=0)
    pid = ask(holder.pid.remote())
    ids = ask(holder.run.remote(_hold, shared.name, "cut off/", "process"))
    wait_until(lambda: ask(holder.run.remote(_monitored, shared.name)), PATIENCE, "a member monitors it")
    for _ in range(3):
        assert ask(holder.run.remote(_cut_lanes)) > 0
        asked = ask(holder.run.remote(_monitor_number, shared.name))
        wait_until(lambda: ask(holder.run.remote(_monitor_number, shared.name)) > asked, PATIENCE)  # noqa: B023
        wait_until(lambda: ask(holder.run.remote(_monitored, shared.name)), PATIENCE, "a member monitors it again")
        assert ask(holder.left.remote(["held"])) == [8]
        assert not any(ask(holder.lost.remote("held")))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not ids & {each.id for each in kv.leases()}, PATIENCE, "all of it is free")


def test_a_stopped_process_keeps_what_it_holds(kv: Client, shared: Any, stopped: list[int]) -> None:
    """Until its TTL, that is. What a member knows of deaths it knows by the time that it knows of another one."""
    holder, other = body(max_restarts=0), body(max_restarts=0)
    pids = [ask(each.pid.remote()) for each in (holder, other)]
    ids = [ask(each.run.remote(_hold, shared.name, f"{n}/", "process")) for n, each in enumerate((holder, other))]
    for each in (holder, other):
        wait_until(lambda: ask(each.run.remote(_monitored, shared.name)), PATIENCE, "a member monitors it")  # noqa: B023
    os.kill(pids[0], signal.SIGSTOP)
    stopped.append(pids[0])
    wait_until(lambda: is_stopped(pids[0]), PATIENCE, "it is stopped")
    os.kill(pids[1], signal.SIGKILL)
    wait_until(lambda: not ids[1] & {each.id for each in kv.leases()}, PATIENCE, "the dead one's are free")
    assert ids[0] <= {each.id for each in kv.leases()}
    os.kill(pids[0], signal.SIGCONT)
    stopped.clear()
    assert not any(ask(holder.lost.remote("held")))


NODE = """
import logging, os, signal, sys
import ray
from ray.cluster_utils import Cluster as RayCluster
import raykeeper
from raykeeper import LeaseNotFound
from lab.ray.tools import is_alive, wait_until

how, data_dir, temporary = sys.argv[1:]
small = {"num_cpus": 1, "object_store_memory": 100 * 1024 * 1024}
nodes = RayCluster(initialize_head=True, connect=False, head_node_args={
    **small, "include_dashboard": False, "temp_dir": temporary, "_system_config": {
        "health_check_initial_delay_ms": 0, "health_check_period_ms": 1000,
        "health_check_timeout_ms": 3000, "health_check_failure_threshold": 4}})
node = nodes.add_node(resources={"there": 1}, **small)
ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
wait_until(lambda: len([n for n in ray.nodes() if n["Alive"]]) == 2, 120)
cluster = raykeeper.launch(name="bound", data_dir=data_dir, members=1, placement=["node:__internal_head__"])
kv = cluster.client(timeout=120)

class Body:
    def pid(self):
        return os.getpid()

actor = ray.remote(num_cpus=0, resources={"there": 0.1})(Body).remote()
pid = ray.get(actor.pid.remote(), timeout=120)
long, short = kv.lease(3600.0, bound_to=actor), kv.lease(2.0, bound_to=actor)
service = kv.registry("topic").register("service", "address", ttl=2.0, bound_to=actor)
raylet = node.all_processes["raylet"][0].process.pid

def there(lease):
    try:
        kv.time_to_live(lease.id)
        return True
    except LeaseNotFound:
        return False

if how == "lost":
    nodes.remove_node(node, allow_graceful=False)
else:  # Ray takes it for dead, which is wrong
    os.kill(raylet, signal.SIGSTOP)
wait_until(lambda: long.lost.is_set() and short.lost.is_set(), 120, "Ray says that it is dead")
wait_until(lambda: not there(short), 120, "what is not kept alive ends by its TTL")
wait_until(lambda: not kv.registry("topic").lookup("service"), 120, "and so does the registration")
assert there(long), "that the process is dead is certain for nobody here"
assert how == "lost" or is_alive(pid)
print("its TTL decides", flush=True)
if how != "lost":
    os.kill(raylet, signal.SIGCONT)
    nodes.remove_node(node, allow_graceful=False)
cluster.destroy()
ray.shutdown()
nodes.shutdown()
"""


@pytest.mark.parametrize("how", ["lost", "taken for lost"])
def test_what_is_bound_to_an_actor_on_a_node_that_is_lost_ends_by_its_ttl(
    how: str, tmp_path: Path, scratch: Path
) -> None:
    folder = str(scratch / f"bound-{how.count(' ')}")
    said = run_program("-c", NODE, how, str(tmp_path / "data"), folder, PYTHONPATH=PATH)
    assert "its TTL decides" in said.splitlines()


# --- a job, a driver -------------------------------------------------------------------------------------------------

DRIVER = """
import sys, threading
import ray, raykeeper
sys.path.insert(0, "tests/cluster")
import test_bound_cluster as tests

cluster, bound_to, how = sys.argv[1:]
ray.init(namespace="bound", log_to_driver=False)
ray.cloudpickle.register_pickle_by_value(tests)
keeper = tests.body(lifetime="detached", name=f"keeper of {cluster} {bound_to} {how}")
mine = tests.ask(keeper.run.remote(tests._hold, cluster, "of the job/", bound_to, "bound"))
tests.ask(keeper.run.remote(tests._hold, cluster, "of the actor/", "process", "own"))
kv = raykeeper.connect(cluster, timeout=60).namespace("of the driver/")
held = tests.Held(kv, bound_to)
tests.wait_until(lambda: kv._hub(60.0).monitor_core.monitored, 60, "a member monitors it")
raykeeper.connect(cluster, timeout=60).put("ready", str(sorted(held.ids)))
if how == "killed":
    threading.Event().wait()
"""


@pytest.mark.parametrize("how", ["ends", "killed"])
@pytest.mark.parametrize("bound_to", ["job", "driver"])
def test_what_is_bound_to_a_job_or_its_driver_ends_with_it_and_nothing_else_does(
    clusters: Made, bound_to: str, how: str
) -> None:
    """An actor that outlives its job keeps what it holds otherwise, and says of the rest that it is lost."""
    cluster = clusters.launch(members=1)
    kv = cluster.client(timeout=PATIENCE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token", "PYTHONPATH": PATH}
    command = [sys.executable, "-c", DRIVER, cluster.name, bound_to, how]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as driver:
        try:
            wait_until(lambda: kv.get("ready") or driver.poll() is not None, 4 * PATIENCE, "the driver is ready")
            ready = kv.get("ready")
            assert ready is not None, driver.poll()
            if how == "ends":
                assert driver.wait(2 * PATIENCE) == 0
        finally:
            driver.kill()
    of_driver = {int(id) for id in ready.text.strip("[]").split(",")}
    keeper = ray.get_actor(f"keeper of {cluster.name} {bound_to} {how}", namespace="bound")
    try:
        wait_until(
            lambda: not of_driver & {each.id for each in kv.leases()}, 2 * PATIENCE, "what the driver held is free"
        )
        wait_until(
            lambda: ask(keeper.left.remote(["bound", "own"])) == [0, 8],
            2 * PATIENCE,
            lambda: f"{ask(keeper.left.remote(['bound', 'own']))}",
        )
        wait_until(lambda: all(ask(keeper.lost.remote("bound"))), PATIENCE, "the keeper knows")
        assert not any(ask(keeper.lost.remote("own")))
    finally:
        ray.kill(keeper)


# --- a holder that lives ---------------------------------------------------------------------------------------------


def gcs() -> int:
    """The process of this Ray's control service."""
    session = ray._private.worker._global_node.get_session_dir_path()  # type: ignore[attr-defined]
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = each.read_bytes().decode(errors="replace")
            if command.partition("\0")[0].endswith("/gcs_server") and session in command:
                return int(each.parent.name)
    raise AssertionError("there is no GCS")


def supervisor_pid(name: str) -> int:
    """0 while Ray starts it again."""
    try:
        actor = ray.get_actor(supervisor_name(name), namespace=NAMESPACE)
        return int(ray.get(actor.pid.remote(), timeout=PATIENCE))
    except (ValueError, ray.exceptions.RayError):
        return 0


def test_a_holder_that_lives_keeps_what_it_has_whatever_else_dies(
    clusters: Made, looks: Looks, stopped: list[int]
) -> None:
    cluster = clusters.launch(supervised=True)
    kv = cluster.client(timeout=PATIENCE)
    actor = body(max_restarts=0)
    pid = ask(actor.pid.remote())
    held = Held(kv, actor)
    own = Held(kv.namespace("own/"), "process")
    looks.answered()

    def all_is_held() -> None:
        looks.answered()
        assert (held.left(kv), own.left(kv)) == (8, 8)
        assert not any(held.lost + own.lost)

    for _ in range(2):
        kill(leader(cluster).pid)
        wait_until(lambda: serving(cluster), 2 * PATIENCE, lambda: str(cluster.status()))
        all_is_held()

    killed = supervisor_pid(cluster.name)
    kill(killed)
    wait_until(lambda: supervisor_pid(cluster.name) not in (0, killed), 2 * PATIENCE, "another supervisor")
    all_is_held()

    service = gcs()
    os.kill(service, signal.SIGSTOP)
    stopped.append(service)
    failed = looks.failed
    wait_until(lambda: looks.failed > failed, PATIENCE, "Ray does not answer")
    assert (held.left(kv), own.left(kv)) == (8, 8)
    assert not any(held.lost + own.lost)
    os.kill(service, signal.SIGCONT)
    stopped.remove(service)
    all_is_held()

    # An actor that dies while Ray does not answer: nobody knows whether it is for good, until Ray says so.
    os.kill(service, signal.SIGSTOP)
    stopped.append(service)
    os.kill(pid, signal.SIGKILL)
    failed = looks.failed
    wait_until(lambda: looks.failed > failed, PATIENCE, "Ray does not answer")
    assert held.left(kv) == 8
    assert not any(held.lost)
    os.kill(service, signal.SIGCONT)
    stopped.remove(service)
    wait_until(lambda: not held.left(kv), 2 * PATIENCE, lambda: f"{held.left(kv)} are held, lost: {held.lost}")
    assert own.left(kv) == 8
    assert not any(own.lost)


# --- an actor that must not go on ------------------------------------------------------------------------------------


def _lock_and_depend(actor: _Body, cluster: str, name: str, ttl: float) -> int:
    """In an actor: hold a lock, and end when it is lost; the lock's lease."""
    kv = raykeeper.connect(cluster, timeout=PATIENCE)
    before = {lease.id for lease in kv.leases()}
    lock = kv.lock(name, ttl)
    assert lock.acquire(timeout=PATIENCE)
    actor.held[name] = lock
    actor.held["watch"] = raykeeper.end_actor_when_lost(lock)
    (id,) = {lease.id for lease in kv.leases()} - before
    return id


def _release(actor: _Body, name: str) -> bool:
    actor.held[name].release()
    wait_until(lambda: not actor.held["watch"].active, PATIENCE, "nothing is waited for any more")
    return True


def test_an_actor_ends_itself_when_what_it_depends_on_is_lost_and_not_when_it_lets_go(kv: Client, shared: Any) -> None:
    actor = body(max_restarts=1, max_task_retries=0)
    pid = ask(actor.pid.remote())
    ask(actor.run.remote(_lock_and_depend, shared.name, "let go", HOUR))
    assert ask(actor.run.remote(_release, "let go"))
    assert ask(actor.pid.remote()) == pid
    id = ask(actor.run.remote(_lock_and_depend, shared.name, "lost", HOUR))
    started = start_of(pid)
    adopted(kv, id, keep_alive=False).revoke()
    wait_until(lambda: not is_alive(pid, started), 2 * PATIENCE, "it has ended itself")

    def again() -> bool:
        with contextlib.suppress(ray.exceptions.RayActorError):
            return bool(ask(actor.pid.remote()) != pid)
        return False

    wait_until(again, 2 * PATIENCE, "Ray has started it again")


def test_an_actor_that_is_cut_off_from_the_cluster_ends_itself(clusters: Made, faults: Faults) -> None:
    cluster = clusters.launch(members=1)
    actor = body(max_restarts=0)
    pid = ask(actor.pid.remote())
    started = start_of(pid)
    ask(actor.run.remote(_lock_and_depend, cluster.name, "lock", 15.0))
    faults.set(cut([CLIENT], [1]))
    wait_until(lambda: not is_alive(pid, started), 2 * PATIENCE, "it has ended itself")


def test_another_actor_is_ended_and_started_again_as_its_restarts_allow(kv: Client) -> None:
    actor = body(max_restarts=1, max_task_retries=-1)
    pids = [ask(actor.pid.remote())]
    for number in range(2):
        before = {lease.id for lease in kv.leases()}
        lock = kv.lock(f"depended on {number}", HOUR)
        assert lock.acquire(timeout=PATIENCE)
        raykeeper.end_actor_when_lost(lock, actor)
        (id,) = {lease.id for lease in kv.leases()} - before
        adopted(kv, id, keep_alive=False).revoke()
        started = start_of(pids[-1])
        wait_until(lambda: not is_alive(pids[-1], started), 2 * PATIENCE, "it is ended")  # noqa: B023
        if len(pids) == 1:
            pids.append(ask(actor.pid.remote()))
    assert pids[0] != pids[1]
    with pytest.raises(ray.exceptions.RayActorError):
        ask(actor.pid.remote())


def test_a_lock_hands_over_with_the_life_of_an_actor_and_its_guard_refuses_the_keeper(
    shared: Any, crowd: Crowd
) -> None:
    """The keeper lives: the next holder has it when the actor is dead, and what the keeper still writes is refused."""
    actor = body(max_restarts=0)
    pid = ask(actor.pid.remote())
    kv = shared.client(timeout=PATIENCE)
    lock = kv.lock("handed over", HOUR, bound_to=actor)
    assert lock.acquire(timeout=PATIENCE)
    guard = lock.guard()
    guard.put("written by", "the first")
    (person,) = crowd.take(1)
    next_one = person.start(_acquire, shared.name)
    wait_until(lambda: len(lock.waiters()) == 1, PATIENCE, "it waits")
    os.kill(pid, signal.SIGKILL)
    assert ask(next_one) > lock.token
    with pytest.raises(raykeeper.LockLost):
        guard.put("written by", "the first, late")


def _acquire(cluster: str) -> int:
    lock = raykeeper.connect(cluster, timeout=PATIENCE).lock("handed over")
    assert lock.acquire(timeout=2 * PATIENCE)
    return int(lock.token)
