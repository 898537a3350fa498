"""Callbacks on changes of keys, and on the connection: for programs that are written around them, as with kazoo.

::

    watching = client.on_change(prefix="workers/", call=print)     # a Resync with what is there, then each Event
    client.on_connection(lambda state: print(state))               # "connected", "suspended", "lost"
    watching.cancel()

Each registration has a thread of its own (with asyncio, a task), on which its function is called: one call after the
other, in the order of the changes. So a slow function delays only itself, and may use the client. What it raises is
logged, and the next change is delivered all the same.

**Changes.** The present is read, and told as a :class:`Resync`; a watch delivers every change from the next revision
on. Nothing is put into another queue between: while the function is slow, changes wait in the watch's bounded buffer,
and then in the members' history. So none is lost as long as that history is kept. If it has been compacted meanwhile,
the present is read and told again: a function that replaces what it knows by that is up to date.

**The connection** is looked at by a read of the cluster's revision, every second. *Suspended*: none was answered in
time. *Lost*: so for the TTL of this process's session, or the session has ended; leases and locks may be gone then, and
each says so itself by its ``lost``. *Connected*: answered, again. What comes and goes while the function runs is not
told.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from ...errors import ClusterNotFound, CompactedError, InvalidArgument, KeeperError, RequestTimeout, Unavailable
from ...limits import (
    CONNECTION_CHECK_S,
    CONNECTION_PROBE_S,
    MAX_CALLBACKS,
    RECIPE_CHECK_S,
    RECIPE_MAX_PAUSE_S,
    Timings,
)
from .. import arguments as check
from ..arguments import Key
from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from ..client.hub import clock
from ..client.results import End, Event, KeyValue, RangeResult
from ..client.watch import AsyncWatch, Watch
from ..deadline import covering
from ..interruptible import Places
from .sync_async import AnyHandle, Unpicklable, cancel_watch, next_event, pause, resolved, run_sync, spawn

ConnectionState = Literal["connected", "suspended", "lost"]
_log = logging.getLogger("raykeeper.client")
_places = Places(MAX_CALLBACKS)


class Resync(msgspec.Struct, frozen=True):
    """What is there: told first, and again where changes have been compacted before they could be told.

    Attributes:
        items: the pairs, in key order; of all other keys nothing is there.
        revision: as of which; the changes that follow come after it.
        type: ``"resync"``, as an event's is ``"put"`` or ``"delete"``.
    """

    items: tuple[KeyValue, ...]
    revision: int
    type: Literal["resync"] = "resync"


class _CallbackLoop(ABC):
    """One registration: what its thread or task does, until it is cancelled or the handle is closed."""

    what = ""
    """For messages and the name of its thread."""

    def __init__(self, handle: AnyHandle, call: Callable[[Any], Any]) -> None:
        if not callable(call):
            raise InvalidArgument(f"call must be a function, not {check.shown(call)}")
        self.handle = handle
        self.over = threading.Event()
        self.error: Exception | None = None
        self.registered: object = None
        """What the user got, which the handle holds weakly: it is to stay as long as this works."""
        self.places = _places
        self._call = call

    @abstractmethod
    async def begin(self) -> None:
        """What is done before the registration returns; raises what the user is to know at once."""

    @abstractmethod
    async def follow(self) -> None:
        """Deliver until it is over."""

    async def run(self) -> None:
        """What the thread or task does."""
        try:
            await self.follow()
        except Exception as error:
            if not self.over.is_set() and not self.handle.closed:
                self.error = error
                _log.error("cluster %s: the calls of %s have ended: %s", self.handle.cluster_name, self.what, error)
        finally:
            self.over.set()
            self.places.leave(self, None)
            await self.clean_up()

    @abstractmethod
    async def clean_up(self) -> None:
        """After the last call."""

    async def deliver(self, change: Any) -> None:
        """Call the function, unless it is over."""
        if self.over.is_set():
            return
        try:
            result = self._call(change)
            if inspect.isawaitable(result):
                if isinstance(self.handle, AsyncKeyValueClient):
                    await result
                else:
                    if inspect.iscoroutine(result):
                        result.close()
                    raise TypeError("a coroutine is for the callbacks of kv.aio")
        except Exception:
            name = self.handle.cluster_name
            _log.exception("cluster %s: the function that is called by %s has raised", name, self.what)

    def stop(self) -> None:
        """No other call begins. Any thread."""
        self.over.set()


class _ChangeCaller(_CallbackLoop):
    def __init__(
        self, handle: AnyHandle, key: Key | None, end: Key | End | None, prefix: Key | None, call: Callable[[Any], Any]
    ) -> None:
        super().__init__(handle, call)
        handle._view.keys(key, end, prefix)
        self._key, self._end, self._prefix = key, end, prefix
        self.what = f"on_change of {check.shown(key if prefix is None else prefix)}"
        self._watch: Watch | AsyncWatch | None = None
        self._present: RangeResult | None = None

    async def begin(self) -> None:
        await self._read_present()

    async def follow(self) -> None:
        while not self.over.is_set():
            try:
                if self._present is not None:
                    present, self._present = self._present, None
                    await self.deliver(Resync(present.items, present.revision))
                elif self._watch is None:
                    await self._read_present()
                else:
                    await self._deliver_next(self._watch)
            except CompactedError:
                await self.clean_up()
            except (Unavailable, RequestTimeout):
                if self.handle.closed:
                    return
                await self.clean_up()
                await pause(self.handle, RECIPE_MAX_PAUSE_S)

    async def _read_present(self) -> None:
        with covering(self.handle.timeout):
            found = await resolved(self.handle.range(self._key, self._end, prefix=self._prefix))
            following = self.handle.watch(
                self._key, self._end, prefix=self._prefix, start_revision=found.revision + 1, prev=True
            )
            self._watch = await resolved(following)
        self._present = found

    async def _deliver_next(self, watch: Watch | AsyncWatch) -> None:
        event: Event | None = await next_event(watch, RECIPE_CHECK_S)
        if event is not None:
            await self.deliver(event)

    async def clean_up(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            await cancel_watch(watch)

    def stop(self) -> None:
        super().stop()
        watch = self._watch
        if watch is not None:
            watch._end()


class _ConnectionCaller(_CallbackLoop):
    what = "on_connection"

    async def begin(self) -> None:
        """Find the cluster, so that it is said at once if there is none, or if this process is a forked child."""
        self.handle._check_open()
        await resolved(self.handle._hub(self.handle._seconds(None)))

    async def follow(self) -> None:
        """Look every second; tell what is different from what was told last.

        A process that was paused for longer than the session lasts has lost it, though the next look is answered. What
        the function takes does not count.
        """
        told: ConnectionState | None = None
        heard = clock()
        session = 0
        while not self.over.is_set():
            asked = clock()
            answered = await self._probe()
            hub = self.handle._known_hub()
            patience = (Timings() if hub is None else hub.timings).session_ttl
            now_in = 0 if hub is None else hub.session
            ended = bool(session and answered and now_in != session)
            silent = (asked if answered else clock()) - heard
            states: list[ConnectionState] = []
            if told is not None and told != "lost" and (ended or silent >= patience):
                states.append("lost")
            if answered:
                heard, session = asked, now_in
                if told != "connected" or states:
                    states.append("connected")
            elif told != "lost" and told != "suspended" and not states:
                states.append("suspended")
            began = clock()
            for state in states:
                told = state
                await self.deliver(state)
            heard += clock() - began
            await self._rest()

    async def clean_up(self) -> None:
        pass

    async def _probe(self) -> bool:
        try:
            await resolved(self.handle.revision(timeout=CONNECTION_PROBE_S))
        except (Unavailable, RequestTimeout, ClusterNotFound):
            return False
        except InvalidArgument:
            self.over.set()  # the handle is closed
            return False
        except KeeperError:
            return True  # it was answered
        return True

    async def _rest(self) -> None:
        if isinstance(self.handle, AsyncKeyValueClient):
            await asyncio.sleep(CONNECTION_CHECK_S)
        else:
            self.over.wait(CONNECTION_CHECK_S)


class _CallbackBase(Unpicklable):
    """What needs no waiting."""

    def __init__(self, caller: _CallbackLoop) -> None:
        self._caller = caller

    @property
    def active(self) -> bool:
        """Whether the function is still called: not after ``cancel``, the end of the handle, or an ``error``."""
        return not self._caller.over.is_set()

    @property
    def error(self) -> Exception | None:
        """Why it is called no longer, if it was not for ``cancel`` or the end of the handle: a right was taken, say."""
        return self._caller.error

    def _end(self) -> None:
        """The handle was closed."""
        self._caller.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._caller.what}{'' if self.active else ', over'}>"


class Callback(_CallbackBase):
    """A registered function, until it is cancelled or its handle is closed; it need not be kept."""

    def cancel(self) -> None:
        """End it: no other call begins. One that runs goes on; this may be it. Cancelling twice is not an error."""
        self._caller.stop()


class AsyncCallback(_CallbackBase):
    """As ``Callback``, for asyncio."""

    async def cancel(self) -> None:
        """See ``Callback.cancel``."""
        self._caller.stop()


async def _start(caller: _CallbackLoop) -> None:
    """Begin, and leave the rest to a thread or a task."""
    try:
        if not caller.places.take(caller):
            raise Unavailable(f"{MAX_CALLBACKS} callbacks are registered in this process: no more")
        await caller.begin()
        spawn(caller.handle, caller.run(), f"raykeeper-calls-{caller.what}")
    except BaseException:
        caller.stop()
        caller.places.leave(caller, None)
        raise


def register(handle: KeyValueClient, caller: _CallbackLoop) -> Callback:
    """Register a function with a blocking handle."""
    run_sync(_start(caller))
    made = Callback(caller)
    handle._watches.add(made)
    caller.registered = made
    return made


async def register_async(handle: AsyncKeyValueClient, caller: _CallbackLoop) -> AsyncCallback:
    """Register a function with an asyncio handle."""
    await _start(caller)
    made = AsyncCallback(caller)
    handle._watches.add(made)
    caller.registered = made
    return made


def change_caller(
    handle: AnyHandle, key: Key | None, end: Key | End | None, prefix: Key | None, call: Callable[[Any], Any]
) -> _CallbackLoop:
    """What follows keys for ``on_change``."""
    return _ChangeCaller(handle, key, end, prefix, call)


def connection_caller(handle: AnyHandle, call: Callable[[Any], Any]) -> _CallbackLoop:
    """What looks at the connection for ``on_connection``."""
    return _ConnectionCaller(handle, call)


def _in_child() -> None:
    global _places
    _places = Places(MAX_CALLBACKS)


os.register_at_fork(after_in_child=_in_child)
