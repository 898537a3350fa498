"""etcd's services over one real member in this process, on a real port: what etcd's own clients connect to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lab.proxy_services import LabProxy, lab_proxy
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.proxy_listener import ProxyListener
from raykeeper.actors.proxy.rpc_methods import RpcMethods


class EtcdPort:
    """A proxy of a cluster of one member, and where it listens."""

    def __init__(self, proxy: LabProxy) -> None:
        self.proxy = proxy
        self.listener: ProxyListener
        self.host, self.port = proxy.run(self._listen())
        self.endpoint = f"{self.host}:{self.port}"

    async def _listen(self) -> tuple[str, int]:
        methods = RpcMethods()
        for path, unary in self.proxy.services.unary.items():
            methods.add_unary(path, unary)
        for path, streaming in self.proxy.services.streaming.items():
            methods.add_stream(path, streaming)
        self.listener = ProxyListener(methods, MemberLog("proxy", "test", "proxy"))
        return await self.listener.listen("127.0.0.1", 0)

    def close(self) -> None:
        self.proxy.run(self.listener.close(0.0))


@contextmanager
def etcd_port() -> Iterator[EtcdPort]:
    """A port for some tests."""
    with lab_proxy() as proxy:
        port = EtcdPort(proxy)
        try:
            yield port
        finally:
            port.close()
