"""Service registration and discovery: who offers what, where, as long as it lives.

::

    registry = client.registry("search")
    with registry.register("ranker", "10.0.0.7:5000", ttl=10, metadata={"zone": "a"}):
        serve()                                     # heartbeats go in the background

    registry.lookup("ranker")                       # -> [Service(name="ranker", address="10.0.0.7:5000", ...)]
    for change in registry.watch():                 # those that are there, then each that comes, changes or goes
        print(change.type, change.service)

Any number of services may register under one name; each registration is one of them. *A service dies*, or forgets its
registration: within the TTL (and a second) it is gone from the directory, and watchers are told. *It is cut off, or
paused*, for longer: the same; when it is back, it registers itself again, until it deregisters. *The cluster cannot be
reached*: ``register`` and ``lookup`` raise; ``watch`` waits and goes on where it was. *History is compacted under a
watch*: it looks at the present and tells the difference, so what came and went in between is not seen.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import weakref
from types import TracebackType
from typing import Any, Literal

import msgspec

from ...errors import InvalidArgument, KeeperError, LeaseLost
from ...limits import RECIPE_LOOK
from ..client import arguments as check
from ..client.aio import AsyncClient
from ..client.handle import Client
from ..client.operations import Compare, Op
from ..client.results import KeyValue
from ..client.watch import Event
from .faces import (
    Handle,
    Unpicklable,
    bounded,
    drive,
    folder,
    pause,
    quoted,
    seconds_to_live,
    settled,
    spawn,
    unquoted,
)
from .following import AsyncFollowing, Follower, Following
from .line import begin, drop


class Service(msgspec.Struct, frozen=True):
    """A registered service.

    Attributes:
        name: what it registered as.
        address: where it is to be found.
        metadata: whatever it said about itself.
        id: of this registration; a service that registers anew has a greater one.
    """

    name: str
    address: str
    metadata: Any
    id: int


class Change(msgspec.Struct, frozen=True):
    """What happened to a service: it came ``"up"``, ``"changed"`` its address or metadata, or went ``"down"``."""

    type: Literal["up", "changed", "down"]
    service: Service


class _Said(msgspec.Struct):
    address: str
    metadata: Any = None


_decode = msgspec.json.Decoder(_Said).decode


class _Entry:
    """One registration: a key under a lease, renewed with another lease if that one is lost."""

    def __init__(self, space: Handle, name: bytes, ttl: float, text: bytes) -> None:
        self.space = space
        self.name = name
        self.ttl = ttl
        self.text = text
        self.said = b""
        self.over = False
        self.mending = False
        self.lease: Any = None

    @property
    def key(self) -> bytes:
        return self.name + b"%016x" % self.lease.id

    @bounded
    async def register(self) -> None:
        text = self.text

        def saying(id: int) -> Op:
            return Op.txn([], [Op.put(self.name + b"%016x" % id, text, lease=id)])

        lease, _ = await begin(self.space, self.ttl, saying)
        assert lease is not None  # without comparisons
        self.lease, self.said = lease, text
        if self.over:  # meanwhile, by another thread
            await drop(lease)

    async def update(self, text: bytes) -> None:
        self.lease._hub.check_process()  # in a forked child nobody would ever say it
        self.text = text
        await self.say()

    @bounded
    async def say(self) -> None:
        """Have the directory say what this is to say. Nothing happens while it is not registered."""
        text, lease = self.text, self.lease
        if not lease.lost.is_set():
            with contextlib.suppress(LeaseLost):  # just now
                await settled(self.space.txn([Compare.version(self.key) > 0], [Op.put(self.key, text, lease=lease)]))
                self.said = text

    @property
    def well(self) -> bool:
        """Whether it is registered, and the directory says what this is to say."""
        return not self.lease.lost.is_set() and self.said is self.text

    async def mend(self) -> None:
        """Try to make it so."""
        with contextlib.suppress(KeeperError):  # then again, later
            if self.lease.lost.is_set():
                await self.register()
            elif not self.well:
                await self.say()

    async def deregister(self) -> None:
        self.over = True
        await drop(self.lease)


async def _stay(space: Handle, reference: weakref.ref[_Entry]) -> None:
    """Register again what has lost its lease, and say what could not be said. The entry is held weakly: what is
    forgotten is to disappear."""
    while True:
        entry = reference()
        if entry is None or entry.over:
            return
        await entry.mend()
        del entry
        await pause(space, RECIPE_LOOK / 2)


class _Stayers:
    """The same for all registrations of blocking handles, by one thread of the process. What has to be mended, which
    may take long, is mended by a thread of its own."""

    def __init__(self) -> None:
        self._new: queue.SimpleQueue[weakref.ref[_Entry]] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._started = False

    def add(self, entry: _Entry) -> None:
        """Have it stay until it is over, or forgotten."""
        self._new.put(weakref.ref(entry))
        if not self._started:
            with self._starting:
                if not self._started:
                    threading.Thread(target=self._run, name="raykeeper-registers", daemon=True).start()
                    self._started = True

    def _run(self) -> None:
        staying: list[weakref.ref[_Entry]] = []
        while True:
            with contextlib.suppress(queue.Empty):
                staying.append(self._new.get(timeout=RECIPE_LOOK / 2 if staying else None))
                continue
            staying = [reference for reference in staying if self._look(reference)]

    def _look(self, reference: weakref.ref[_Entry]) -> bool:
        entry = reference()
        if entry is None or entry.over:
            return False
        if not entry.well and not entry.mending:
            entry.mending = True
            name = f"raykeeper-registers-{entry.name!r}"
            threading.Thread(target=_mend, args=(entry,), name=name, daemon=True).start()
        return True


def _mend(entry: _Entry) -> None:
    try:
        drive(entry.mend())
    finally:
        entry.mending = False


_stayers = _Stayers()


def _in_child() -> None:
    _stayers.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_in_child)


class _Registry:
    def __init__(self, handle: Handle, topic: str | bytes) -> None:
        self.topic = topic
        self.space: Handle = handle.reserved("registry")
        self.folder = folder(handle, topic)

    def text(self, address: object, metadata: object) -> bytes:
        if not isinstance(address, str):
            raise InvalidArgument(f"an address is a str, not {type(address).__name__}")
        check.json("metadata", metadata)
        try:
            return msgspec.json.encode(_Said(address, metadata))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"an address cannot be encoded as UTF-8: {error}") from error

    async def register(self, name: str, address: object, ttl: object, metadata: object) -> _Entry:
        if not isinstance(name, str):
            raise InvalidArgument(f"the name of a service is a str, not {type(name).__name__}")
        entry = _Entry(
            self.space, self.folder + quoted(name) + b"/", seconds_to_live(ttl), self.text(address, metadata)
        )
        await entry.register()
        if isinstance(self.space, AsyncClient):
            spawn(self.space, _stay(self.space, weakref.ref(entry)), f"raykeeper-registers-{name!r}")
        else:
            _stayers.add(entry)
        return entry

    async def lookup(self, name: str | None) -> list[Service]:
        under = self.folder + (b"" if name is None else quoted(name) + b"/")
        listing = await settled(self.space.range(prefix=under, sort="create_revision"))
        return [self.service(item) for item in listing]

    def service(self, item: KeyValue) -> Service:
        name = unquoted(item.key[len(self.folder) :].partition(b"/")[0])
        said = _decode(item.raw)
        return Service(name.decode(errors="replace"), said.address, said.metadata, item.create_revision)


class _Directory(Follower[Change]):
    """A watcher's copy of the directory, for telling what changed."""

    def __init__(self, registry: _Registry) -> None:
        super().__init__(registry.space, registry.folder)
        self._registry = registry
        self._known: dict[bytes, Service] = {}

    def present(self, items: list[KeyValue]) -> None:
        here = {item.key for item in items}
        for key in [key for key in self._known if key not in here]:
            self._gone(key)
        for item in items:
            self._here(item)

    def changed(self, event: Event) -> None:
        if event.type == "put":
            self._here(event.kv)
        else:
            self._gone(event.kv.key)

    def _here(self, item: KeyValue) -> None:
        service, known = self._registry.service(item), self._known.get(item.key)
        if service != known:
            self._known[item.key] = service
            self.ready.append(Change("up" if known is None else "changed", service))

    def _gone(self, key: bytes) -> None:
        service = self._known.pop(key, None)
        if service is not None:
            self.ready.append(Change("down", service))


