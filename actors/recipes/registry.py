"""Service registration and discovery: services are listed as long as they live.

::

    registry = client.registry("search")
    with registry.register("ranker", "10.0.0.7:5000", ttl=10, metadata={"zone": "a"}):
        serve()                                     # kept alive in the background

    registry.lookup("ranker")                       # -> [Service(name="ranker", address="10.0.0.7:5000", ...)]
    for change in registry.watch():                 # the present services, then each that comes, changes or goes
        print(change.type, change.service)

Any number of services may register under one name; each registration is one of them.

- *A service dies*, or drops its registration: within the TTL (and a second) it is gone from the directory, and watchers
  see it go.
- *A service is cut off or paused* for longer than its TTL: the same; when it is back, it registers again, unless it has
  deregistered.
- *The cluster cannot be reached*: ``register`` and ``lookup`` raise; ``watch`` waits and goes on where it was.
- *History is compacted while a process watches*: it reads the present and reports the difference, so a service that
  came and went in between is not seen.
"""

from __future__ import annotations

import contextlib
import os
import queue
import weakref
from types import TracebackType
from typing import Any, Literal

import msgspec

from ...errors import DecodeError, InvalidArgument, KeeperError, LeaseLost
from ...limits import RECIPE_CHECK_S
from .. import arguments as check
from ..background import LazyThread
from ..client.aio import AsyncKeyValueClient
from ..client.bindings import binding_of
from ..client.handle import KeyValueClient
from ..client.results import Event, KeyValue
from ..client.txn_parts import Compare, Op
from ..one_thread import OneThread
from .change_stream import AsyncChangeStream, ChangeSource, ChangeStream
from .contenders import drop_lease, leased_txn_or_nothing
from .sync_async import (
    AnyHandle,
    Unpicklable,
    bounded,
    folder,
    pause,
    quoted,
    resolved,
    run_sync,
    seconds_to_live,
    spawn,
    unquoted,
)


class Service(msgspec.Struct, frozen=True):
    """A registered service.

    Attributes:
        name: the name that it registered under.
        address: its address.
        metadata: what it said about itself.
        id: of this registration; a service that registers again has a greater one.
    """

    name: str
    address: str
    metadata: Any
    id: int


class ServiceChange(msgspec.Struct, frozen=True):
    """A change of a service.

    Attributes:
        type: ``"up"``: it has registered; ``"changed"``: its address or metadata; ``"down"``: it is gone.
        service: the service; of one that is gone, as it was last.
    """

    type: Literal["up", "changed", "down"]
    service: Service


class _ServiceData(msgspec.Struct):
    address: str
    metadata: Any = None


_decode = msgspec.json.Decoder(_ServiceData).decode


class _ServiceRecord:
    """One registration: a key under a lease, renewed with another lease if that one is lost."""

    def __init__(self, space: AnyHandle, name: bytes, ttl: float, text: bytes, bound_to: Any = None) -> None:
        binding_of(bound_to)
        self.bound_to = bound_to
        self.space = space
        self.name = name
        self.ttl = ttl
        self.text = text
        self.published = b""
        self.over = False
        self.repairer = OneThread()
        self.lease: Any = None

    @property
    def key(self) -> bytes:
        return self.name + b"%016x" % self.lease.id

    @bounded
    async def register(self) -> None:
        text = self.text

        def registering(id: int) -> Op:
            return Op.txn([], [Op.put(self.name + b"%016x" % id, text, lease=id)])

        lease, _ = await leased_txn_or_nothing(self.space, self.ttl, registering, self.bound_to)
        assert lease is not None  # without comparisons
        self.lease, self.published = lease, text
        if self.over:  # deregistered meanwhile, by another thread
            await drop_lease(lease)

    async def update(self, text: bytes) -> None:
        self.lease._hub.check_process()  # in a forked child it would never be published
        self.text = text
        await self.publish()

    @bounded
    async def publish(self) -> None:
        """Write this service's data into the directory; does nothing while it is not registered."""
        text, lease = self.text, self.lease
        if not lease.lost.is_set():
            with contextlib.suppress(LeaseLost):  # in between
                await resolved(self.space.txn([Compare.version(self.key) > 0], [Op.put(self.key, text, lease=lease)]))
                self.published = text

    @property
    def up_to_date(self) -> bool:
        """Whether it is registered, with the present data."""
        return not self.lease.lost.is_set() and self.published is self.text

    async def repair(self) -> None:
        """Try to register it again, or to publish its data; not if what it is bound to is dead."""
        if self.lease.life_over:
            self.over = True
            return
        with contextlib.suppress(KeeperError):  # it is tried again later
            if self.lease.lost.is_set():
                await self.register()
            elif not self.up_to_date:
                await self.publish()

    async def deregister(self) -> None:
        self.over = True
        await drop_lease(self.lease)


