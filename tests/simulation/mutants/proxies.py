"""Wrong versions of a proxy's calls over the store."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from raykeeper.actors.client import view
from raykeeper.actors.client.view import Call, lasting_range, page, rest_of
from raykeeper.actors.proxy import etcd_backend, kv_service
from raykeeper.actors.proxy.etcd_backend import EtcdBackend, KeptLeases
from raykeeper.errors import KeeperError
from raykeeper.schema.answers import RangeAnswer
from raykeeper.schema.operations import Put, Range
from simulation.mutants.registry import mutant, patched, together


@mutant("a linearizable range of a proxy that any member answers", "proxies")
def _any_member() -> AbstractContextManager[None]:
    return patched(kv_service, "lasting_range", lambda command, serializable: lasting_range(command, True))


@mutant("pages of a range that are each of their own revision", "proxies")
def _pages_of_now() -> AbstractContextManager[None]:
    def by_key(command: Range, serializable: bool) -> Any:
        first = answer = yield from page(command, serializable)
        items = list(first.items)
        rest = rest_of(command.keys, answer, command.descending)
        while rest is not None:
            answer = yield from page(Range(rest, command.revision), serializable)
            items += answer.items
            rest = rest_of(rest, answer, command.descending)
        return RangeAnswer(first.revision, tuple(items), len(items))

    return patched(view, "_by_key", by_key)


@mutant("a write of a proxy that is tried again", "proxies")
def _tried_again() -> AbstractContextManager[None]:
    """After a while, in which it may have taken effect."""

    def again(command: Any) -> Any:
        while True:
            try:
                return (yield Call(command))
            except KeeperError as error:
                if error.applied is not None:
                    raise

    write = EtcdBackend.write

    async def write_again(backend: Any, operation: Any, context: Any) -> Any:
        if not isinstance(operation, Put):
            return await write(backend, operation, context)
        return await backend.gather(again(operation), context)

    return together(
        patched(kv_service, "whole_write", again),
        patched(EtcdBackend, "write", write_again),
        patched(etcd_backend, "PROXY_TIMEOUT_S", 0.2),
    )


@mutant("an answer of a proxy under the header of an earlier one", "proxies")
def _header_kept() -> AbstractContextManager[None]:
    """What is used again for each answer is filled once."""
    set_header = EtcdBackend.set_header

    def keep(backend: EtcdBackend, header: Any, revision: int) -> None:
        if not header.revision:
            set_header(backend, header, revision)

    return patched(EtcdBackend, "set_header", keep)


@mutant("a keep-alive of a proxy that asks nobody", "proxies")
def _kept_unasked() -> AbstractContextManager[None]:
    known: dict[int, int] = {}
    original = EtcdBackend.keep_leases

    async def keep_leases(backend: Any, leases: Sequence[int], context: Any) -> KeptLeases:
        kept = None if all(lease in known for lease in leases) else await original(backend, leases, context)
        if kept is not None:
            known.update(zip(leases, kept.ttls, strict=True))
        return KeptLeases([known[lease] for lease in leases], 1)

    return patched(EtcdBackend, "keep_leases", keep_leases)
