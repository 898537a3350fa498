"""What is in use of the locks, queues and the like of a cluster: who holds, who waits, and what is stuck. For people.

The keys of a recipe lie under its area and then its name (``schema/key_spaces.py``). The names are found one after the
other, by reading the first key after each: so a queue with a million items costs no more than an empty lock. Of each
name, the keys of those that hold and wait are read, and then who made the leases that these hang on. The answers are
of different moments, so somebody who has just come or gone may be missing.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from ...errors import InvalidArgument
from ...limits import IN_USE_PARTICIPANTS, STUCK_FRACTION
from .. import arguments as check
from ..client.client_info import Owner
from ..client.leases import LeaseInfo
from ..client.results import END, KeyValue, RangeResult
from .sync_async import AnyHandle, bounded, quoted, resolved, unquoted
from .weights import holders_by_weight, weight_of

RecipeKind = Literal["lock", "rwlock", "semaphore", "election", "queue", "barrier", "registry"]
KINDS: tuple[RecipeKind, ...] = get_args(RecipeKind)


class Participant(msgspec.Struct, frozen=True):
    """One that holds, or waits for, what has a name.

    Attributes:
        token: the revision that created its key: its place in the line, and its fencing token.
        what: for an election what it campaigned with, for a queue the item's key, for a registry the service and its
            address, for an rwlock ``"read"`` or ``"write"``; otherwise empty.
        owner: the process, its Ray actor, task and job, and since when; ``None`` if that is not known.
        ttl: of its lease, in seconds; 0 if that has just ended.
        remaining: seconds that its lease has left.
        stuck: why it is thought to be stuck; empty if it is not.
        weight: of a semaphore, how many slots it takes; otherwise 1.
        lease: the id of that lease. Who revokes it ends what hangs on it.
    """

    token: int
    what: str
    owner: Owner | None
    ttl: float
    remaining: float
    stuck: str = ""
    weight: int = 1
    lease: int = 0


class InUse(msgspec.Struct, frozen=True):
    """What is in use under one name.

    Attributes:
        kind: the recipe.
        name: its name, with the namespace of the handle that uses it before it.
        holders: who holds it, in order: of a queue, who has claimed items; of a registry, the services.
        waiters: who waits, in order.
        size: of a semaphore its limit, of a barrier its parties, of a queue its items; otherwise 0.
        more: whether there are more holders or waiters than these.
        stuck: why it is thought to be stuck; empty if it is not.
    """

    kind: str
    name: bytes
    holders: tuple[Participant, ...]
    waiters: tuple[Participant, ...]
    size: int = 0
    more: bool = False
    stuck: str = ""


class _Line:
    """The keys of one name, as far as they were read."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.holders: list[KeyValue] = []
        self.waiters: list[KeyValue] = []
        self.size = 0
        self.more = False


