"""The product's own coroutines (async handles, watches, leases, recipes) run by the simulator instead of asyncio.

A script is a coroutine in one life of one client. Whatever it awaits is a :class:`Wait`, which the world ends at some
imagined time. The async handle, lease and watch here are the real ones; only how they wait is replaced, and the clock
that they and the recipes look at is the one of the client whose script runs (``state_replaced`` puts that in place).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

from raykeeper.actors import deadline
from raykeeper.actors.client import adoption, aio, leases, watch
from raykeeper.actors.client.adoption import adopt_steps
from raykeeper.actors.client.core import subscription, watch_core
from raykeeper.actors.client.core.in_flight import LeaseQuestion
from raykeeper.actors.client.leases import AsyncLease, Granted, grant_steps, leased_txn_steps
from raykeeper.actors.client.results import TxnResult
from raykeeper.actors.client.txn_parts import Condition, Op
from raykeeper.actors.client.view import Call, Steps, View, revoke_command
from raykeeper.actors.client.watch import AsyncWatch, watch_spec
from raykeeper.actors.handles import AsyncClient
from raykeeper.actors.member import read_requests, request_handler, watches
from raykeeper.actors.recipes import (
    atomically,
    change_stream,
    contenders,
    holder,
    rate,
    rate_holder,
    sync_async,
)
from raykeeper.actors.recipes.token_bucket import TokenBucket
from raykeeper.errors import KeeperError
from raykeeper.limits import CLEANUP_GRACE_S
from raykeeper.store.state import executor, ranges, unfinished, write_batch
from simulation.checker import Violation

if TYPE_CHECKING:
    from simulation.client import Client
    from simulation.world import World

T = TypeVar("T")
TIMEOUT = 4.0
"""Seconds, for calls that name none."""
_running: list[Client] = []
_dying = [False]
"""Whether what runs is being taken apart."""


def now() -> float:
    """The clock of the client whose script runs."""
    return _running[-1].time()


def this_client() -> Client:
    """The client whose script runs."""
    return _running[-1]


def fresh_id() -> int:
    """An id for a lease, from the randomness of the client whose script runs."""
    return _running[-1].rng.getrandbits(62) | 1


@contextmanager
def running(client: Client) -> Iterator[None]:
    """While this is entered, a client's code runs."""
    _running.append(client)
    try:
        yield
    finally:
        _running.pop()


BOUNDED = (
    watches,
    request_handler,
    read_requests,
    watch_core,
    subscription,
    watch,
    executor,
    ranges,
    write_batch,
    unfinished,
)
"""Modules whose bounds a profile may make small."""


@contextmanager
def replaced(world: World) -> Iterator[None]:
    """Time and threads of the product's client side as the simulator has them, and the small buffers of a profile."""

    def spawn(handle: Any, coroutine: Coroutine[Any, Any, None], name: str, at_end: object = None) -> None:
        with deadline.uncovered():  # as in a task of its own
            Script(handle.client, coroutine, background=True)  # whose process lives to its end, or is gone

    async def pause(handle: Any, seconds: float) -> None:
        await sleep(handle.client, seconds)

    with ExitStack() as stack:
        for module in (adoption, aio, leases, watch):
            stack.enter_context(mock.patch.object(module, "clock", now))
        for module in (leases, rate_holder):
            stack.enter_context(mock.patch.object(module, "fresh_id", fresh_id))
        for module in (sync_async, deadline, rate_holder):
            stack.enter_context(mock.patch.object(module, "time", SimpleNamespace(monotonic=now)))
        for module in (sync_async, change_stream, contenders, atomically, rate_holder):
            stack.enter_context(mock.patch.object(module, "pause", pause))
        for module in (contenders, rate_holder):
            stack.enter_context(mock.patch.object(module, "spawn", spawn))
        stack.enter_context(mock.patch.object(sync_async, "end_lease_async", end_lease))
        for module in (holder, rate_holder):
            stack.enter_context(mock.patch.object(module, "whoami", return_value=b"somebody"))
        for module in (atomically, rate_holder):
            stack.enter_context(mock.patch.object(module, "gate", _gate))
            stack.enter_context(mock.patch.object(module, "_rng", SimpleNamespace(uniform=_uniform)))
        for module in (rate, rate_holder):
            loop = SimpleNamespace(get_running_loop=lambda: this_client().hub, Lock=Mutex)
            stack.enter_context(mock.patch.object(module, "asyncio", loop))
        stack.enter_context(mock.patch.object(rate_holder, "TokenBucket", _bucket))
        for name, value in world.profile.small.items():
            for module in BOUNDED:
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, value))
        yield


