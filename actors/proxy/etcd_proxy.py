"""One proxy: etcd's services over a client of the cluster, on a port of their own."""

from __future__ import annotations

from collections.abc import Sequence

from ...limits import PROXY_TIMEOUT_S
from ..client.aio import AsyncKeyValueClient
from ..logs import MemberLog
from .cluster_service import MembershipOperations
from .etcd_backend import EtcdBackend
from .etcd_http import EtcdHttp
from .etcd_services import EtcdServices
from .proxy_listener import ProxyListener
from .rpc_methods import RpcMethods


class EtcdProxy:
    """See the module. Made and used on the event loop that serves.

    Args:
        handle: a client's; its namespace holds the keys of etcd's clients.
        member: id of the member that the proxy speaks for: its answers name it.
        operations: changes of the cluster's members.
        log: for an operator.
    """

    def __init__(
        self, handle: AsyncKeyValueClient, member: int, operations: MembershipOperations, log: MemberLog
    ) -> None:
        self._backend = EtcdBackend(handle, member)
        self._operations = operations
        self._log = log
        self._listener: ProxyListener | None = None
        self._url = ""

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Find the cluster, and begin to serve; returns the address. Port 0 is any free one.

        Raises:
            KeeperError: the cluster was not found.
            OSError: the address cannot be had.
        """
        await self._backend.open(PROXY_TIMEOUT_S)
        services = EtcdServices(self._backend, self._operations, self._client_urls)
        methods = RpcMethods()
        services.register(methods)
        self._listener = ProxyListener(methods, self._log, EtcdHttp(self._backend, services).handle)
        address = await self._listener.listen(host, port)
        self._url = url_of(*address)
        return address

    async def close(self) -> None:
        """Accept no more; calls have a moment to end."""
        if self._listener is not None:
            await self._listener.close()

    async def _client_urls(self, member: int) -> Sequence[str]:
        """Only this proxy's own address is known to it."""
        return [self._url] if member == self._backend.member else []


def url_of(host: str, port: int) -> str:
    """The address as clients write it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