class _RegistrationFace(Unpicklable):
    def __init__(self, registry: _Registry, entry: _Entry) -> None:
        self._registry = registry
        self._entry = entry

    @property
    def registered(self) -> bool:
        """Whether it can be found, as far as is known here."""
        return not self._entry.over and not self._entry.lease.lost.is_set()


class Registration(_RegistrationFace):
    """A service's place in the directory, while this object lives; a context manager that ends it."""

    def update(self, address: str, metadata: Any = None) -> None:
        """Say something else. While it is not registered, it is what it will say when it is again.

        Raises:
            Unavailable, RequestTimeout: the cluster cannot be reached; it goes on being told in the background.
            ForkedProcess: it is the parent's, who alone can say something else.
        """
        drive(self._entry.update(self._registry.text(address, metadata)))

    def deregister(self) -> None:
        """Be gone at once, and stay so."""
        drive(self._entry.deregister())

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.deregister()


class AsyncRegistration(_RegistrationFace):
    """The same as ``Registration`` for asyncio."""

    async def update(self, address: str, metadata: Any = None) -> None:
        """See ``Registration.update``."""
        await self._entry.update(self._registry.text(address, metadata))

    async def deregister(self) -> None:
        """See ``Registration.deregister``."""
        await self._entry.deregister()

    async def __aenter__(self) -> AsyncRegistration:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.deregister()


class Registry(Unpicklable):
    """A directory of services; see the module."""

    def __init__(self, client: Client, topic: str | bytes) -> None:
        self._registry = _Registry(client, topic)

    def register(self, name: str, address: str, ttl: float = 10, metadata: Any = None) -> Registration:
        """Enter a service into the directory, and keep it there.

        Args:
            ttl: seconds after which it is gone if it died.
            metadata: anything that JSON can say.
        """
        return Registration(self._registry, drive(self._registry.register(name, address, ttl, metadata)))

    def lookup(self, name: str | None = None) -> list[Service]:
        """The services of that name, or all of the topic, in the order in which they came."""
        return drive(self._registry.lookup(name))

    def watch(self) -> Following[Change]:
        """Those that are there, then every change. An iterator that waits for ever; its ``next(timeout)`` does not, and
        ``cancel()`` ends it."""
        return Following(_Directory(self._registry))


class AsyncRegistry(Unpicklable):
    """A directory of services for asyncio; see the module and ``Registry``."""

    def __init__(self, client: AsyncClient, topic: str | bytes) -> None:
        self._registry = _Registry(client, topic)

    async def register(self, name: str, address: str, ttl: float = 10, metadata: Any = None) -> AsyncRegistration:
        """See ``Registry.register``."""
        return AsyncRegistration(self._registry, await self._registry.register(name, address, ttl, metadata))

    async def lookup(self, name: str | None = None) -> list[Service]:
        """See ``Registry.lookup``."""
        return await self._registry.lookup(name)

    def watch(self) -> AsyncFollowing[Change]:
        """See ``Registry.watch``."""
        return AsyncFollowing(_Directory(self._registry))
