"""etcd's Maintenance.Snapshot: a backup of the cluster, streamed by the member that the proxy speaks for.

It is a file of our own format, not of etcd's. As clients of etcd expect, it is filled up to a multiple of 512 bytes,
and ends in the SHA-256 of all before: ``etcdctl snapshot save`` takes it, and so does ``raykeeper restore``.

The next part is read from the member only when the client has taken the one before, so no more than one is in memory.

A member holds one backup at a time. So it has heard that one is over before the client has the last part. A call that
ends early, even before its backup is made, leaves that to a task, for which the next call waits in its own time.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from ...limits import BACKUP_BLOCK_BYTES, BACKUP_IDLE_S, BACKUP_TIMEOUT_S, PROXY_SNAPSHOT_BYTES, PROXY_SNAPSHOT_STALL_S
from ..client.aio_timeout import cancel_if_possible
from .etcd_backend import EtcdBackend, StreamContext
from .etcd_errors import TIMED_OUT
from .etcdpb.cluster_pb2 import SnapshotResponse
from .maintenance_service import ETCD_VERSION
from .member_calls import BackupRead, MemberCalls

T = TypeVar("T")


class SnapshotService:
    """Answers requests with bytes; see the module."""

    def __init__(self, backend: EtcdBackend, calls: MemberCalls) -> None:
        self._backend = backend
        self._calls = calls
        self._under_way: set[asyncio.Task[Any]] = set()
        """They go on without their callers. The loop itself holds tasks weakly."""
        self._ending: set[asyncio.Task[None]] = set()
        """Those of them that end a backup which nobody wants any more, once it is made."""

    async def snapshot(self, stream: StreamContext) -> None:
        """Stream a backup, which holds all that was acknowledged before the call."""
        await stream.receive()
        backup = await self._begin(time.monotonic() + min(stream.time_left(), BACKUP_TIMEOUT_S))
        try:
            left = len(backup.head) + backup.image_bytes
            left += -left % BACKUP_BLOCK_BYTES
            digest = hashlib.sha256()
            async for blob in self._blobs(backup, left):
                digest.update(blob)
                left -= len(blob)
                await self._send(stream, SnapshotResponse(remaining_bytes=left, blob=blob), backup)
        except (Exception, asyncio.CancelledError):
            # Not GeneratorExit: then the loop has ended, and the garbage collector ends this in any thread, under any
            # lock. The member drops a backup by itself when nobody asks for it.
            await asyncio.shield(self._end(backup))
            raise
        await asyncio.shield(self._end(backup))
        await self._send(stream, SnapshotResponse(blob=digest.digest()))

    async def _begin(self, deadline: float) -> BackupRead:
        """Have a backup made, after those that are not wanted any more have ended. If the caller goes before it is
        made, it is ended when it is made.

        Args:
            deadline: by ``time.monotonic``.

        Raises:
            RpcError: the others have not ended in time, or the member does not make one.
        """
        while self._ending:
            if not (patience := deadline - time.monotonic()) > 0:
                raise TIMED_OUT.error()
            await asyncio.wait(self._ending, timeout=patience)
        patience = max(0.0, deadline - time.monotonic())
        making = self._start(self._calls.begin_backup(self._backend.member, time.time(), patience))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            self._start_ending(self._end_when_made(making))
            raise

    async def _end_when_made(self, making: asyncio.Task[BackupRead]) -> None:
        await asyncio.wait({making})
        if not making.cancelled() and making.exception() is None:
            await self._calls.end_backup(making.result())

    def _end(self, backup: BackupRead) -> asyncio.Task[None]:
        """Have the member drop a backup: it takes seconds at most, and goes on if nobody waits."""
        return self._start_ending(self._calls.end_backup(backup))

    def _start_ending(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        ending = self._start(work)
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _blobs(self, backup: BackupRead, size: int) -> AsyncIterator[bytes]:
        """The file up to its digest, in parts."""
        yield backup.head
        offset = 0
        while offset < backup.image_bytes:
            part = await self._calls.read_backup(backup, offset, PROXY_SNAPSHOT_BYTES)
            offset += len(part)
            yield part
        rest = size - len(backup.head) - backup.image_bytes
        if rest:
            yield bytes(rest)

    async def _send(self, stream: StreamContext, message: SnapshotResponse, backup: BackupRead | None = None) -> None:
        """Send a part. While the client is slow to take it, the member is told that the backup is still needed, if it
        is."""
        message.version = ETCD_VERSION
        sent = asyncio.ensure_future(stream.send(message.SerializeToString()))
        waited = 0.0
        try:
            while True:
                await asyncio.wait({sent}, timeout=BACKUP_IDLE_S / 3)
                if sent.done():
                    break
                waited += BACKUP_IDLE_S / 3
                if waited >= PROXY_SNAPSHOT_STALL_S:
                    raise TIMED_OUT.error()
                if backup is not None:
                    await self._calls.read_backup(backup, 0, 1)
        finally:
            cancel_if_possible(sent)
        await sent