class Wait:
    """Something that a script awaits. ``start`` gets what is to be called, once, with the result.

    A script whose process is gone can await nothing any more, not even while it is being taken apart.
    """

    def __init__(self, start: Callable[[Callable[[Any], None]], None]) -> None:
        self.start = start

    def __await__(self) -> Generator[Wait, Any, Any]:
        if _dying[-1]:
            raise GeneratorExit
        return (yield self)


class Script:
    """A coroutine that runs in a client, until it returns or the process dies."""

    def __init__(self, client: Client, coroutine: Coroutine[Any, Any, Any], *, background: bool = False) -> None:
        self.client = client
        self.background = background
        """Nobody waits for its end."""
        self._coroutine = coroutine
        self._context = copy_context()
        """Its own, as a task's: deadlines of calls stand there."""
        self._over = False
        client.scripts[self] = None
        client.world.at(client.world.now, self._go_on, None)

    def kill(self) -> None:
        """The process is gone. Call this when its next life has begun."""
        self._over = True
        self.client.scripts.pop(self, None)
        _dying.append(True)
        try:
            with running(self.client):
                self._context.run(self._coroutine.close)
        finally:
            _dying.pop()

    def _go_on(self, value: Any) -> None:
        if self._over or not self.client.when_awake(lambda: self._go_on(value)):
            return
        client, world = self.client, self.client.world
        try:
            with running(client):
                wait = self._context.run(self._coroutine.send, value)
        except StopIteration:
            self._over = True
            client.scripts.pop(self, None)
        except Exception as error:
            world.broke(error if isinstance(error, Violation) else _mistake(client, error))
        else:
            told = [False]

            def once(result: Any) -> None:
                if not told[0]:
                    told[0] = True
                    world.at(world.now, self._go_on, result)

            wait.start(once)
        client.pump(client.lives)


def _mistake(client: Client, error: Exception) -> Violation:
    violation = Violation(f"a script of {client.name} ended with {error!r}")
    violation.__cause__ = error
    return violation


def sleep(client: Client, seconds: float) -> Wait:
    """Wait for this many seconds."""
    return Wait(lambda resume: client.world.after(seconds, resume, None))


class Gate:
    """What a watch wakes."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self._set = False
        self._waiting: list[Callable[[Any], None]] = []

    def wake(self) -> None:
        """There is something to take."""
        self._told()
        self._set = True
        waiting, self._waiting = self._waiting, []
        for resume in waiting:
            resume(True)

    def set_by_the_loop(self) -> contextlib.AbstractContextManager[None]:
        """There is one thread here, so it is woken at once."""
        return contextlib.nullcontext()

    def is_set(self) -> bool:
        return self._set

    def clear(self) -> None:
        self._set = False

    def wait(self, client: Client, seconds: float) -> Wait:
        """Wait until it is woken, or for this many seconds; the result says which."""

        def start(resume: Callable[[Any], None]) -> None:
            if self._set:
                resume(True)
                return
            self._waiting.append(resume)
            if seconds != float("inf"):
                client.world.after(max(0.0, seconds), resume, False)

        return Wait(start)


class Mutex:
    """A lock for the scripts of one process, in the order of arrival: in place of ``asyncio.Lock``."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: list[Callable[[Any], None]] = []

    async def __aenter__(self) -> None:
        if self._held:
            await Wait(self._waiting.append)
        self._held = True

    async def __aexit__(self, *error: object) -> None:
        if self._waiting:
            self._waiting.pop(0)(None)  # it stays held, by that one
        else:
            self._held = False


def _gate(handle: object) -> Mutex:
    return Mutex()


def _bucket() -> TokenBucket:
    """By the clock of the client whose script runs."""
    return TokenBucket(now)


