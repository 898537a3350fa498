"""Leases that are bound to an actor, a job or a driver. Ray is played; the processes and their kernel are real."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray as real_ray

from lab.onemember import in_thread, one_member
from lab.patience import PATIENCE, until
from raykeeper import Client, InvalidArgument, LeaseLost, LeaseNotFound, Unavailable
from raykeeper.actors import discovery, ray_lives
from raykeeper.actors.client import bindings, life_monitor
from raykeeper.actors.client.bindings import Binding, binding_of
from raykeeper.actors.client.life_monitor import LifeMonitor, _Watched
from raykeeper.actors.ray_lives import Life, LifeStatus, RayProcess
from raykeeper.errors import ClusterNotFound

HOUR = 3600.0
HERE = "this node"


class PlayedRay:
    """Lives, and what Ray says of them."""

    def __init__(self) -> None:
        self.statuses: dict[Life, LifeStatus | None] = {}
        self.asked: dict[Life, int] = {}
        self.error: Exception | None = None
        self.processes: list[subprocess.Popen[bytes]] = []
        self.here: set[Life] = set()
        self.answers = threading.Event()
        self.answers.set()
        self.frozen_calls = 0
        self.rounds = 0
        """How often the processes of lives were looked at."""

    def freeze(self) -> None:
        """From now on it does not answer."""
        self.answers.clear()

    def melt(self) -> None:
        self.answers.set()

    def look_at(self, life: Life) -> LifeStatus | None:
        if not self.answers.is_set():
            self.frozen_calls += 1
            self.answers.wait()
        self.asked[life] = self.asked.get(life, 0) + 1
        if self.error is not None:
            raise self.error
        return self.statuses.get(life)

    def process(self, name: str = "ray::Actor") -> subprocess.Popen[bytes]:
        """A process that names itself as workers of Ray do."""
        process = subprocess.Popen([name, str(int(HOUR))], executable="/bin/sleep")
        self.processes.append(process)
        return process

    def runs(
        self, life: Life, process: subprocess.Popen[bytes], *, node: str = HERE, restarts: int = 0, over: bool = False
    ) -> None:
        self.statuses[life] = LifeStatus(over, not over, RayProcess(node, process.pid, restarts), True)

    def looked(self, life: Life) -> None:
        """Wait until Ray has been asked about it twice from now on: what it said before has been dealt with."""
        asked = self.asked.get(life, 0)
        until(lambda: self.asked.get(life, 0) >= asked + 2, what=f"Ray is asked about {life}")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedRay]:
    played = PlayedRay()
    monitor = LifeMonitor()
    monkeypatch.setattr(ray_lives, "look_at", played.look_at)
    monkeypatch.setattr(ray_lives, "this_node", lambda: HERE)
    monkeypatch.setattr(ray_lives, "this_actor", lambda: "")
    monkeypatch.setattr(ray_lives, "is_this_process", lambda life: life in played.here)
    monkeypatch.setattr(
        ray_lives, "life_of", lambda bound: bound if isinstance(bound, Life) else Life(bound, "01000000")
    )
    monkeypatch.setattr(bindings, "life_monitor", monitor)
    monkeypatch.setattr("raykeeper.actors.client.leases.life_monitor", monitor)
    monkeypatch.setattr(bindings, "_restartable", {})
    monkeypatch.setattr(life_monitor, "LIFE_CHECK_S", 0.01)
    monkeypatch.setattr(life_monitor, "LIFE_LOOK_S", 0.01)
    look = monitor._look

    def counted(now: float) -> None:
        look(now)
        played.rounds += 1

    monkeypatch.setattr(monitor, "_look", counted)
    yield played
    played.melt()
    for process in played.processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def kv() -> Iterator[Client]:
    with one_member() as member, member.client() as client:
        yield client


def exists(kv: Client, lease: Any) -> bool:
    try:
        kv.time_to_live(lease.id, timeout=PATIENCE)
    except LeaseNotFound:
        return False
    return True


A = Life("actor", "aa")


def test_a_lease_ends_at_once_with_an_actor_that_is_dead_for_certain(kv: Client, ray: PlayedRay) -> None:
    process = ray.process()
    ray.runs(A, process)
    lease = kv.lease(HOUR, bound_to=A)
    kv.put("a", "held", lease=lease)
    ray.looked(A)
    assert not lease.lost.is_set()
    process.kill()
    process.wait()
    ray.runs(A, process, over=True)
    until(lambda: not exists(kv, lease), what="the lease ends, long before its TTL")
    assert lease.lost.is_set()
    assert kv.get("a") is None
    assert "dead" in lease.why_lost()
    with pytest.raises(LeaseLost):
        kv.put("a", "again", lease=lease)


def test_what_ray_says_is_a_hint_and_ends_only_what_this_process_does(kv: Client, ray: PlayedRay) -> None:
    """As after ``ray.kill`` of a process that does not end: the lease is lost here, and goes with its TTL."""
    process = ray.process()
    ray.runs(A, process)
    lease = kv.lease(HOUR, bound_to=A)
    ray.looked(A)
    ray.runs(A, process, over=True)
    assert lease.lost.wait(PATIENCE)
    assert exists(kv, lease)
    process.kill()
    until(lambda: not exists(kv, lease), what="the kernel's word comes, too")


def test_an_actor_that_is_restarted_is_not_dead(kv: Client, ray: PlayedRay) -> None:
    first, second = ray.process(), ray.process()
    ray.runs(A, first)
    lease = kv.lease(HOUR, bound_to=A)
    ray.looked(A)
    first.kill()
    first.wait()
    ray.looked(A)
    ray.statuses[A] = LifeStatus(False, False, RayProcess("", 0, 1), True)  # restarting
    ray.looked(A)
    ray.runs(A, second, restarts=1)
    ray.looked(A)
    assert not lease.lost.is_set()
    assert exists(kv, lease)
    ray.runs(A, second, restarts=1, over=True)
    assert lease.lost.wait(PATIENCE)
    assert exists(kv, lease), "its present process lives"
    second.kill()
    until(lambda: not exists(kv, lease), what="it ends with the second process")


def test_an_actor_whose_latest_process_was_never_seen_is_not_dead_for_certain(kv: Client, ray: PlayedRay) -> None:
    first = ray.process()
    ray.runs(A, first)
    lease = kv.lease(HOUR, bound_to=A)
    ray.looked(A)
    first.kill()
    first.wait()
    ray.statuses[A] = LifeStatus(True, False, RayProcess(HERE, first.pid, 1), True)  # it died while it was restarted
    assert lease.lost.wait(PATIENCE)
    assert exists(kv, lease)
    lease.revoke()


@pytest.mark.parametrize("where", ["on another node", "not a worker"])
def test_the_kernel_of_this_node_speaks_for_its_own_workers_only(kv: Client, ray: PlayedRay, where: str) -> None:
    """... or an actor in a container would be taken for whatever process has its number here."""
    process = ray.process("sleep" if where == "not a worker" else "ray::Actor")
    ray.runs(A, process, node="elsewhere" if where == "on another node" else HERE)
    lease = kv.lease(HOUR, bound_to=A)
    ray.looked(A)
    process.kill()
    process.wait()
    ray.runs(A, process, node=ray.statuses[A].process.node, over=True)  # type: ignore[union-attr]
    assert lease.lost.wait(PATIENCE)
    assert exists(kv, lease)
    lease.revoke()


@pytest.mark.parametrize("error", [Unavailable("Ray does not answer"), RuntimeError("something of Ray's")])
def test_what_is_not_known_ends_nothing(kv: Client, ray: PlayedRay, error: Exception) -> None:
    process = ray.process()
    ray.runs(A, process)
    lease = kv.lease(HOUR, bound_to=A)
    ray.looked(A)
    ray.error = error
    process.kill()
    process.wait()
    ray.looked(A)
    ray.error = None
    ray.statuses[A] = None  # Ray does not know of it
    ray.looked(A)
    assert not lease.lost.is_set()
    lease.revoke()


@pytest.mark.parametrize("what", ["driver", "job"])
def test_the_kernel_alone_ends_nothing_for_a_driver_either(kv: Client, ray: PlayedRay, what: Any) -> None:
    """Its number may be that of another process here, if it runs in a container."""
    life = Life(what, "01000000")
    process = ray.process("python")
    ray.runs(life, process)
    lease = kv.lease(HOUR, bound_to=what)
    ray.looked(life)
    process.kill()
    process.wait()
    ray.looked(life)
    ray.looked(life)
    assert not lease.lost.is_set()
    assert exists(kv, lease)
    ray.runs(life, process, over=True)
    until(lambda: not exists(kv, lease), what="Ray says so, too")


def test_ray_is_asked_one_look_at_a_time(kv: Client, ray: PlayedRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its control service is frozen, looks that were abandoned must not take the threads of all others."""
    monkeypatch.setattr(life_monitor, "LIFE_ANSWER_S", 0.01)
    ray.runs(A, ray.process())
    lease = kv.lease(HOUR, bound_to=A)
    ray.looked(A)
    ray.freeze()
    until(lambda: ray.frozen_calls > 0, what="a look waits for Ray")
    rounds = ray.rounds
    until(lambda: ray.rounds >= rounds + 20, what="many looks could have been made")
    assert ray.frozen_calls == 1
    ray.melt()
    ray.looked(A)
    lease.revoke()