class Survey:
    """Looks at all names of one kind.

    Args:
        handle: only names in its namespace are looked at.
    """

    def __init__(self, handle: AnyHandle, kind: object, most: object) -> None:
        if kind not in KINDS:
            raise InvalidArgument(f"{check.shown(kind)} is not one of {', '.join(KINDS)}")
        self.kind: str = check.text("a kind", kind)
        self._most = check.whole_number("a number of names", most, 1)
        self.space: AnyHandle = handle.reserved(self.kind)
        self._begin = quoted(handle.prefix) if handle.prefix else b""
        self.reads = 0
        """Reads so far, each of one range or key."""

    @bounded
    async def look(self) -> list[InUse]:
        """What is in use, by name."""
        lines = [line for name in await self._names() if (line := await self._line(name)) is not None]
        keys = [key for line in lines for key in (*line.holders, *line.waiters)]
        infos = await resolved(self.space._lease_infos(sorted({key.lease for key in keys if key.lease})))
        return [self._described(line, infos) for line in lines]

    def _one_read(self) -> AnyHandle:
        self.reads += 1
        return self.space

    async def _names(self) -> list[bytes]:
        """The folders of all names, quoted, with the slash after them."""
        names: list[bytes] = []
        key = self._begin
        while len(names) < self._most:
            found = await resolved(self._one_read().range(key, END, limit=1, keys_only=True))
            if not found.items or not found.items[0].key.startswith(self._begin):
                break
            name, slash, _ = found.items[0].key.partition(b"/")
            if slash:  # beside the folders nothing is kept
                names.append(name + b"/")
            key = name + b"0"  # the character after the slash
        return names

    async def _keys(self, prefix: bytes) -> RangeResult:
        return await resolved(self._one_read().range(prefix=prefix, sort="create_revision", limit=IN_USE_PARTICIPANTS))

    async def _line(self, name: bytes) -> _Line | None:
        """The keys of one name; ``None`` if nobody is there."""
        line = _Line(name)
        if self.kind == "registry":
            found = await self._keys(name)
            line.holders, line.more = list(found), found.more
        elif self.kind == "queue":
            claims, waiting = await self._keys(name + b"c/"), await self._keys(name + b"w/")
            line.holders, line.waiters, line.more = list(claims), list(waiting), claims.more or waiting.more
            line.size = (await resolved(self._one_read().range(prefix=name + b"i/", count_only=True))).count
        else:
            found = await self._keys(name + b"p/")
            line.more = found.more
            await self._divide(line, list(found))
        return line if line.holders or line.waiters or line.size else None

    async def _divide(self, line: _Line, keys: list[KeyValue]) -> None:
        """Who of a line holds, and who waits."""
        holding = min(1, len(keys))
        if self.kind == "semaphore":
            limit = await resolved(self._one_read().get(line.name + b"limit"))
            weights = [weight_of(key.key) for key in keys]
            line.size = _number(limit.text if limit is not None else "", sum(weights))
            holding = holders_by_weight(weights, line.size)
        elif self.kind == "rwlock":
            readers = [_kind(key.key) == b"r" for key in keys]
            holding = readers.index(False) if False in readers else len(keys)
            holding = holding or min(1, len(keys))
        elif self.kind == "barrier":
            gate = await resolved(self._one_read().get(line.name + b"gate"))
            opened = _number(gate.text if gate is not None else "", 0)
            keys, holding = [key for key in keys if key.create_revision > opened], 0
            line.size = _number(_kind(keys[0].key).decode(errors="replace"), 0) if keys else 0
        line.holders, line.waiters = keys[:holding], keys[holding:]

    def _described(self, line: _Line, infos: dict[int, LeaseInfo]) -> InUse:
        holders = tuple([self._participant(line, key, infos.get(key.lease)) for key in line.holders])
        waiters = tuple([self._participant(line, key, infos.get(key.lease)) for key in line.waiters])
        stuck = next((each.stuck for each in (*holders, *waiters) if each.stuck), "")
        return InUse(self.kind, unquoted(line.name[:-1]), holders, waiters, line.size, line.more, stuck)

    def _participant(self, line: _Line, key: KeyValue, info: LeaseInfo | None) -> Participant:
        what = ""
        weight = weight_of(key.key) if self.kind == "semaphore" else 1
        if self.kind == "election":
            what = key.raw.decode(errors="backslashreplace")
        elif self.kind == "queue":
            what = key.key[len(line.name) + 2 :].decode(errors="backslashreplace")
        elif self.kind == "registry":
            service = unquoted(key.key[len(line.name) :].partition(b"/")[0]).decode(errors="backslashreplace")
            what = f"{service} {_address(key.raw)}"
        elif self.kind == "rwlock":
            what = "read" if _kind(key.key) == b"r" else "write"
        if info is None:
            ended = "its lease has just ended"
            return Participant(key.create_revision, what, None, 0.0, 0.0, ended, weight, key.lease)
        left = info.remaining
        return Participant(key.create_revision, what, info.owner, info.ttl, left, why_stuck(info), weight, key.lease)


def why_stuck(info: LeaseInfo) -> str:
    """Why the process that made a lease is thought to be stuck, in one line; empty if it is not.

    A client keeps its leases alive every third of their TTL. One that has not for much longer is dead, stopped, or cut
    off: what it holds is free when the lease ends.
    """
    silent = info.ttl - info.remaining
    if silent > STUCK_FRACTION * info.ttl:
        return f"silent for {silent:.1f} s, its lease ends in {max(0.0, info.remaining):.1f} s"
    return ""


def _kind(key: bytes) -> bytes:
    """What the name of a ticket begins with, before the id of its lease, which has 16 digits."""
    return key.rpartition(b"/")[2][:-16]


_MOST_DIGITS = 18
"""Of a number; what is longer, another program has written."""


def _number(text: str, otherwise: int) -> int:
    """The first whole number in a text."""
    for word in text.replace("-", " ").split():
        if word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS:
            return int(word)
    return otherwise


def _address(raw: bytes) -> str:
    try:
        found = msgspec.json.decode(raw)
        return str(found["address"])
    except (msgspec.MsgspecError, RecursionError, TypeError, KeyError):
        return ""
