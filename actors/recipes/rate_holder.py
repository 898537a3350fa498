"""What a rate limiter of a process does: it joins and leaves, takes its share, and follows what the others do.

The theory is in ``rate.py``. A share is taken, changed and given back inside the gate. What ends it otherwise may come
at any time, and needs no gate: the lease counts as lost from then on, and the bucket, which was opened for that lease,
gives nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from dataclasses import dataclass
from random import SystemRandom
from typing import NamedTuple

import msgspec

from ...errors import CompactedError, InvalidArgument, KeeperError, ReentrantCall, RequestTimeout, Unavailable
from ...limits import (
    LEASE_MAX_TTL_S,
    LEASE_MIN_TTL_S,
    MAX_RATE_HOLDERS,
    MAX_RATE_PER_SECOND,
    MAX_SECONDS_PER_TOKEN,
    RATE_IDLE_S,
    RATE_LOOK_S,
    RATE_MAX_PAUSE_S,
    RATE_MAX_RETRY_PAUSE_S,
    RATE_RETRY_PAUSE_S,
    RECIPE_MAX_PAUSE_S,
)
from .. import arguments as check
from ..client.aio import AsyncKeyValueClient
from ..client.leases import AsyncLease, Lease, fresh_id
from ..client.results import RangeResult
from ..client.txn_parts import Compare, Op
from ..deadline import covering
from .contenders import drop_lease, leased_txn_or_nothing
from .rate_shares import (
    BILLION,
    RateState,
    after_leaving,
    decoded_state,
    encoded_state,
    share_for,
    with_share,
    without,
)
from .sync_async import (
    AnyHandle,
    TimeLimit,
    cancel_watch,
    check_may_wait,
    folder,
    gate,
    next_event,
    open_watch,
    pause,
    resolved,
    seconds_to_live,
    spawn,
    whoami,
)
from .token_bucket import TokenBucket, TokenWait

_rng = SystemRandom()
_CHANGES_AT_ONCE = 32
"""Holders that are gone which one change of the state removes."""


@dataclass(eq=False)
class _Holding:
    """What makes this process one of the holders."""

    lease: Lease | AsyncLease
    name: str
    key: bytes
    token: int
    ended: bool = False
    """Whether the lease was revoked."""


class _RateView(NamedTuple):
    """The shared state as of one revision."""

    state: RateState
    state_revision: int
    gone: tuple[str, ...]
    more: bool
    """Whether more are gone than these."""
    revision: int


class RateHolder:
    """The logic, on either kind of handle."""

    def __init__(self, handle: AnyHandle, name: str | bytes, per_second: object, burst: object, ttl: object) -> None:
        rate, least = check.seconds("per_second", per_second), 1 / MAX_SECONDS_PER_TOKEN
        if not least <= rate <= MAX_RATE_PER_SECOND:
            raise InvalidArgument(f"per_second must be between {least:g} and {MAX_RATE_PER_SECOND:g}")
        self.name = name
        self.burst = check.whole_number("burst", burst, 1)
        if self.burst > MAX_RATE_PER_SECOND:
            raise InvalidArgument(f"burst must be at most {MAX_RATE_PER_SECOND:g}")
        self.ttl = seconds_to_live(ttl)
        self.space: AnyHandle = handle.reserved("rate")
        self.bucket = TokenBucket()
        self._rate = int(rate * BILLION)
        self._folder = folder(handle, name)
        self._state_key = self._folder + b"state"
        self._holders = self._folder + b"h/"
        self.gate = gate(handle)
        self.loop: asyncio.AbstractEventLoop | None = None
        """That this is used in, with asyncio."""
        self._holding: _Holding | None = None
        self._had_share = False
        self._crowd = 1
        """How many holders there were when last looked."""
        self._returned = 0.0
        """Tokens that the bucket no longer has and the pool does not have yet."""
        self.owner: weakref.ref[object] | None = None
        """What the user has: what works in the background ends when that is collected."""

    # -- taking tokens ------------------------------------------------------------------------------------------------

    def number(self, n: object) -> int:
        """How many tokens are wanted, checked."""
        if type(n) is int and 0 < n <= self.burst:
            return n
        number = check.whole_number("n", n, 1)
        if number > self.burst:
            raise InvalidArgument(f"{number} tokens are more than the burst of {self.burst}: they can never be had")
        return number

    async def acquire(self, n: int, timeout: float | None) -> bool:
        """Take tokens, waiting for them in the order of arrival, and, unless it is the first, for a share; ``False``
        when the time is over."""
        await self._enter_loop()
        deadline = TimeLimit(timeout)
        wait = TokenWait(n, 0 if self.loop else threading.get_ident())
        try:
            self.bucket.enqueue(wait)
            with deadline.covering(self.space):
                while True:
                    try:
                        await self._join()
                        seconds = self.bucket.take(wait)
                    except (RequestTimeout, Unavailable) as error:
                        if deadline.caused(error, answered=self._had_share):
                            return False
                        if not self._had_share or self.space.closed:
                            raise
                        seconds = RECIPE_MAX_PAUSE_S
                    if not seconds:
                        return True
                    if not deadline.left:
                        return False
                    if wait.blocked:
                        raise ReentrantCall()
                    check_may_wait(self.space)
                    await pause(self.space, min(seconds, RATE_MAX_PAUSE_S, deadline.left))
        finally:
            wait.over = True  # first, and without a call: an interrupt in the next line leaves nobody in the way
            self.bucket.leave(wait)

    # -- the share of this process ------------------------------------------------------------------------------------

    async def _enter_loop(self) -> None:
        """With asyncio, a share belongs to the loop that follows it: in another one, another share is needed."""
        if isinstance(self.space, AsyncKeyValueClient) and self.loop is not asyncio.get_running_loop():
            self.loop, self.gate = asyncio.get_running_loop(), gate(self.space)
            before, self._holding = self._holding, None
            if before is not None:
                await self._give_up(before)

    def _is_holder(self) -> bool:
        return self._holding is not None and not self._holding.lease.lost.is_set()

    async def _join(self) -> None:
        """Become a holder, unless this process is one."""
        if self._is_holder():
            return
        with covering(self.space.timeout):
            async with self.gate:
                if not self._is_holder():
                    await self._become_holder()

    async def _become_holder(self) -> None:
        keys: list[bytes] = []

        def make(id: int) -> Op:
            keys.append(self._holders + b"%016x" % id)
            return Op.txn([Compare.version(keys[-1]) == 0], [Op.put(keys[-1], whoami(), lease=id)])

        lease, result = await leased_txn_or_nothing(self.space, self.ttl, make)
        assert lease is not None
        holding = _Holding(lease, keys[-1][len(self._holders) :].decode(), keys[-1], result.revision)
        try:
            if self._holding is not None:
                await self._give_up(self._holding)
            self._returned = 0.0
            self.bucket.open(lease.lost)
            revision = await self._settle(holding)
            spawn(self.space, self._follow(holding, revision), f"raykeeper-rate-{self.name!r}", lease.lost.set)
            self._holding, self._had_share = holding, True
        except BaseException:
            await self._give_up(holding)
            raise

    async def _give_up(self, holding: _Holding) -> None:
        """Take nothing any more by this share, and end its lease: then it is the others'. Nothing happens to a share
        that this process has got since."""
        self.bucket.drain(holding.lease.lost)
        if not holding.ended:
            holding.ended = True
            await drop_lease(holding.lease)

    async def _look(self) -> _RateView:
        """Read the state, and which of its holders are gone. Their keys went with their leases, and never come back."""
        found: RangeResult = await resolved(self.space.range(prefix=self._folder))
        present = {
            item.key[len(self._holders) :].decode(errors="replace")
            for item in found
            if item.key.startswith(self._holders)
        }
        held = next((item for item in found if item.key == self._state_key), None)
        if held is None:
            fresh = RateState(self._rate, self.burst * BILLION, self.burst * BILLION, {})
            return _RateView(fresh, 0, (), False, found.revision)
        try:
            state = decoded_state(held.raw)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidArgument(f"what rate {self.name!r} shares cannot be read: {error}") from error
        gone = sorted(state.shares.keys() - present)
        if (state.rate, state.burst) != (self._rate, self.burst * BILLION):
            if len(gone) < len(state.shares):
                raise InvalidArgument(
                    f"rate {self.name!r} is in use with {state.rate / BILLION:g} per second and a burst of "
                    f"{state.burst // BILLION}, not with {self._rate / BILLION:g} and {self.burst}"
                )
            pool = min(state.pool, self.burst * BILLION)
            state = RateState(self._rate, self.burst * BILLION, pool, state.shares)
        now, more = tuple(gone[:_CHANGES_AT_ONCE]), len(gone) > _CHANGES_AT_ONCE
        return _RateView(state, held.mod_revision, now, more, found.revision)

    async def _settle(self, holding: _Holding) -> int:
        """Take the share that is this holder's now, or give up what is too much; the revision that was looked at.

        What is given up is given up here first, and written then; what is taken is written first. If the outcome of a
        write is not known, this process counts on the less, and the next look tells what was written."""
        attempt = 0
        while True:
            look = await self._look()
            state = without(look.state, look.gone)
            if holding.name not in state.shares and len(state.shares) >= MAX_RATE_HOLDERS:
                raise Unavailable(f"rate {self.name!r} is in use by {MAX_RATE_HOLDERS} processes: no more")
            share = share_for(state, holding.name)
            self._crowd = len(state.shares)
            self._returned += self.bucket.lower(share.rate / BILLION, share.burst / BILLION)
            if not look.gone and state.shares.get(holding.name) == share:
                self.bucket.set_share(share.rate / BILLION, share.burst / BILLION, 0.0)
                return look.revision
            returned, self._returned = self._returned, 0.0
            state, taken = with_share(state, holding.name, share, int(returned * BILLION))
            try:
                done = await self._write(look, holding, Op.put(self._state_key, encoded_state(state)))
            except KeeperError as error:
                if error.applied is False:
                    self._returned += returned
                raise
            if done:
                self.bucket.set_share(share.rate / BILLION, share.burst / BILLION, taken / BILLION)
                if not look.more:
                    return look.revision
                continue
            self._returned += returned
            if holding.lease.lost.is_set():
                raise Unavailable(f"the share of rate {self.name!r} is lost: {holding.lease.why_lost()}")
            attempt += 1
            await self._back_off(2**attempt)

    async def _back_off(self, times: int) -> None:
        """Pause at random, so that holders are not in each other's way: for longer the more often they were, or the
        more there are."""
        await pause(
            self.space, _rng.uniform(0, min(RATE_MAX_RETRY_PAUSE_S, RATE_RETRY_PAUSE_S * min(times, MAX_RATE_HOLDERS)))
        )

    async def _write(self, look: _RateView, holding: _Holding, *writes: Op) -> bool:
        """Write the state, if it is still what was looked at and this process is a holder."""
        conditions = [
            Compare.mod_revision(self._state_key) == look.state_revision,
            Compare.create_revision(holding.key) == holding.token,
            *[Compare.version(self._holders + name.encode()) == 0 for name in look.gone],
        ]
        result = await resolved(self.space.txn(conditions, writes))
        if not result.succeeded:
            here = await resolved(self.space.get(holding.key))
            if here is None or here.create_revision != holding.token:
                holding.lease.lost.lose()
        return result.succeeded

    # -- in the background --------------------------------------------------------------------------------------------

    async def _follow(self, holding: _Holding, revision: int) -> None:
        """Divide again whenever a holder comes or goes, until this process has not asked for a while.

        A share that nobody follows would never be made smaller for those who join. So whatever ends this gives it up.
        """
        watch = None
        try:
            while not holding.lease.lost.is_set():
                try:
                    if watch is None:
                        revision = revision or await self._settle_again(holding)
                        watch = await open_watch(self.space, prefix=self._folder, start_revision=revision + 1)
                    event = await next_event(watch, RATE_LOOK_S)
                    if event is not None and event.kv.mod_revision > revision:
                        await self._back_off(self._crowd)  # who joins together is looked at together
                        revision = await self._settle_again(holding)
                except CompactedError:
                    ended, watch, revision = watch, None, 0
                    if ended is not None:
                        await cancel_watch(ended)
                except (RequestTimeout, Unavailable):
                    if self.space.closed:
                        break
                    await pause(self.space, RATE_MAX_PAUSE_S)
                forgotten = self.owner is None or self.owner() is None
                idle = time.monotonic() - self.bucket.used_at > RATE_IDLE_S and not self.bucket.waiting
                if forgotten or idle:
                    await self.close()
        except KeeperError:
            pass  # the next acquire says what is wrong
        finally:
            try:
                await self._give_up(holding)
            finally:
                if watch is not None:
                    await cancel_watch(watch)

    async def _settle_again(self, holding: _Holding) -> int:
        """Have the share that is this holder's now; the revision that was looked at."""
        with covering(self.space.timeout):
            async with self.gate:
                if holding.lease.lost.is_set():
                    raise Unavailable(f"the share of rate {self.name!r} is lost: {holding.lease.why_lost()}")
                return await self._settle(holding)

    async def close(self) -> None:
        """Give the share and the tokens back, and end the lease. Whatever fails, this process has no share then."""
        self.bucket.check_not_held()
        if not isinstance(self.gate, asyncio.Lock) and self.gate.is_held_here():
            raise ReentrantCall()
        holding = self._holding
        if holding is None:
            return
        try:
            with covering(self.space.timeout):
                async with self.gate:
                    if self._holding is holding:
                        await self._give_back(holding)
        except KeeperError:
            pass  # the others find out by the end of the lease
        finally:
            await self._give_up(holding)

    async def _give_back(self, holding: _Holding) -> None:
        try:
            left = self.bucket.drain(holding.lease.lost) + self._returned
            self._holding, self._returned = None, 0.0
            attempt = 0
            while not holding.lease.lost.is_set():
                look = await self._look()
                state = after_leaving(without(look.state, look.gone), holding.name, int(left * BILLION))
                if await self._write(look, holding, *self._ending(state)):
                    break
                attempt += 1
                await self._back_off(2**attempt)
        finally:
            await self._give_up(holding)

    def _ending(self, state: RateState) -> list[Op]:
        """How the state is written by a holder that leaves. The last one leaves it only for as long as the tokens that
        were taken would take to come again: then a rate that nobody has used is as good as new."""
        key, owed_s = self._state_key, (state.burst - state.pool) / state.rate
        if state.shares or owed_s > LEASE_MAX_TTL_S:
            return [Op.put(key, encoded_state(state))]
        if not owed_s:
            return [Op.delete(key)]
        lease = fresh_id()
        return [Op.grant(lease, max(owed_s, LEASE_MIN_TTL_S)), Op.put(key, encoded_state(state), lease=lease)]
