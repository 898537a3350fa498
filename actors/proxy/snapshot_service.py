"""etcd's Maintenance.Snapshot: a backup of the cluster, streamed by the member that the proxy speaks for.

It is a file of our own format, not of etcd's. As clients of etcd expect, it is filled up to a multiple of 512 bytes,
and ends in the SHA-256 of all before: ``etcdctl snapshot save`` takes it, and so does ``raykeeper restore``.

The next part is read from the member only when the client has taken the one before, so no more than one is in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator

from ...limits import BACKUP_BLOCK_BYTES, BACKUP_IDLE_S, BACKUP_TIMEOUT_S, PROXY_SNAPSHOT_BYTES, PROXY_SNAPSHOT_STALL_S
from ..client.aio_timeout import cancel_if_possible
from .etcd_backend import EtcdBackend, StreamContext
from .etcd_errors import TIMED_OUT
from .etcdpb.cluster_pb2 import SnapshotResponse
from .maintenance_service import ETCD_VERSION
from .member_calls import BackupRead, MemberCalls


class SnapshotService:
    """Answers requests with bytes; see the module."""

    def __init__(self, backend: EtcdBackend, calls: MemberCalls) -> None:
        self._backend = backend
        self._calls = calls

    async def snapshot(self, stream: StreamContext) -> None:
        """Stream a backup, which holds all that was acknowledged before the call."""
        await stream.receive()
        backup = await self._calls.begin_backup(
            self._backend.member, time.time(), min(stream.time_left(), BACKUP_TIMEOUT_S)
        )
        try:
            left = len(backup.head) + backup.image_bytes
            left += -left % BACKUP_BLOCK_BYTES
            digest = hashlib.sha256()
            async for blob in self._blobs(backup, left):
                digest.update(blob)
                left -= len(blob)
                await self._send(stream, backup, SnapshotResponse(remaining_bytes=left, blob=blob))
            await self._send(stream, backup, SnapshotResponse(blob=digest.digest()))
        except (Exception, asyncio.CancelledError):
            # Not GeneratorExit: then the loop has ended, and the garbage collector ends this in any thread, under any
            # lock. The member drops a backup by itself when nobody asks for it.
            self._calls.end_backup(backup)
            raise
        self._calls.end_backup(backup)

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

    async def _send(self, stream: StreamContext, backup: BackupRead, message: SnapshotResponse) -> None:
        """Send a part. While the client is slow to take it, the member is told that the backup is still needed."""
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
                await self._calls.read_backup(backup, 0, 1)
        finally:
            cancel_if_possible(sent)
        await sent