async def _keep_registered(space: AnyHandle, reference: weakref.ref[_ServiceRecord]) -> None:
    """Repair a registration whenever it needs to be; the task for an async handle. It is held weakly, so that one that
    was dropped disappears."""
    while True:
        record = reference()
        if record is None or record.over:
            return
        await record.repair()
        del record
        await pause(space, RECIPE_CHECK_S / 2)


class _RegistrationKeeper:
    """Repairs the registrations of all blocking handles of the process, by one thread. Each repair may take a long
    time, so it has a thread of its own."""

    def __init__(self) -> None:
        self._new: queue.SimpleQueue[weakref.ref[_ServiceRecord]] = queue.SimpleQueue()
        self._thread = LazyThread(self._run, "raykeeper-registers")

    def keep_registered(self, record: _ServiceRecord) -> None:
        """Repair it whenever it needs to be, until it is deregistered or dropped."""
        self._new.put(weakref.ref(record))
        self._thread.ensure_started()

    def _run(self) -> None:
        kept: list[weakref.ref[_ServiceRecord]] = []
        while True:
            with contextlib.suppress(queue.Empty):
                kept.append(self._new.get(timeout=RECIPE_CHECK_S / 2 if kept else None))
                continue
            kept = [reference for reference in kept if self._check(reference)]

    def _check(self, reference: weakref.ref[_ServiceRecord]) -> bool:
        record = reference()
        if record is None or record.over:
            return False
        if not record.up_to_date and not record.repairer.runs:
            record.repairer.start(lambda: run_sync(record.repair()), f"raykeeper-registers-{record.name!r}")
        return True


_registration_keeper = _RegistrationKeeper()


def _in_child() -> None:
    _registration_keeper.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_in_child)


class _Registry:
    def __init__(self, handle: AnyHandle, topic: str | bytes) -> None:
        self.topic = topic
        self.space: AnyHandle = handle.reserved("registry")
        self.folder = folder(handle, topic)

    def text(self, address: object, metadata: object) -> bytes:
        if not isinstance(address, str):
            raise InvalidArgument(f"an address must be a str, not {type(address).__name__}")
        check.json("metadata", metadata)
        try:
            return msgspec.json.encode(_ServiceData(address, metadata))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"an address cannot be encoded as UTF-8: {error}") from error

    async def register(
        self, name: str, address: object, ttl: object, metadata: object, bound_to: Any
    ) -> _ServiceRecord:
        """Register a service, and keep it registered in the background."""
        if not isinstance(name, str):
            raise InvalidArgument(f"the name of a service must be a str, not {type(name).__name__}")
        record = _ServiceRecord(
            self.space, self.folder + quoted(name) + b"/", seconds_to_live(ttl), self.text(address, metadata), bound_to
        )
        await record.register()
        if isinstance(self.space, AsyncKeyValueClient):
            spawn(self.space, _keep_registered(self.space, weakref.ref(record)), f"raykeeper-registers-{name!r}")
        else:
            _registration_keeper.keep_registered(record)
        return record

    async def lookup(self, name: str | None) -> list[Service]:
        prefix = self.folder + (b"" if name is None else quoted(name) + b"/")
        listing = await resolved(self.space.range(prefix=prefix, sort="create_revision"))
        return [self.service(item) for item in listing]

    def service(self, item: KeyValue) -> Service:
        name = unquoted(item.key[len(self.folder) :].partition(b"/")[0])
        try:
            data = _decode(item.raw)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise DecodeError(
                f"an entry of service {name.decode(errors='replace')!r} cannot be read: {error}"
            ) from None
        return Service(name.decode(errors="replace"), data.address, data.metadata, item.create_revision)


class _Directory(ChangeSource[ServiceChange]):
    """A watcher's copy of the directory, from which it knows what changed."""

    def __init__(self, registry: _Registry) -> None:
        super().__init__(registry.space, registry.folder)
        self._registry = registry
        self._known: dict[bytes, Service] = {}

    def on_present(self, items: list[KeyValue]) -> None:
        here = {item.key for item in items}
        for key in [key for key in self._known if key not in here]:
            self._gone(key)
        for item in items:
            self._here(item)

    def on_change(self, event: Event) -> None:
        if event.type == "put":
            self._here(event.kv)
        else:
            self._gone(event.kv.key)

    def _here(self, item: KeyValue) -> None:
        service, known = self._registry.service(item), self._known.get(item.key)
        if service != known:
            self._known[item.key] = service
            self.ready.append(ServiceChange("up" if known is None else "changed", service))

    def _gone(self, key: bytes) -> None:
        service = self._known.pop(key, None)
        if service is not None:
            self.ready.append(ServiceChange("down", service))