def test_who_has_left_ray_starts_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of ours ask these, and the user may call ``ray.shutdown()`` at any time."""
    asked: list[str] = []
    proxy = SimpleNamespace(watch_offer=SimpleNamespace(remote=lambda: asked.append("the proxy")))
    monkeypatch.setattr(real_ray, "is_initialized", lambda: False)
    monkeypatch.setattr(real_ray, "get_runtime_context", lambda: asked.append("the node"))
    monkeypatch.setattr(discovery, "in_time", lambda *arguments, **named: proxy)
    with pytest.raises(ClusterNotFound):
        ray_lives.this_node()
    with pytest.raises(ClusterNotFound):
        discovery.ask_watch_offer("c", "a node")
    assert asked == []


# --- the thread ------------------------------------------------------------------------------------------------------


def test_a_descriptor_that_was_closed_is_no_death() -> None:
    watched = _Watched(A)
    watched.fd = 1 << 24  # more than a process may have
    watched.check(1.0)
    assert not watched.dead
    watched.close()
    assert watched.fd == -1


def test_what_fails_for_one_life_is_not_the_end_of_the_thread(
    kv: Client, ray: PlayedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = Life("actor", "bb")
    ray.runs(A, ray.process())
    ray.runs(b, ray.process())
    first = kv.lease(HOUR, bound_to=A)
    ray.looked(A)
    with monkeypatch.context() as patched:
        patched.setattr(bindings.life_monitor._watched[A], "idle", lambda now: 1 / 0)
        second = kv.lease(HOUR, bound_to=b)
        ray.looked(b)
    first.revoke()
    second.revoke()


def test_a_forked_child_closes_what_it_has_inherited() -> None:
    reading, writing = os.pipe()
    monitor = LifeMonitor()
    monitor._watched[A] = watched = _Watched(A)
    watched.fd = reading
    monitor.forget_in_child()
    assert not monitor._watched
    assert watched.fd == -1
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"nobody reads")
    os.close(writing)


def dies(ray: PlayedRay, life: Life) -> None:
    """An actor is dead for certain."""
    process = next(each for each in ray.processes if each.pid == ray.statuses[life].process.pid)  # type: ignore[union-attr]
    ray.looked(life)
    process.kill()
    process.wait()
    ray.runs(life, process, over=True)


def lock(kv: Client) -> Any:
    held = kv.lock("l", ttl=HOUR, bound_to=A)
    assert held.acquire(timeout=PATIENCE)
    return held


def election(kv: Client) -> Any:
    held = kv.election("e", ttl=HOUR, bound_to=A)
    assert held.campaign("me", timeout=PATIENCE)
    return held


def semaphore(kv: Client) -> Any:
    held = kv.semaphore("s", 1, ttl=HOUR, bound_to=A)
    assert held.acquire(timeout=PATIENCE)
    return held


def rwlock(kv: Client) -> Any:
    held = kv.rwlock("rw", ttl=HOUR, bound_to=A).write()
    assert held.acquire(timeout=PATIENCE)
    return held


NEXT: dict[str, tuple[Callable[[Client], Any], Callable[[Client], bool]]] = {
    "lock": (lock, lambda kv: kv.lock("l").acquire(timeout=PATIENCE)),
    "election": (election, lambda kv: kv.election("e").campaign("you", timeout=PATIENCE)),
    "semaphore": (semaphore, lambda kv: kv.semaphore("s", 1).acquire(timeout=PATIENCE)),
    "rwlock": (rwlock, lambda kv: kv.rwlock("rw").read().acquire(timeout=PATIENCE)),
}


@pytest.mark.parametrize("what", NEXT)
def test_the_next_one_holds_what_a_dead_actor_was_bound_to(kv: Client, ray: PlayedRay, what: str) -> None:
    ray.runs(A, ray.process())
    mine = kv.namespace(f"{what}/")
    hold, waits = NEXT[what]
    held = hold(mine)
    waiting = in_thread(lambda: waits(mine))
    dies(ray, A)
    assert waiting.result()
    assert held.lost.is_set()


def test_an_item_comes_back_when_the_actor_is_dead_that_its_claim_is_bound_to(kv: Client, ray: PlayedRay) -> None:
    ray.runs(A, ray.process())
    queue = kv.queue("q", ttl=HOUR)
    queue.put("item")
    claim = queue.claim(timeout=PATIENCE, bound_to=A)
    assert claim is not None
    dies(ray, A)
    again = queue.claim(timeout=PATIENCE)
    assert again is not None
    assert again.item == b"item"
    assert again.token > claim.token
    again.ack()


def test_a_claim_leaves_no_bound_lease_to_the_next(kv: Client, ray: PlayedRay) -> None:
    ray.runs(A, ray.process())
    queue = kv.queue("q2", ttl=HOUR)
    for item in ("a", "b"):
        queue.put(item)
    with queue.claiming(timeout=PATIENCE, bound_to=A) as first:
        assert first is not None
        bound = first._claimed.lease
    second = queue.claim(timeout=PATIENCE)
    assert second is not None
    assert second._claimed.lease is not bound
    assert not exists(kv, bound)
    second.ack()


def test_a_registration_goes_for_good_with_its_actor(kv: Client, ray: PlayedRay) -> None:
    ray.runs(A, ray.process())
    registry = kv.registry("r")
    registration = registry.register("n", "here", ttl=HOUR, bound_to=A)
    assert len(registry.lookup("n")) == 1
    dies(ray, A)
    until(lambda: not registry.lookup("n"), what="it goes")
    until(lambda: registration._record.over, what="and is not renewed")
    assert not registry.lookup("n")


def test_the_same_in_a_coroutine(kv: Client, ray: PlayedRay) -> None:
    ray.runs(A, ray.process())

    async def lose() -> None:
        lease = await kv.aio.lease(HOUR, bound_to=A, timeout=PATIENCE)
        async with kv.aio.lock("al", ttl=HOUR, bound_to=A) as held:
            await asyncio.to_thread(dies, ray, A)
            await lease.lost
            assert held.lost.wait(PATIENCE)

    asyncio.run(lose())


# --- what a lease can be bound to ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["", "actor", "Job", b"job", 7, 1.5, True])
def test_it_is_said_at_once_what_a_lease_cannot_be_bound_to(kv: Client, wrong: Any) -> None:
    for call in (
        lambda: kv.lease(10, bound_to=wrong),
        lambda: kv.leased_txn(10, lambda id: None, bound_to=wrong),  # type: ignore[arg-type, return-value]
        lambda: kv.lock("l", bound_to=wrong),
        lambda: kv.rwlock("l", bound_to=wrong),
        lambda: kv.semaphore("s", 1, bound_to=wrong),
        lambda: kv.election("e", bound_to=wrong),
        lambda: kv.queue("q").claim(timeout=0, bound_to=wrong),
        lambda: kv.registry("r").register("n", "a", bound_to=wrong),
    ):
        with pytest.raises(InvalidArgument):
            call()


def test_outside_ray_there_is_nothing_to_be_bound_to(kv: Client) -> None:
    for bound_to in ("job", "driver", object()):
        with pytest.raises(InvalidArgument, match="only in a process of Ray"):
            kv.lease(10, bound_to=bound_to)


def test_who_ends_with_this_process_is_owned_by_it(ray: PlayedRay) -> None:
    assert binding_of(None) == Binding(True)
    assert binding_of(None, keep_alive=False) == Binding(False)
    assert binding_of("process", keep_alive=False) == Binding(True)
    assert binding_of("ttl") == Binding(False)
    job, driver = Life("job", "01000000"), Life("driver", "01000000")
    assert binding_of("job") == Binding(False, job)
    ray.here = {job, driver, A}
    assert binding_of("job") == Binding(True, job)
    assert binding_of("driver") == Binding(True)


@pytest.mark.parametrize("restartable", [False, True])
def test_this_actor_is_its_process_if_it_cannot_be_restarted(ray: PlayedRay, restartable: bool) -> None:
    ray.here = {A}
    ray.statuses[A] = LifeStatus(False, True, RayProcess("elsewhere", 1, 0), restartable)
    asked = binding_of(A)
    assert asked == Binding(None, A)
    assert bindings.settled(asked, PATIENCE) == Binding(not restartable, A)
    assert binding_of(A) == Binding(not restartable, A)
    assert ray.asked[A] == 1


def test_whether_it_can_be_restarted_is_asked_off_the_loop(kv: Client, ray: PlayedRay) -> None:
    ray.here = {A}
    ray.statuses[A] = LifeStatus(False, True, RayProcess("elsewhere", 1, 0), False)

    async def owned() -> bool:
        async with await kv.aio.lease(HOUR, bound_to=A, timeout=PATIENCE) as lease:
            return lease._held.owned

    assert asyncio.run(owned())


def test_only_so_many_lives_are_looked_at(kv: Client, ray: PlayedRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life_monitor, "MAX_LIVES", 1)
    lease = kv.lease(HOUR, bound_to=A)
    ray.looked(A)
    with pytest.raises(Unavailable) as raised:
        kv.lease(HOUR, bound_to=Life("actor", "bb"))
    assert raised.value.applied is False
    kv.lease(HOUR, bound_to=A).revoke()
    lease.revoke()


def test_no_lease_is_made_that_no_thread_could_look_after(
    kv: Client, ray: PlayedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = len(kv.leases())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(Unavailable, match="look after") as raised:
            kv.lease(HOUR, bound_to=A)
    assert raised.value.applied is False
    assert len(kv.leases()) == before
    kv.lease(HOUR, bound_to=A).revoke()  # there is one again


def test_a_lease_that_no_thread_looks_after_any_more_is_lost(
    kv: Client, ray: PlayedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for a thread and the lease it may end, or another's start of it may fail."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(life_monitor.LifeMonitor, "start", lambda monitor: None)
        patched.setattr(threading.Thread, "start", start)
        lease = kv.lease(HOUR, bound_to=A)
        assert lease.lost.is_set()
        assert "looks after" in lease.why_lost()
        assert not lease.life_over
    lease.revoke()


def test_who_ends_with_this_very_process_needs_no_thread(
    kv: Client, ray: PlayedRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.here.add(Life("driver", "01"))
    monkeypatch.setattr(ray_lives, "life_of", lambda bound_to: Life("driver", "01"))
    kv.lease(HOUR, bound_to="driver").revoke()
    assert not life_monitor.life_monitor._thread._thread.runs


def test_nobody_looks_when_all_leases_are_gone(kv: Client, ray: PlayedRay) -> None:
    lease = kv.lease(HOUR, bound_to=A)
    ray.looked(A)
    lease.revoke()
    del lease
    until(lambda: not bindings.life_monitor._watched, what="nothing is looked at")
