"""Ending an actor when what it depends on is lost, and only then. Ray is played."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.onemember import in_thread, one_member
from lab.patience import PATIENCE, until
from raykeeper import Client, InvalidArgument, KeeperError, LeaseLost, Unavailable
from raykeeper.actors import ray_lives
from raykeeper.actors.client import loss_watch
from raykeeper.actors.client.leases import LossEvent
from raykeeper.actors.finalizer_guard import LockFreeEvent, wait_for_any
from raykeeper.actors.ray_lives import Life, LifeStatus, RayProcess
from raykeeper.errors import ClusterNotFound

HOUR = 3600.0


@pytest.fixture(scope="module")
def kv() -> Iterator[Client]:
    with one_member() as member, member.client() as client:
        yield client


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
    leases = [kv.lease(HOUR)]
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


# --- who lets go, and in which order ---------------------------------------------------------------------------------


def test_a_claim_that_was_acknowledged_is_watched_no_longer(
    kv: Client, ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease goes on to the next claim, whose watch is its own."""
    monkeypatch.setattr(loss_watch, "RECIPE_CHECK_S", HOUR)
    queue = kv.queue("many", ttl=HOUR)
    leases = set()
    for number in range(3):
        queue.put(str(number))
        claim = queue.claim(timeout=PATIENCE)
        assert claim is not None
        leases.add(claim._claimed.lease.id)
        spare = claim._claimed.lease
        watch = loss_watch.end_actor_when_lost(claim)
        claim.ack()
        del claim
        until(lambda watch=watch: not watch.active, what="it is over")  # type: ignore[misc]
    assert len(leases) == 1
    spare._end(LeaseLost("an idle lease"))
    assert ended == []


def test_an_actor_ends_when_its_claim_is_lost_even_if_it_is_dropped_just_then(kv: Client, ended: list[str]) -> None:
    queue = kv.queue("lost claim", ttl=HOUR)
    queue.put("item")
    claims = [queue.claim(timeout=PATIENCE)]
    watch = loss_watch.end_actor_when_lost(claims[0])
    claims[0]._claimed.lease._end(LeaseLost("gone"))  # type: ignore[union-attr]
    claims.clear()
    until(lambda: not watch.active, what="it has seen the loss")
    assert ended == ["ended"]


def test_a_keep_alive_that_crosses_the_revocation_finds_nothing_lost(
    kv: Client, ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = kv.lease(HOUR)
    watch = loss_watch.end_actor_when_lost(lease)
    run = lease._client._run

    def crossed(*arguments: Any) -> Any:
        result = run(*arguments)
        lease._end(LeaseLost("it is gone, says a keep-alive"))
        until(lambda: not watch.active, what="it has seen the end")
        return result

    monkeypatch.setattr(lease._client, "_run", crossed)
    lease.revoke()
    assert ended == []


@pytest.mark.parametrize("applied", [False, None])
def test_a_revocation_that_was_not_applied_lets_nothing_go(
    kv: Client, monkeypatch: pytest.MonkeyPatch, applied: bool | None
) -> None:
    lease = kv.lease(HOUR)

    def fails(*arguments: Any) -> Any:
        raise Unavailable("nobody answers", applied=applied)

    with monkeypatch.context() as patched:
        patched.setattr(lease._client, "_run", fails)
        with pytest.raises(Unavailable):
            lease.revoke()
    assert not lease.lost.is_set()
    assert lease.lost.released is (applied is None)
    lease.revoke()
    assert lease.lost.released


def test_to_set_lost_is_to_let_go_and_a_loss_is_not(kv: Client) -> None:
    given_up, gone = kv.lease(HOUR), kv.lease(HOUR)
    given_up.lost.set()
    gone.lost.lose()
    gone.lost.set()  # too late
    assert given_up.lost.is_set()
    assert gone.lost.is_set()
    assert given_up.lost.released
    assert not gone.lost.released


def test_a_lease_that_is_lost_by_the_clock_is_not_let_go_by_what_comes_later(kv: Client) -> None:
    lease = kv.lease(HOUR)
    lease._held.good_until = 0.0
    assert lease.lost.is_set()
    lease._hub.lease_core.drop_lease(lease._held, 1.0)
    lease.lost.set()
    lease.revoked()
    assert not lease.lost.released


def test_any_of_several_events_ends_the_wait() -> None:
    for last in range(3):
        events = [LockFreeEvent() for _ in range(3)]
        waiting = in_thread(lambda events=events: wait_for_any(events, HOUR))
        until(lambda events=events: all(event._waiting for event in events), what="it waits")  # type: ignore[misc]
        events[last].set()
        waiting.result()
        events[last - 1].set()
        assert not any(event._waiting for event in events)
        wait_for_any(events, HOUR)
    wait_for_any([LockFreeEvent()], 0.001)


# --- another actor ---------------------------------------------------------------------------------------------------


class PlayedActor:
    """An actor that Ray restarts, and what befalls those who ask Ray to kill it."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.restarts = 0
        self.known = True
        self.kills: list[int] = []
        self.restarts_before_failing = False

    def look_at(self, life: Life) -> LifeStatus | None:
        return LifeStatus(False, True, RayProcess("a node", 1, self.restarts), True) if self.known else None

    def kill(self, actor: object) -> None:
        self.kills.append(self.restarts)
        failure = self.failures.pop(0) if self.failures else None
        if failure is None or self.restarts_before_failing:
            self.restarts += 1
        if failure is not None:
            raise failure


def kill_when_lost(actor: PlayedActor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_lives, "look_at", actor.look_at)
    monkeypatch.setattr(ray_lives, "kill_actor", actor.kill)
    monkeypatch.setattr(loss_watch, "LIFE_LOOK_S", 0.001)
    loss = LossEvent()
    watch = loss_watch.LossWatch(object(), loss, actor, Life("actor", "aa"))
    loss.lose()
    watch._run()
    assert not watch.active


def test_an_actor_is_killed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = PlayedActor()
    kill_when_lost(actor, monkeypatch)
    assert actor.kills == [0]


def test_ray_is_asked_again_while_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = PlayedActor(Unavailable("Ray does not answer"), RuntimeError("something of Ray's"))
    kill_when_lost(actor, monkeypatch)
    assert actor.kills == [0, 0, 0]


def test_an_actor_that_was_started_again_is_not_killed_for_the_loss_of_the_former(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = PlayedActor(RuntimeError("the answer was lost"))
    actor.restarts_before_failing = True
    kill_when_lost(actor, monkeypatch)
    assert actor.kills == [0]


def test_who_has_left_ray_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = PlayedActor(ClusterNotFound("left"))
    actor.known = False
    kill_when_lost(actor, monkeypatch)
    assert actor.kills == [0]
