"""Wrong versions of transactions as functions, of rates, and of semaphores with weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from raykeeper.actors.client.txn_parts import Op
from raykeeper.actors.recipes import rate_holder, semaphore
from raykeeper.actors.recipes.atomically import _Atomically, _Run
from raykeeper.actors.recipes.rate_holder import RateHolder
from raykeeper.actors.recipes.rate_shares import RateShare
from raykeeper.actors.recipes.token_bucket import TokenBucket
from simulation.mutants.registry import mutant, patched, together


def _comparing(keep: Any) -> AbstractContextManager[None]:
    """Runs that compare only some of what they should."""
    original = _Run.transaction

    def transaction(run: Any, prefetch: bool) -> Any:
        op, again = original(run, prefetch)
        parts = dict(op.arguments)
        return Op.txn([each for each in parts["compare"] if keep(run, each)], parts["success"], parts["failure"]), again

    return patched(_Run, "transaction", transaction)


@mutant("a function that compares nothing", "functions")
def _lost_update() -> AbstractContextManager[None]:
    return _comparing(lambda run, condition: False)


@mutant("a function that compares only what it writes", "functions")
def _write_skew() -> AbstractContextManager[None]:
    return _comparing(lambda run, condition: condition.prefix is not None or condition.key in run._writes)


@mutant("a function that does not compare its ranges", "functions")
def _phantoms() -> AbstractContextManager[None]:
    return _comparing(lambda run, condition: condition.prefix is None)


@mutant("a function that reads each key as it is by then", "functions")
def _many_revisions() -> AbstractContextManager[None]:
    original = _Run._fetch

    async def fetch(run: Any, asked: Any, revision: int | None) -> Any:
        return await original(run, asked, None)

    return patched(_Run, "_fetch", fetch)


@mutant("a function with a name that asks nobody whether it was done", "functions", first_seed=8)
def _done_again() -> AbstractContextManager[None]:
    original = _Atomically.__init__

    def init(call: Any, handle: Any, retries: object, request_id: object, timeout: float | None) -> None:
        original(call, handle, retries, None, timeout)

    return patched(_Atomically, "__init__", init)


@mutant("a share of a rate that takes all", "shares")
def _whole_rate() -> AbstractContextManager[None]:
    """Whatever the others have left."""
    return patched(rate_holder, "share_for", lambda state, me: RateShare(state.rate, state.burst // 2))


@mutant("a share whose lease is lost", "shares")
def _given_without_lease() -> AbstractContextManager[None]:
    """The bucket goes on, and the others have the share already."""

    def take(bucket: Any, n: int) -> bool:
        bucket._refill()
        bucket.used_at = bucket._at
        if bucket.tokens < n or bucket.lost is None:
            return False
        bucket.tokens -= n
        return True

    return together(
        patched(TokenBucket, "_take", take),
        patched(RateHolder, "_is_holder", lambda holder: holder._holding is not None and not holder._holding.ended),
    )


@mutant("tokens that come again with each share", "shares")
def _full_at_once() -> AbstractContextManager[None]:
    """A bucket that is full when it gets its share, wherever the tokens are to come from."""
    original = TokenBucket.set_share

    def set_share(bucket: Any, per_second: float, burst: float, more: float) -> None:
        original(bucket, per_second, burst, burst)

    return patched(TokenBucket, "set_share", set_share)


@mutant("a semaphore that counts heads", "shares")
def _heads() -> AbstractContextManager[None]:
    """And not what each of them weighs."""
    return patched(semaphore, "weight_of", lambda key: 1)


@mutant("a semaphore whose light ones overtake", "shares")
def _overtaking() -> AbstractContextManager[None]:
    """One that fits beside those which hold, though a heavy one waits before it; both then take the same slots."""
    original = semaphore._Slot._ahead

    async def ahead(slot: Any, ticket: Any) -> Any:
        contenders = slot.contenders
        line = await contenders.reads.range(prefix=contenders.ticket_prefix, sort="create_revision", keys_only=True)
        taken = 0
        for item in line:
            if item.create_revision < ticket.token and taken + semaphore.weight_of(item.key) <= slot.limit:
                taken += semaphore.weight_of(item.key)
        if taken + slot.weight <= slot.limit:
            return None
        return await original(slot, ticket)

    return patched(semaphore._Slot, "_ahead", ahead)
