"""What is acquired, held and released: the common part of ``lock``, ``rwlock`` and ``semaphore``.

:class:`Holding` is the logic, over either handle; :class:`Held` and :class:`AsyncHeld` are the two faces that a user
sees. They differ in who is waited for, which a subclass of ``Holding`` says in ``turn``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from ...errors import InvalidArgument, RequestTimeout, Unavailable
from ..client.aio import AsyncClient
from ..client.guard import guarded
from ..client.handle import Client
from ..client.operations import Condition
from .faces import Deadline, NotHeld, Unpicklable, drive, whoami
from .line import Contender, Line, Place, head

S = TypeVar("S", bound="Held")
A = TypeVar("A", bound="AsyncHeld")


class Holding:
    """One contender: it holds one place at most, and can go for another once that is released."""

    kind = b""
    """What the names of its keys begin with."""
    chained = True
    """Whether each waits for the one that came directly before it."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.space = line.space
        self._busy = threading.Lock()
        self._place: Place | None = None

    # -- what a subclass says -----------------------------------------------------------------------------------------

    def value(self) -> bytes:
        """What it writes into its key."""
        return whoami()

    async def join(self) -> Place:
        """Take a place in the line."""
        place = await self.line.join(self.value(), self.kind, self.compare(), chained=self.chained)
        if place is None:
            raise InvalidArgument(f"{self.line.name!r} is used in another way by somebody else")
        return place

    def compare(self) -> Sequence[Condition]:
        """What else must hold for a place to be taken."""
        return ()

    async def turn(self, place: Place, deadline: Deadline) -> bool:
        """Wait for its turn; ``False`` when the time is over."""
        return await self.line.turn(place, deadline)

    def left_over(self, place: Place) -> Sequence[bytes]:
        """The keys that nobody needs once nobody is there."""
        return [head(place.under)]

    async def give_back(self, place: Place) -> None:
        """End its turn."""
        await self.line.give_back(place)

    # -- what they share ----------------------------------------------------------------------------------------------

    async def acquire(self, timeout: float | None) -> bool:
        """Take a place and wait for its turn."""
        deadline = Deadline(timeout)
        if not self._busy.acquire(blocking=False):
            raise InvalidArgument("this object holds or awaits its turn already: make one for each contender")
        place, won = None, False
        try:
            with deadline.covering(self.line.space):
                place = await self.join()
                if await self.turn(place, deadline):
                    self.line.alive(place)
                    self.line.keep_an_eye_on(place)
                    self._place, won = place, True  # from now on another thread may release it
                    return True
            return False
        except (RequestTimeout, Unavailable) as error:
            if deadline.cut(error, began=place is not None):
                return False
            raise
        finally:
            if not won:
                self._busy.release()
                if place is not None:
                    await self.line.leave(place, *self.left_over(place))

    async def release(self) -> None:
        """Give back what is held; nothing happens if it was lost before."""
        place, self._place = self._place, None
        if place is None:
            raise InvalidArgument("what is not held cannot be released")
        self._busy.release()
        await self.give_back(place)

    def held(self) -> Place:
        """The place held. Raises ``LockLost`` if there is none."""
        place = self._place
        if place is None:
            raise NotHeld(f"{self.line.name!r} is not held by this object")
        return place

    def lost(self) -> threading.Event:
        """The event of what is held; one that is set if nothing is."""
        place = self._place
        if place is None:
            nothing = threading.Event()
            nothing.set()
            return nothing
        return place.lost


class _Face(Unpicklable):
    """What needs no waiting."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding

    @property
    def name(self) -> str | bytes:
        """The name it was made with."""
        return self._holding.line.name

    @property
    def token(self) -> int:
        """The fencing token: greater than that of every holder before.

        Raises:
            LockLost: nothing is held.
        """
        return self._holding.held().token

    @property
    def held(self) -> bool:
        """Whether it is held, as far as can be known here: ``False`` from the moment that ``lost`` is set."""
        return not self._holding.lost().is_set()

    @property
    def lost(self) -> threading.Event:
        """Set once it can no longer be guaranteed that this is held: by then the TTL is not over yet. Set while nothing
        is held; each acquisition has an event of its own."""
        return self._holding.lost()

    def __repr__(self) -> str:
        place = self._holding._place
        state = "not held" if place is None else f"token {place.token}{', lost' if place.lost.is_set() else ''}"
        return f"<{type(self).__name__} {self.name!r}: {state}>"


class Held(_Face):
    """Something that is acquired, held and released, and a context manager that does so."""

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for one's turn.

        Args:
            timeout: seconds for all of it, ``None`` for ever (then each request on the way has the handle's timeout),
                0 not to wait in line at all (the requests have the handle's timeout together).

        Returns:
            Whether it is held now; if not, no place is left in the line.

        Raises:
            InvalidArgument: this object holds it, or is waiting for it, already.
            LeaseLost: the place in the line was lost: the cluster was out of reach for the TTL.
            Unavailable, RequestTimeout: the cluster cannot be reached.
        """
        return drive(self._holding.acquire(timeout))

    def release(self) -> None:
        """Give it back. If it was lost, or the cluster cannot be told, nothing is raised: the TTL does the rest.

        Raises:
            InvalidArgument: nothing was acquired.
        """
        drive(self._holding.release())

    def guard(self) -> Client:
        """The client again, but every write of it is refused with ``LockLost`` unless this is held under this token.

        Raises:
            LockLost: nothing is held.
        """
        line, place = self._holding.line, self._holding.held()
        assert isinstance(line.handle, Client)
        return guarded(line.handle, line.space, place.key, place.token)

    def __enter__(self: S) -> S:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._holding._place is not None:
            self.release()


class AsyncHeld(_Face):
    """As ``Held``, with coroutines."""

    async def acquire(self, timeout: float | None = None) -> bool:
        """See ``Held.acquire``. Cancelling it leaves no place in the line."""
        return await self._holding.acquire(timeout)

    async def release(self) -> None:
        """See ``Held.release``."""
        await self._holding.release()

    def guard(self) -> AsyncClient:
        """See ``Held.guard``."""
        line, place = self._holding.line, self._holding.held()
        assert isinstance(line.handle, AsyncClient)
        return guarded(line.handle, line.space, place.key, place.token)

    async def __aenter__(self: A) -> A:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._holding._place is not None:
            await self.release()


async def first(line: Line) -> Contender | None:
    """The first of a line."""
    everybody = await line.contenders()
    return everybody[0] if everybody else None
