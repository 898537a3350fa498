"""What an etcd client says of a call in its metadata, apart from who it is (etcd: v3rpc/interceptor.go).

``hasleader: true`` asks that the call fail at once while the cluster has no leader, and that a stream end when it has
had none for three election timeouts: so the client goes elsewhere. ``client-api-version`` says which version of the API
the client speaks; it must be text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from ...limits import PROXY_LEADERLESS_TIMEOUTS
from ..client.aio_timeout import within
from .etcd_backend import EtcdBackend
from .etcd_errors import INVALID_CLIENT_VERSION, NO_LEADER
from .member_calls import MemberCalls

_HAS_LEADER = "hasleader"
_VERSION = "client-api-version"


class CallConditions:
    """Whether the calls to one proxy may be served, by what their metadata ask."""

    def __init__(self, backend: EtcdBackend, calls: MemberCalls) -> None:
        self._backend = backend
        self._calls = calls
        self._streams: set[asyncio.Future[None]] = set()
        """One for each stream that needs a leader; done when there is none."""
        self._look: asyncio.Task[None] | None = None
        """Looks for the leader, on behalf of all streams, while there are some."""

    def are_met_by(self, metadata: Mapping[str, str]) -> bool:
        """Whether nothing has to be checked, as for most calls."""
        return _HAS_LEADER not in metadata and metadata.get(_VERSION, "").isascii()

    async def check(self, metadata: Mapping[str, str]) -> None:
        """Return if the call may be served.

        Raises:
            RpcError: it may not.
        """
        try:
            metadata.get(_VERSION, "").encode("latin-1").decode()
        except UnicodeError:
            raise INVALID_CLIENT_VERSION.error() from None
        if needs_leader(metadata) and not await self._calls.has_leader():
            raise NO_LEADER.error()

    async def while_led(self, serving: Coroutine[Any, Any, None]) -> None:
        """Serve a stream, but end it when the cluster has lost its leader.

        Raises:
            RpcError: NO_LEADER, or as the stream ends.
        """
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._streams.add(lost)
        if self._look is None or self._look.done():
            self._look = asyncio.ensure_future(self._look_for_leader())
        task = asyncio.ensure_future(serving)
        try:
            await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _ended(task)
            raise
        finally:
            self._streams.discard(lost)
            if not self._streams and self._look is not None:
                self._look.cancel()
                self._look = None  # it is done only when the loop runs next
        if task.done():
            task.result()
            return
        await _ended(task)
        raise NO_LEADER.error()

    async def _look_for_leader(self) -> None:
        without = 0
        while self._streams:
            timeout = self._backend.hub.timings.election_timeout
            await asyncio.sleep(timeout)
            look = asyncio.ensure_future(self._calls.has_leader())
            led = await within(timeout, look) and look.result()
            without = 0 if led else without + 1
            if without >= PROXY_LEADERLESS_TIMEOUTS:
                for lost in self._streams:
                    if not lost.done():
                        lost.set_result(None)


def needs_leader(metadata: Mapping[str, str]) -> bool:
    """Whether a call is to fail without a leader."""
    return metadata.get(_HAS_LEADER) == "true"


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
