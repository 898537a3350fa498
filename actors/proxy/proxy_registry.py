"""The directory of a cluster's proxies: where each one is, and which member it speaks for.

etcd's clients learn the endpoints of a cluster from its list of members, each with its client URLs. A member of
RayKeeper has no URL, so each proxy speaks for one member and gives that its own. It says so in a key of the reserved
space, under a lease: a proxy that dies disappears with its lease, and any proxy can name all of them.

A proxy on a voter's node speaks for that voter, or for one of those there, however many others do: so ``/readyz`` of
each member's node is that member's own, and what counts ready nodes counts members. Its voter is its own also while it
is not there yet. Proxies on other nodes spread over all voters by themselves, and so do those of one node over the
voters there. A new one takes a voter with the fewest proxies. It moves when its member is no voter any more, when a
voter has come to its node, or when another of its voters has at least two proxies less than its own and it is the
youngest of its kind (near or not) there: one at a time moves, and no two move for the same reason. A write is void if
any entry has changed since it was decided, so proxies that start together do not choose alike.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from contextlib import suppress
from typing import NamedTuple

import msgspec

from ...errors import KeeperError
from ...limits import (
    MAX_PROXY_REGISTRATION_TRIES,
    PROXY_DEREGISTER_S,
    PROXY_REGISTRATION_TTL_S,
    PROXY_REGISTRY_CHECK_S,
    PROXY_REGISTRY_TIMEOUT_S,
)
from ...schema.portable import Portable
from ..client.aio import AsyncKeyValueClient
from ..client.leases import AsyncLease
from ..client.txn_parts import Compare, Op
from ..logs import MemberLog
from .rpc_status import RpcError

PROXIES = "proxies"
"""The area of the reserved space."""


class ProxyEntry(Portable, frozen=True):
    """One proxy, as the directory has it."""

    url: str
    """What clients reach it by."""
    member: int
    """Id of the member that it speaks for."""
    node: str = ""
    """Id of its Ray node."""
    pid: int = 0
    name: str = ""
    """Of its actor, without the cluster's; empty for one in the foreground."""
    near: bool = False
    """Whether the member belongs on its node."""


class ListedProxy(NamedTuple):
    """One entry, and the revision of its registration: a proxy with a lower one is older."""

    key: bytes
    since: int
    lease: int
    entry: ProxyEntry


_decode = msgspec.msgpack.Decoder(ProxyEntry).decode


def read_entry(value: bytes) -> ProxyEntry | None:
    """An entry; ``None`` if the value is not one."""
    try:
        return _decode(value)
    except msgspec.MsgspecError:
        return None


def choose_member(voters: Collection[int], taken: Sequence[int], near: Set[int]) -> int:
    """The voter for a new proxy; 0 if there is none.

    Args:
        taken: the members that the others speak for.
        near: members on this node; a voter among them comes before all others.
    """
    load = Counter(taken)
    return min(_eligible(voters, near), key=lambda voter: (load[voter], voter), default=0)


def must_move(own: ListedProxy, others: Sequence[ListedProxy], voters: Collection[int], near: Set[int]) -> bool:
    """Whether a registered proxy has to speak for another member, or has to say that its member is near, or is not."""
    member, eligible = own.entry.member, _eligible(voters, near)
    if member not in eligible:
        return bool(eligible)
    if own.entry.near is not (member in near):
        return True
    load = Counter(each.entry.member for each in (own, *others))
    if load[member] - min(load[voter] for voter in eligible) < 2:
        return False
    kind = (
        member,
        own.entry.near,
    )  # one that is near has fewer voters to move to, or none, and keeps no other from moving
    return all(each.since < own.since for each in others if (each.entry.member, each.entry.near) == kind)


def _eligible(voters: Collection[int], near: Set[int]) -> Collection[int]:
    return [voter for voter in voters if voter in near] or voters


