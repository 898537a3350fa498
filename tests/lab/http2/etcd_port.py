"""etcd's services over one real member in this process, on a real port: what etcd's own clients connect to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lab.proxy_services import LabProxy, lab_proxy
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.etcd_http import EtcdHttp
from raykeeper.actors.proxy.proxy_listener import ProxyListener
from raykeeper.actors.proxy.rpc_methods import RpcMethods


class EtcdPort:
    """A proxy of a cluster of one member, and where it listens."""

    def __init__(self, proxy: LabProxy) -> None:
        self.proxy = proxy
        self.listener: ProxyListener
        self.host, self.port = proxy.run(self._listen())
        self.endpoint = f"{self.host}:{self.port}"
        proxy.url = f"http://{self.endpoint}"

    async def _listen(self) -> tuple[str, int]:
        methods = RpcMethods()
        self.proxy.services.register(methods)
        http = EtcdHttp(self.proxy.backend, self.proxy.services)
        self.listener = ProxyListener(methods, MemberLog("proxy", "test", "proxy"), http.handle)
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