def _uniform(least: float, most: float) -> float:
    """From the randomness of the client whose script runs."""
    return this_client().rng.uniform(least, most)


class _NoMonitor:
    """In place of a core that asks members to monitor the process."""

    def lease_owned(self, now: float) -> None:
        """Nobody is asked."""


class _Hub:
    """The cores of one life of a client, as leases and watches know them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.life = client.lives
        self.name = "simulated"
        self.process = os.getpid()
        self.limits = client.world.limits
        self.watch_core = client.watch_core
        self.lease_core = client.lease_core
        self.monitor_core = client.monitor_core if client.world.profile.deaths else _NoMonitor()

    def run_locked(self, act: Callable[[float], T]) -> T:
        result = act(self.client.time())
        if self.life == self.client.lives:
            self.client.soon()
        return result

    def run_now_or_soon(self, act: Callable[[float], object]) -> None:
        self.run_locked(act)

    def check_process(self) -> None:
        """Nobody forks here."""

    def flush_later(self, listener: Any) -> None:
        """Once what is being taken in has been."""
        self.client.world.at(self.client.world.now, self._flush, listener)

    def _flush(self, listener: Any) -> None:
        if self.life == self.client.lives:
            listener.flush()

    def read_locked(self, look: Callable[[], T]) -> T:
        return look()

    def cancel_soon(self, subscription: Any) -> None:
        """Nothing: when objects are collected must not decide what happens."""


class SimWatch(AsyncWatch):
    """The real watch, which waits for imagined news."""

    def __init__(self, handle: SimClient, asked: Any) -> None:
        self.start = 0
        """The first revision that it sees, once a member has said what that is; 0 if it was asked for one."""
        self._wakeup: Any = Gate(self._woken)
        self._client = handle.client
        self._asked_for = asked.start_revision
        super(AsyncWatch, self).__init__(SimpleNamespace(hub=handle.hub), handle._view, asked, self._wakeup)  # type: ignore[arg-type]

    def _woken(self) -> None:
        if not self.start and not self._asked_for and self._subscription.fixed:
            self.start = self._subscription.position + 1

    async def _wait(self, deadline: float) -> bool:
        left = deadline - now()
        if left <= 0:
            return bool(self._wakeup.is_set())
        woken: bool = await self._wakeup.wait(self._client, left)
        return woken


class SimLease(AsyncLease):
    """The real lease; the world remembers it, so that it is never collected and every end of it can be judged."""

    def __init__(self, handle: SimClient, granted: Granted, keep_alive: bool) -> None:
        super().__init__(handle, handle.hub, granted, keep_alive)  # type: ignore[arg-type]
        self.process = handle.client
        self.life = handle.client.lives
        self.revoke_asked = False
        self.asked_by: list[Client] = []
        """The processes that have asked for its end."""
        self.forgotten_at: float | None = None
        handle.client.world.book.leases.append(self)

    def forget(self) -> None:
        """As if the object were collected."""
        self.forgotten_at = self.process.world.now
        self._hub.lease_core.drop_lease(self._held, self.process.time())

    async def revoke(self, *, timeout: float | None = None) -> None:
        self.note_revocation(self.process)
        await super().revoke(timeout=timeout)

    def note_revocation(self, process: Client) -> None:
        """A process asks for its end."""
        self.revoke_asked = True
        self.asked_by.append(process)
        if self.forgotten_at is None:
            self.forgotten_at = self.process.world.now

    @property
    def good_until(self) -> float:
        """Until when its process may rely on it, by that process's clock."""
        return self._held.good_until

    @property
    def was_taken(self) -> bool:
        """Whether another process, which has adopted it, has revoked it: this one is not told at once."""
        world = self.process.world
        ended = world.chronicle.ended.get(self.id)
        if ended is None or ended.expired or ended.dead:
            return False
        known = [lease for lease in world.book.leases if lease.id == self.id]
        return any(process is not self.process for lease in known for process in lease.asked_by)

    @property
    def kept(self) -> bool:
        """Whether its process lives and keeps it alive."""
        return self.life == self.process.lives and self._held.keep


