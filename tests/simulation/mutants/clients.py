"""Wrong versions of keep-alives, watches, locks and guards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from raykeeper.actors.client import txn_parts
from raykeeper.actors.client.core.lease_core import LeaseCore
from raykeeper.actors.client.core.subscription import Subscription
from raykeeper.actors.client.core.watch_core import WatchCore
from raykeeper.actors.client.guard import GuardedView
from raykeeper.actors.member.events import LeaseRenewal
from raykeeper.actors.member.leader_duties import LeaderDuties
from raykeeper.actors.member.lessor import Lessor
from raykeeper.actors.member.watches import Watches
from raykeeper.actors.recipes import contenders
from raykeeper.actors.recipes.contenders import Contenders
from raykeeper.schema.frames import Kept
from simulation import scripts
from simulation.mutants.registry import mutant, patched


@mutant("a keep-alive answered by a deposed leader", "leases")
def _unconfirmed_keep_alive() -> AbstractContextManager[None]:
    def keep(duties: Any, event: LeaseRenewal) -> None:
        if duties._node.role == "leader":
            duties._lessor.keep_alive(event.leases, event.arrival, event.done)
        else:
            event.done(duties._not_leader())

    return patched(LeaderDuties, "keep_leases", keep)


@mutant("a lease shortened by a leader change", "sleepers")
def _lease_not_reset() -> AbstractContextManager[None]:
    """A lease of which less than the TTL is written down is renewed by the leader alone, and its successor counts on
    from what is written."""

    def keep(lessor: Any, leases: tuple[int, ...], arrival: float, done: Callable[[tuple[Kept, ...]], None]) -> None:
        known = lessor._turn.state.leases

        def renew(lease: int) -> Kept:
            if lease not in known:
                return Kept.GONE
            return Kept.ALIVE if lessor._count_from(lease, known[lease].ttl, arrival) else Kept.ASK_AGAIN

        done(tuple([renew(lease) if lessor._term else Kept.ASK_AGAIN for lease in leases]))

    return patched(Lessor, "keep_alive", keep)


@mutant("a lease counted from the answer", "leases")
def _counted_from_the_answer() -> AbstractContextManager[None]:
    original = LeaseCore._kept

    def kept(core: LeaseCore, call: int, frame: Any, answers: Sequence[Kept], now: float) -> None:
        frame.sent_at = now
        original(core, call, frame, answers, now)

    return patched(LeaseCore, "_kept", kept)


@mutant("a watch that resumes one off", "watches")
def _resumes_one_off() -> AbstractContextManager[None]:
    original = WatchCore._wait_again

    def wait_again(core: WatchCore, watch: Subscription) -> None:
        if watch.fixed:
            watch.position += 1
        original(core, watch)

    return patched(WatchCore, "_wait_again", wait_again)


@mutant("a watch that sees an event again", "watches")
def _resumes_one_back() -> AbstractContextManager[None]:
    original = WatchCore._wait_again

    def wait_again(core: WatchCore, watch: Subscription) -> None:
        if watch.fixed and watch.position > 1:
            watch.position -= 1
        original(core, watch)

    return patched(WatchCore, "_wait_again", wait_again)


@mutant("a watch that restarts at now", "watches")
def _restarts_at_now() -> AbstractContextManager[None]:
    original = WatchCore._drop_stream

    def drop_stream(core: WatchCore, stream: Any) -> None:
        for watch in stream.watches.values():
            watch.fixed = False
        original(core, stream)

    return patched(WatchCore, "_drop_stream", drop_stream)


@mutant("progress ahead of events", "watches")
def _progress_ahead() -> AbstractContextManager[None]:
    """A watch that has more to read is not named as one that lags."""
    original = Watches._put_back

    def put_back(watches: Any, due: Any, seen: int) -> tuple[int, ...] | None:
        behind = original(watches, due, seen)
        return None if behind is None else ()

    return patched(Watches, "_put_back", put_back)


@mutant("a lock for a waiter whose predecessor is gone", "locks")
def _whoever_is_next() -> AbstractContextManager[None]:
    """It may have left the line without having had its turn."""

    async def following(line: Contenders, place: Any) -> None:
        return None

    return patched(Contenders, "_next", following)


@mutant("a lock for a waiter that saw one of several", "locks")
def _one_of_several() -> AbstractContextManager[None]:
    """The one that it waits for was not the only one before it."""
    return patched(contenders, "first_keys", lambda prefix, limit: txn_parts.first_keys(prefix, 1))


@mutant("a guard that guards nothing", "locks")
def _no_guard() -> AbstractContextManager[None]:
    original = GuardedView._guarded

    def guarded(view: Any, command: Any, request_id: object) -> Any:
        return (yield from original(GuardedView(view.space, view.codec, ()), command, request_id))

    return patched(GuardedView, "_guarded", guarded)


@mutant("a leased transaction that begins again", "leases")
def _leased_again() -> AbstractContextManager[None]:
    """When it took so long that little of the lease is left: as a grant does, to which nothing is attached yet."""
    original = scripts.leased_txn_steps

    def steps(view: Any, ttl: float, make: Callable[[int], Any]) -> Any:
        while True:
            asked_at = scripts.now()
            granted, result = yield from original(view, ttl, make)
            if granted is None or scripts.now() - asked_at < granted[1] / 2:
                return granted, result

    return patched(scripts, "leased_txn_steps", steps)
