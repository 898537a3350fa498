"""gRPC's health checking."""

from __future__ import annotations

import asyncio

from .etcd_backend import CallContext, StreamContext
from .etcdpb.health_pb2 import HealthCheckRequest, HealthCheckResponse
from .rpc_status import RpcCode, RpcError

_SERVING = HealthCheckResponse(status=HealthCheckResponse.SERVING).SerializeToString()
_UNKNOWN = HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN).SerializeToString()


class HealthService:
    """Says that the server serves, as etcd does; only the server as a whole has a name, the empty one."""

    async def check(self, request: bytes, context: CallContext) -> bytes:
        """Whether the server serves."""
        if HealthCheckRequest.FromString(request).service:
            raise RpcError(RpcCode.NOT_FOUND, "unknown service")
        return _SERVING

    async def watch(self, stream: StreamContext) -> None:
        """The same, and each change: there is none while the server runs."""
        message = await stream.receive()
        asked = HealthCheckRequest.FromString(message or b"")
        await stream.send(_UNKNOWN if asked.service else _SERVING)
        await asyncio.Event().wait()