async def end_lease(
    owner: SimClient | SimLease,
    id: int,
    lasting: float,
    ending: Op | None = None,
    patience: float = CLEANUP_GRACE_S,
) -> None:
    """As the real one: ask for the end of a lease for as long as it could live, and wait for that only a little."""
    client = owner.client if isinstance(owner, SimClient) else owner.process
    view = owner._view if isinstance(owner, SimClient) else owner._client._view
    for lease in client.world.book.leases:
        if lease.id == id:
            lease.note_revocation(client)

    def start(resume: Callable[[Any], None]) -> None:
        waiting = [resume]

        def over(outcome: Any) -> None:
            if waiting:
                waiting.pop()(None)

        client.submit(revoke_command(id) if ending is None else view.txn_command(ending), lasting, over)
        client.world.after(min(patience, deadline.time_left()), over, None)

    await Wait(start)


class SimClient(AsyncClient):
    """The real async handle over a client of the world."""

    def __init__(self, client: Client, view: View | None = None, timeout: float = 0.0) -> None:
        timeout = timeout or TIMEOUT * client.world.profile.scale
        super().__init__("simulated", client.world.cluster, view=view, timeout=timeout)
        self.client = client
        self.hub = _Hub(client)

    async def _hub(self, timeout: float) -> Any:
        return self.hub

    def _derive(self, view: View) -> SimClient:
        return SimClient(self.client, view, self._timeout)

    async def _run(self, steps: Steps[T], timeout: float | None) -> T:
        deadline = now() + self._seconds(timeout)
        try:
            ask = next(steps)
            while True:
                outcome = await self._ask(ask, deadline - now())
                ask = steps.throw(outcome) if isinstance(outcome, KeeperError) else steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result

    def _ask(self, ask: Call, left: float) -> Wait:
        client = self.client

        def start(resume: Callable[[Any], None]) -> None:
            began = client.world.now

            def done(outcome: Any) -> None:
                if not isinstance(outcome, KeeperError):
                    client.world.succeeded(began)
                resume(outcome)

            if isinstance(ask.request, LeaseQuestion):
                client.lease_core.ask_status(ask.request, now=client.time(), timeout=left, done=done)
                client.soon()
            else:
                options = {"serializable": ask.serializable, "request_id": ask.request_id}
                client.submit(ask.request, left, done, **options)

        return Wait(start)

    async def watch(self, key: Any = None, end: Any = None, **options: Any) -> SimWatch:
        """As the real one."""
        timeout = options.pop("timeout", None)
        asked = watch_spec(
            self._view,
            key,
            end,
            options.pop("prefix", None),
            options.pop("start_revision", None),
            options.pop("prev", False),
            options.pop("only", None),
        )
        assert not options, options
        watch = SimWatch(self, asked)
        await watch.begin(self._seconds(timeout))
        return watch

    async def lease(
        self, ttl: float, *, keep_alive: bool = True, bound_to: str | None = None, timeout: float | None = None
    ) -> SimLease:
        """As the real one."""
        steps = grant_steps(self._view, ttl, now() + self._seconds(timeout) / 2, keep_alive)
        return SimLease(self, await self._run(steps, timeout), keep_alive)

    async def adopt(self, id: int) -> SimLease:
        """As the command line does, in a process that is slow at times."""
        granted = await self._run(adopt_steps(id, now() + self._seconds(None)), None)
        await sleep(self.client, self.client.rng.choice((0.0, 0.3)))
        return SimLease(self, granted, True)

    async def leased_txn(
        self, ttl: float, make: Callable[[int], Op], *, bound_to: object = None, timeout: float | None = None
    ) -> tuple[SimLease | None, TxnResult]:
        """As the real one."""
        granted, result = await self._run(leased_txn_steps(self._view, ttl, make), timeout)
        return None if granted is None else SimLease(self, granted, True), result

    async def txn(
        self, compare: Sequence[Condition] = (), success: Sequence[Op] = (), *arguments: Any, **options: Any
    ) -> TxnResult:
        """As the real one; the book is told of the leases that it revokes."""
        for op in (*success, *(arguments[0] if arguments else ())):
            if isinstance(op, Op) and op.kind == "revoke" and isinstance(op.arguments["lease"], SimLease):
                op.arguments["lease"].note_revocation(self.client)
        return await super().txn(compare, success, *arguments, **options)
