"""What runs in a client process: closed loops of calls, watches, locks, and a probe for failovers.

A client process has one event loop on a thread of its own, so that load by threads and by coroutines meet the same
connection. Times are of ``time.monotonic``, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import struct
import threading
import time
import timeit
import traceback
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from faces import EQUAL_TERMS, FACES, FAST_DEATH, NO_LOG_DEDUP, Address, Face, start_loop

KEYS = [f"bench/{number:04}" for number in range(1000)]
VALUE = bytes(range(256))
WARM_UP = 0.25
"""Seconds before a measurement in which the load already runs."""
PATIENCE = 6
"""A window is open for this many times its length at most, for a crowd whose calls take longer than that."""


class Samples(NamedTuple):
    """What a load brought.

    Attributes:
        times: latencies in seconds, of the calls that ended within the window.
        window: its length in seconds.
        done: calls that ended well, within the window or not.
        failed: calls that did not...
        problem: ... and what the first of them said.
    """

    times: list[float]
    window: float
    done: int
    failed: int
    problem: str


class Load:
    """One loop of calls after calls, for all its workers.

    What ends within the window counts. It is open for this many seconds, and longer if by then the workers have not
    ended two calls each.
    """

    def __init__(self, in_flight: int, begin: float, seconds: float) -> None:
        self._begin = begin + WARM_UP
        self._seconds = seconds
        self._least = 2 * in_flight
        self._closed = 0.0
        self._times: list[float] = []
        self._done = self._failed = 0
        self._problem = ""
        self._keys = itertools.cycle(KEYS)

    def key(self) -> str:
        """The next key."""
        return next(self._keys)

    def open(self, now: float) -> bool:
        """Whether a worker is to continue."""
        if not self._closed:
            open_for = now - self._begin
            enough = open_for >= self._seconds and len(self._times) >= self._least
            if enough or open_for >= PATIENCE * self._seconds:
                self._closed = now
        return not self._closed

    def count(self, started: float, ended: float, error: Exception | None) -> None:
        """A call has ended."""
        if error is not None:
            self._failed += 1
            self._problem = self._problem or f"{type(error).__name__}: {error}"
            return
        self._done += 1
        if self._begin <= ended and not self._closed:
            self._times.append(ended - started)

    @property
    def samples(self) -> Samples:
        """What it brought."""
        return Samples(self._times, self._closed - self._begin, self._done, self._failed, self._problem)


def names_of(op: str) -> tuple[str, ...]:
    """The operations that a load takes in turn."""
    return ("put", "get") if op == "mixed" else ("put", "stale get") if op == "stale mixed" else (op,)


async def by_coroutines(face: Face, op: str, in_flight: int, begin: float, seconds: float) -> Samples:
    """This many coroutines, each of which has one call open all the time."""
    load = Load(in_flight, begin, seconds)
    ops = itertools.cycle([face.ops[name] for name in names_of(op)])

    async def worker() -> None:
        while load.open(started := time.monotonic()):
            error = None
            try:
                await next(ops)(load.key(), VALUE)
            except Exception as problem:
                error = problem
                await asyncio.sleep(0.01)
            load.count(started, time.monotonic(), error)

    await asyncio.sleep(max(0.0, begin - time.monotonic()))
    await asyncio.gather(*[worker() for _ in range(in_flight)])
    return load.samples


def by_threads(face: Face, op: str, in_flight: int, begin: float, seconds: float) -> Samples:
    """This many threads, each of which has one call open all the time."""
    load = Load(in_flight, begin, seconds)
    ops = itertools.cycle([face.blocking[name] for name in names_of(op)])

    def worker() -> None:
        time.sleep(max(0.0, begin - time.monotonic()))
        while load.open(started := time.monotonic()):
            error = None
            try:
                next(ops)(load.key(), VALUE)
            except Exception as problem:
                error = problem
                time.sleep(0.01)
            load.count(started, time.monotonic(), error)

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(in_flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    return load.samples


async def watch_delivery(face: Face, key: str, count: int) -> list[float]:
    """How long after its writer's call began each value of a key came here."""
    delays = []
    watch = face.watch(key)
    try:
        async for value in watch:
            now = time.monotonic()
            if value:
                (sent,) = struct.unpack_from("d", value)
                if sent == 0.0:
                    break
                delays.append(now - sent)
    finally:
        await watch.aclose()
    return delays[count // 10 :]


async def stamped_puts(face: Face, key: str, count: int) -> int:
    """Write the time into a key again and again, with pauses, and in the end a zero."""
    put = face.ops["put"]
    await asyncio.sleep(0.3)  # the watcher is there by then
    for _ in range(count):
        await put(key, struct.pack("d", time.monotonic()) + VALUE[8:])
        await asyncio.sleep(0.004)
    await put(key, bytes(256))
    return count


async def lock_cycles(face: Face, name: str, seconds: float) -> list[float]:
    """Lock and unlock, without contention."""
    times = []
    lock = face.lock(name)
    end = time.monotonic() + seconds
    while (started := time.monotonic()) < end:
        await lock.acquire()
        await lock.release()
        times.append(time.monotonic() - started)
    return times[len(times) // 10 :]


async def lock_turns(face: Face, name: str, seconds: float) -> list[tuple[float, float]]:
    """Contend for a lock and hold it for a moment: from when to when it was held, each time."""
    held = []
    lock = face.lock(name)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await lock.acquire()
        got = time.monotonic()
        await asyncio.sleep(0.002)
        held.append((got, time.monotonic()))
        await lock.release()
    return held


class Probe:
    """Puts that begin every few milliseconds, whatever became of those before: when does one get through?"""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._acks: list[tuple[float, float]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._on = True
        self._beat = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while self._on:
            if len(self._tasks) < 1000:
                task = asyncio.ensure_future(self._put(KEYS[len(self._acks) % 100]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0.01)

    async def _put(self, key: str) -> None:
        started = time.monotonic()
        try:
            await self._face.ops["put"](key, VALUE)
        except Exception:
            return
        self._acks.append((started, time.monotonic()))

    def first_after(self, moment: float) -> float | None:
        """When the first put that began after a moment was acknowledged."""
        return min((ended for started, ended in self._acks if started >= moment), default=None)

    async def end(self) -> None:
        self._on = False
        await self._beat
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def cached_gets(face: Any, count: int) -> list[float]:
    """Seconds for one ``get`` of a local copy (RayKeeper only): the mean of each of ten runs of them."""
    with face.kv.cached("bench/") as copy:
        name = KEYS[7].encode()
        assert copy.get(name) is not None
        return [each / count for each in timeit.repeat(lambda: copy.get(name), number=count, repeat=10)]


class Client:
    """What a client process is asked to do, by name."""

    def __init__(self, kind: str, address: Address) -> None:
        self.face = FACES[kind]()
        self.loop = start_loop()
        self.probe: Probe | None = None
        self.wait(self.face.open(address))

    def wait(self, coroutine: Awaitable[Any], timeout: float = 300.0) -> Any:
        async def run() -> Any:
            return await coroutine

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(timeout)

    def run(self, function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> Any:
        """Any coroutine function of a face and more, which can be imported here too."""
        return self.wait(function(self.face, *arguments), 3600)

    def ops(self) -> list[str]:
        return list(self.face.ops)

    def prepare(self) -> None:
        self.wait(self.face.prepare([*KEYS, "bench/watched"], VALUE))

    def serial(self, op: str, count: int) -> None:
        """Calls one after another, while something else is counted."""

        async def run() -> None:
            for number in range(count):
                await self.face.ops[op](KEYS[number], VALUE)

        self.wait(run())

    def load(self, face: str, op: str, in_flight: int, begin: float, seconds: float) -> Samples:
        if face == "threads":
            return by_threads(self.face, op, in_flight, begin, seconds)
        samples: Samples = self.wait(by_coroutines(self.face, op, in_flight, begin, seconds))
        return samples

    def watch_delivery(self, count: int) -> Any:
        return self.wait(watch_delivery(self.face, "bench/watched", count))

    def stamped_puts(self, count: int) -> Any:
        return self.wait(stamped_puts(self.face, "bench/watched", count))

    def lock_cycles(self, seconds: float) -> Any:
        return self.wait(lock_cycles(self.face, "bench-alone", seconds))

    def lock_turns(self, seconds: float) -> Any:
        return self.wait(lock_turns(self.face, "bench-contended", seconds))

    def cached_gets(self, count: int) -> Any:
        return cached_gets(self.face, count)

    def start_probe(self) -> None:
        async def start() -> Probe:
            return Probe(self.face)

        self.probe = self.wait(start())

    def first_after(self, moment: float, patience: float) -> float | None:
        assert self.probe is not None
        end = time.monotonic() + patience
        while (found := self.probe.first_after(moment)) is None and time.monotonic() < end:
            time.sleep(0.005)
        return found

    def end_probe(self) -> None:
        if self.probe is not None:
            self.wait(self.probe.end())


def serve(pipe: Connection, kind: str, address: Address) -> None:
    """A client process: do what the pipe says until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator says when it is over
    os.environ.update({FAST_DEATH: "0", NO_LOG_DEDUP: ".", EQUAL_TERMS: "0"})
    try:
        client = Client(kind, address)
        pipe.send((True, None))
    except Exception:
        pipe.send((False, traceback.format_exc(limit=4)))
        return
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            break
        if name == "close":
            break
        try:
            answer = True, _call(client, name, arguments)
        except Exception:
            answer = False, traceback.format_exc(limit=4)
        pipe.send(answer)
    try:
        client.wait(client.face.close(), 10)
    finally:
        os._exit(0)


def _call(client: Client, name: str, arguments: tuple[Any, ...]) -> Any:
    method: Callable[..., Any] = getattr(client, name)
    return method(*arguments)