class _RegistrationBase(Unpicklable):
    def __init__(self, registry: _Registry, record: _ServiceRecord) -> None:
        self._registry = registry
        self._record = record

    @property
    def registered(self) -> bool:
        """Whether it is in the directory, as far as this process knows."""
        return not self._record.over and not self._record.lease.lost.is_set()


class Registration(_RegistrationBase):
    """a service's entry in the directory, kept as long as this object exists; as a context manager it ends it."""

    def update(self, address: str, metadata: Any = None) -> None:
        """Change the address and metadata. While the service is not registered, they are what it will register with.

        Args:
            address: the new address.
            metadata: anything that JSON can express.

        Raises:
            InvalidArgument: the address is not a ``str``, or JSON cannot express the metadata.
            Unavailable, RequestTimeout: the cluster cannot be reached; the update is tried again in the background.
            ForkedProcess: this process is a forked child; only its parent can update the entry.
        """
        run_sync(self._record.update(self._registry.text(address, metadata)))

    def deregister(self) -> None:
        """Remove the entry, for good. If the cluster cannot be reached, it goes with its TTL."""
        run_sync(self._record.deregister())

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.deregister()


class AsyncRegistration(_RegistrationBase):
    """As ``Registration``, for asyncio."""

    async def update(self, address: str, metadata: Any = None) -> None:
        """See ``Registration.update``."""
        await self._record.update(self._registry.text(address, metadata))

    async def deregister(self) -> None:
        """See ``Registration.deregister``."""
        await self._record.deregister()

    async def __aenter__(self) -> AsyncRegistration:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.deregister()


class Registry(Unpicklable):
    """A directory of services; made by ``client.registry``.

    ::

        registry = client.registry("search")
        with registry.register("ranker", "10.0.0.7:5000", metadata={"zone": "a"}):
            serve()
        registry.lookup("ranker")
    """

    def __init__(self, client: KeyValueClient, topic: str | bytes) -> None:
        self._registry = _Registry(client, topic)

    def register(
        self, name: str, address: str, ttl: float = 10, metadata: Any = None, *, bound_to: Any = None
    ) -> Registration:
        """Enter a service into the directory, and keep it there as long as the returned object exists.

        Args:
            name: the service's name; several services may have the same.
            address: its address, any ``str``.
            ttl: seconds after which its entry is gone if this process dies.
            metadata: anything that JSON can express.
            bound_to: whose death ends the entry before that: ``"process"`` (the default), ``"ttl"`` (nobody's), the
                handle of an actor, ``"job"`` or ``"driver"``, as for ``lease``.

        Raises:
            InvalidArgument: an argument is wrong.
            Unavailable, RequestTimeout: the cluster cannot be reached.
        """
        return Registration(self._registry, run_sync(self._registry.register(name, address, ttl, metadata, bound_to)))

    def lookup(self, name: str | None = None) -> list[Service]:
        """The services of that name, in the order of their registration; ``None`` for all of the topic.

        Raises:
            Unavailable, RequestTimeout: the cluster cannot be reached.
        """
        return run_sync(self._registry.lookup(name))

    def watch(self) -> ChangeStream[ServiceChange]:
        """Iterate over the present services, each as ``"up"``, and then over every change.

        The iterator waits forever; its ``next(timeout)`` does not, and ``cancel()`` ends it.
        """
        return ChangeStream(_Directory(self._registry))


class AsyncRegistry(Unpicklable):
    """As ``Registry``, for asyncio."""

    def __init__(self, client: AsyncKeyValueClient, topic: str | bytes) -> None:
        self._registry = _Registry(client, topic)

    async def register(
        self, name: str, address: str, ttl: float = 10, metadata: Any = None, *, bound_to: Any = None
    ) -> AsyncRegistration:
        """See ``Registry.register``."""
        return AsyncRegistration(self._registry, await self._registry.register(name, address, ttl, metadata, bound_to))

    async def lookup(self, name: str | None = None) -> list[Service]:
        """See ``Registry.lookup``."""
        return await self._registry.lookup(name)

    def watch(self) -> AsyncChangeStream[ServiceChange]:
        """See ``Registry.watch``."""
        return AsyncChangeStream(_Directory(self._registry))
