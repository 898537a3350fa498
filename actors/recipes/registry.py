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
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Literal

import msgspec

from ...errors import CompactedError, InvalidArgument, KeeperError
from ...limits import RECIPE_LOOK
from ..client.aio import AsyncClient
from ..client.handle import Client
from ..client.operations import Compare, Op
from ..client.results import KeyValue
from .faces import (
    Handle,
    Unpicklable,
    drive,
    folder,
    leased,
    news,
    patiently,
    pause,
    quoted,
    seconds_to_live,
    settled,
    spawn,
    stop,
    unquoted,
    watching,
)
from .line import drop


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
        self.over = False
        self.lease: Any = None

    @property
    def key(self) -> bytes:
        return self.name + b"%016x" % self.lease.id

    async def register(self) -> None:
        lease = await leased(self.space, self.ttl)
        try:
            text = self.text
            await settled(self.space.put(self.name + b"%016x" % lease.id, text, lease=lease))
        except BaseException:
            await drop(lease)
            raise
        self.lease = lease
        if self.over:  # meanwhile, by another thread
            await drop(lease)
        elif self.text is not text:  # so was this
            await self.update(self.text)

    async def update(self, text: bytes) -> None:
        self.text = text
        await settled(self.space.txn([Compare.version(self.key) > 0], [Op.put(self.key, text, lease=self.lease)]))

    async def deregister(self) -> None:
        self.over = True
        await drop(self.lease)


async def _stay(space: Handle, reference: weakref.ref[_Entry]) -> None:
    """Register again what has lost its lease. The entry is held weakly: what is forgotten is to disappear."""
    while True:
        entry = reference()
        if entry is None or entry.over:
            return
        if entry.lease.lost.is_set():
            with contextlib.suppress(KeeperError):  # then again, later
                await entry.register()
        del entry
        await pause(space, RECIPE_LOOK / 2)


class _Registry:
    def __init__(self, handle: Handle, topic: str | bytes) -> None:
        self.topic = topic
        self.space: Handle = handle.reserved("registry")
        self.folder = folder(handle, topic)

    def text(self, address: object, metadata: object) -> bytes:
        if not isinstance(address, str):
            raise InvalidArgument(f"an address is a str, not {type(address).__name__}")
        try:
            return msgspec.json.encode(_Said(address, metadata))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"metadata must be what JSON can say: {error}") from error

    async def register(self, name: str, address: object, ttl: object, metadata: object) -> _Entry:
        if not isinstance(name, str):
            raise InvalidArgument(f"the name of a service is a str, not {type(name).__name__}")
        entry = _Entry(
            self.space, self.folder + quoted(name) + b"/", seconds_to_live(ttl), self.text(address, metadata)
        )
        await entry.register()
        spawn(self.space, _stay(self.space, weakref.ref(entry)), f"raykeeper-registers-{name!r}")
        return entry

    async def lookup(self, name: str | None) -> list[Service]:
        under = self.folder + (b"" if name is None else quoted(name) + b"/")
        listing = await settled(self.space.range(prefix=under, sort="create_revision"))
        return [self.service(item) for item in listing]

    def service(self, item: KeyValue) -> Service:
        name = unquoted(item.key[len(self.folder) :].partition(b"/")[0])
        said = _decode(item.raw)
        return Service(name.decode(errors="replace"), said.address, said.metadata, item.create_revision)


class _Directory:
    """A watcher's copy of the directory, for telling what changed."""

    def __init__(self, registry: _Registry) -> None:
        self._registry = registry
        self._known: dict[bytes, Service] = {}
        self._changes: deque[Change] = deque()
        self._watch: Any = None

    async def next(self) -> Change:
        while not self._changes:
            if self._watch is None:
                await self._look()
            else:
                await self._follow()
        return self._changes.popleft()

    async def _look(self) -> None:
        space, folder = self._registry.space, self._registry.folder
        listing = await patiently(
            space, lambda: settled(space.range(prefix=folder, sort="create_revision")), lambda: True
        )
        self._watch = await watching(space, prefix=folder, start_revision=listing.revision + 1)
        here = {item.key for item in listing}
        for key in [key for key in self._known if key not in here]:
            self._gone(key)
        for item in listing:
            self._here(item)

    async def _follow(self) -> None:
        try:
            event = await news(self._watch, RECIPE_LOOK)
        except CompactedError:
            await self.close()
            return
        if event is not None:
            if event.type == "put":
                self._here(event.kv)
            else:
                self._gone(event.kv.key)

    def _here(self, item: KeyValue) -> None:
        service, known = self._registry.service(item), self._known.get(item.key)
        if service != known:
            self._known[item.key] = service
            self._changes.append(Change("up" if known is None else "changed", service))

    def _gone(self, key: bytes) -> None:
        service = self._known.pop(key, None)
        if service is not None:
            self._changes.append(Change("down", service))

    async def close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            await stop(watch)


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
        """Say something else. While it is not registered, it is what it will say when it is again."""
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

    def watch(self) -> Iterator[Change]:
        """Those that are there, then every change, for ever."""
        directory = _Directory(self._registry)
        try:
            while True:
                yield drive(directory.next())
        finally:
            drive(directory.close())


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

    async def watch(self) -> AsyncIterator[Change]:
        """See ``Registry.watch``."""
        directory = _Directory(self._registry)
        try:
            while True:
                yield await directory.next()
        finally:
            await directory.close()