class ProxyRegistry:
    """One proxy's place in the directory, and its view of all of them. Made and used on the proxy's event loop.

    Args:
        handle: a client's.
        entry: what to register; its member is chosen here.
        voters: returns the ids of the members that vote.
        near: returns the ids of the members that belong on this process's node, as known after ``voters``.
        on_member: told which member the proxy speaks for from now on.
        log: for an operator.
    """

    def __init__(
        self,
        handle: AsyncKeyValueClient,
        entry: ProxyEntry,
        voters: Callable[[], Awaitable[Collection[int]]],
        near: Callable[[], Set[int]],
        on_member: Callable[[int], None],
        log: MemberLog,
    ) -> None:
        self._space = handle.reserved(PROXIES).with_timeout(PROXY_REGISTRY_TIMEOUT_S)
        self._key = secrets.token_hex(8).encode()
        self._entry = entry
        self._voters = voters
        self._near = near
        self._on_member = on_member
        self._log = log
        self._lease: AsyncLease | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register, and stay registered. If the cluster cannot be reached now, that is done as soon as it can."""
        await self._check_or_log()
        self._task = asyncio.get_running_loop().create_task(self._stay())

    async def close(self) -> None:
        """Deregister; if the cluster cannot be reached soon, the entry goes with its lease."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._lease is not None:
            with suppress(KeeperError):
                await self._lease.revoke(timeout=PROXY_DEREGISTER_S)
            self._lease = None

    async def urls(self, linearizable: bool) -> Mapping[int, Sequence[str]]:
        """For each member the URLs of the proxies that speak for it, this one's first.

        If the directory cannot be read, only this proxy is known.
        """
        found: dict[int, list[str]] = {self._entry.member: [self._entry.url]}
        with suppress(KeeperError):
            _, listed = await self._list(serializable=not linearizable)
            for each in listed:
                known = found.setdefault(each.entry.member, [])
                if each.key != self._key and each.entry.url not in known:
                    known.append(each.entry.url)
        return found

    async def check(self) -> None:
        """Register, or move, if that is due.

        Raises:
            KeeperError, RpcError: the cluster cannot be reached.
        """
        if self._lease is None or self._lease.lost.is_set():
            self._lease = await self._space.lease(PROXY_REGISTRATION_TTL_S)
        voters = await self._voters()
        for _ in range(MAX_PROXY_REGISTRATION_TRIES):  # while others are faster
            if await self._settle(self._lease, voters):
                return

    async def _settle(self, lease: AsyncLease, voters: Collection[int]) -> bool:
        """Write the entry if it has to be written; ``False`` if another one was written in between."""
        revision, listed = await self._list(serializable=False)
        others = [each for each in listed if each.key != self._key]
        own = next((each for each in listed if each.key == self._key), None)
        near = self._near()
        if own is not None and own.lease == lease.id and not must_move(own, others, voters, near):
            return True
        member = choose_member(voters, [each.entry.member for each in others], near)
        if not member:
            return True
        entry = msgspec.structs.replace(self._entry, member=member, near=member in near)
        unchanged = Compare.mod_revision(prefix=b"") < revision + 1
        put = Op.put(self._key, msgspec.msgpack.encode(entry), lease=lease)
        if not (await self._space.txn([unchanged], [put])).succeeded:
            return False
        self._entry = entry
        self._on_member(member)
        self._log.info("%s speaks for m%d", entry.url, member)
        return True

    async def _list(self, *, serializable: bool) -> tuple[int, list[ListedProxy]]:
        """All entries, and the revision of the store at which they were read."""
        listed = await self._space.range(prefix=b"", serializable=serializable)
        entries = ((item, read_entry(item.raw)) for item in listed)
        found = [ListedProxy(item.key, item.create_revision, item.lease, entry) for item, entry in entries if entry]
        return listed.revision, found

    async def _stay(self) -> None:
        while True:
            await asyncio.sleep(PROXY_REGISTRY_CHECK_S)
            await self._check_or_log()

    async def _check_or_log(self) -> None:
        try:
            await self.check()
        except (KeeperError, RpcError) as error:
            self._log.warning("is not registered: %s", error)
        except Exception as error:  # whatever it is, the proxy serves, and tries again
            self._log.log(logging.ERROR, "the registration failed", exc_info=error)
