"""Leases that are bound to an actor, a job or a driver. Ray is played; the processes and their kernel are real."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.onemember import in_thread, one_member
from lab.patience import PATIENCE, until
from raykeeper import Client, InvalidArgument, KeeperError, LeaseLost, LeaseNotFound, Unavailable
from raykeeper.actors import ray_lives
from raykeeper.actors.client import bindings, life_monitor, loss_watch
from raykeeper.actors.client.bindings import Binding, binding_of
from raykeeper.actors.client.life_monitor import LifeMonitor
from raykeeper.actors.ray_lives import Life, LifeStatus, RayProcess

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

    def look_at(self, life: Life) -> LifeStatus | None:
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
    yield played
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


def test_the_kernel_is_enough_for_a_driver(kv: Client, ray: PlayedRay) -> None:
    driver, job = Life("driver", "01000000"), Life("job", "01000000")
    process = ray.process("python")
    ray.runs(driver, process)
    ray.runs(job, process)
    by_driver, by_job = kv.lease(HOUR, bound_to="driver"), kv.lease(HOUR, bound_to="job")
    ray.looked(driver)
    ray.looked(job)
    process.kill()
    process.wait()
    until(lambda: not exists(kv, by_driver), what="the driver's lease ends, though Ray knows nothing")
    ray.looked(job)
    assert not by_job.lost.is_set(), "the job is Ray's"
    ray.runs(job, process, over=True)
    until(lambda: not exists(kv, by_job), what="the job's lease ends")


def test_ray_does_not_answer_and_a_driver_dies(kv: Client, ray: PlayedRay) -> None:
    driver = Life("driver", "01000000")
    process = ray.process("python")
    ray.runs(driver, process)
    lease = kv.lease(HOUR, bound_to="driver")
    ray.looked(driver)
    ray.error = Unavailable("Ray does not answer")
    ray.looked(driver)
    process.kill()
    until(lambda: not exists(kv, lease), what="the driver's lease ends")


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


def test_nobody_looks_when_all_leases_are_gone(kv: Client, ray: PlayedRay) -> None:
    lease = kv.lease(HOUR, bound_to=A)
    ray.looked(A)
    lease.revoke()
    del lease
    until(lambda: not bindings.life_monitor._watched, what="nothing is looked at")


# --- an actor that must not go on without a lease --------------------------------------------------------------------


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Times at which this process was ended."""
    monkeypatch.setattr(ray_lives, "this_actor", lambda: "aa")
    calls: list[str] = []
    monkeypatch.setattr(loss_watch, "end_this_process", lambda: calls.append("ended"))
    return calls


def test_an_actor_ends_when_its_lease_is_lost(kv: Client, ended: list[str]) -> None:
    lease = kv.lease(HOUR)
    watch = loss_watch.end_actor_when_lost(lease)
    assert watch.active
    lease._end(LeaseLost("gone"))
    until(lambda: not watch.active, what="it has seen the loss")
    assert ended == ["ended"]


def test_it_ends_with_a_lock_whose_key_was_deleted(kv: Client, ended: list[str]) -> None:
    lock = kv.lock("deleted")
    assert lock.acquire(timeout=PATIENCE)
    watch = loss_watch.end_actor_when_lost(lock)
    ticket = lock._holder.current_ticket()
    kv.reserved("lock").delete(ticket.key)
    until(lambda: not watch.active, what="it has seen the loss")
    assert ended == ["ended"]


LET_GO: dict[str, Callable[[Client], tuple[loss_watch.LossWatch, Callable[[], object]]]] = {}


def let_go(make: Callable[[Client], tuple[loss_watch.LossWatch, Callable[[], object]]]) -> None:
    LET_GO[make.__name__] = make


@let_go
def revoked(kv: Client) -> Any:
    lease = kv.lease(HOUR)
    return loss_watch.end_actor_when_lost(lease), lease.revoke


@let_go
def released(kv: Client) -> Any:
    lock = kv.lock("released")
    lock.acquire(timeout=PATIENCE)
    return loss_watch.end_actor_when_lost(lock), lock.release


@let_go
def acknowledged(kv: Client) -> Any:
    queue = kv.queue("acknowledged", ttl=HOUR)
    queue.put("item")
    claim = queue.claim(timeout=PATIENCE)
    assert claim is not None
    lease = claim._claimed.lease

    def end() -> None:
        claim.ack()
        lease._end(LeaseLost("the next claim's"))

    return loss_watch.end_actor_when_lost(claim), end


@let_go
def dropped(kv: Client) -> Any:
    leases = [kv.lease(3)]
    return loss_watch.end_actor_when_lost(leases[0]), leases.clear


@let_go
def closed(kv: Client) -> Any:
    lease = kv.lease(HOUR)

    def close() -> None:
        lease._hub.lease_core.close(0.0)

    return loss_watch.end_actor_when_lost(lease), close


@pytest.mark.parametrize("what", LET_GO)
def test_who_lets_go_does_not_end(what: str, ended: list[str]) -> None:
    with one_member() as member, member.client() as kv:
        watch, end = LET_GO[what](kv)
        end()
        until(lambda: not watch.active, what="it has seen the end")
        assert ended == []


def test_a_watch_that_was_cancelled_ends_nothing(kv: Client, ended: list[str]) -> None:
    lease = kv.lease(HOUR)
    watch = loss_watch.end_actor_when_lost(lease)
    watch.cancel()
    watch.cancel()
    lease._end(LeaseLost("gone"))
    until(lambda: not len(loss_watch._places), what="its thread has ended")
    assert ended == []


def test_what_is_not_held_or_no_actor_is_said(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_lives, "this_actor", lambda: "")
    lease = kv.lease(HOUR)
    for held in (None, "lease", kv.lock("never acquired"), object()):
        with pytest.raises(InvalidArgument, match="holds"):
            loss_watch.end_actor_when_lost(held)
    with pytest.raises(InvalidArgument, match="not an actor"):
        loss_watch.end_actor_when_lost(lease)
    with pytest.raises(KeeperError):
        loss_watch.end_actor_when_lost(lease, "an actor")
    monkeypatch.setattr(ray_lives, "this_actor", lambda: "aa")
    monkeypatch.setattr(loss_watch, "_places", loss_watch.Places(0))
    with pytest.raises(Unavailable):
        loss_watch.end_actor_when_lost(lease)
    lease.revoke()
