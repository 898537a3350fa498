"""etcd's services over one real member in this process, on a real port: what etcd's own clients connect to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lab.proxy_services import LabProxy, lab_proxy
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.proxy.console_site import ConsoleSite
from raykeeper.actors.proxy.etcd_http import EtcdHttp
from raykeeper.actors.proxy.proxy_listener import ProxyListener
from raykeeper.actors.proxy.proxy_tls import ProxyTlsContext
from raykeeper.actors.proxy.rpc_methods import RpcMethods
from raykeeper.limits import ProxyTls
from raykeeper.store.engine.interface import Disk


class EtcdPort:
    """A proxy of a cluster of one member, and where it listens."""

    def __init__(self, proxy: LabProxy, cors: Sequence[str], tls: ProxyTls | None, console: str, host: str) -> None:
        self.proxy = proxy
        self.listener: ProxyListener
        _, self.port = proxy.run(self._listen(cors, tls, console, host))
        self.host = "127.0.0.1"
        self.endpoint = f"{self.host}:{self.port}"
        proxy.url = f"{'http' if tls is None else 'https'}://{self.endpoint}"

    async def _listen(self, cors: Sequence[str], tls: ProxyTls | None, console: str, host: str) -> tuple[str, int]:
        methods = RpcMethods()
        self.proxy.services.register(methods)
        services = self.proxy.services
        self.site = None if console == "off" else ConsoleSite(services, self.proxy.operations, console)
        http = EtcdHttp(self.proxy.backend, services, methods, cors, console=self.site)
        log = MemberLog("proxy", "test", "proxy")
        secured = None if tls is None else ProxyTlsContext(tls, log)
        self.listener = ProxyListener(methods, log, http.handle, tls=secured)
        http.metrics.context = self.listener.context
        return await self.listener.listen(host, 0)

    def close(self) -> None:
        self.proxy.run(self.listener.close(0.0))


@contextmanager
def etcd_port(
    cors: Sequence[str] = (),
    tls: ProxyTls | None = None,
    console: str = "off",
    host: str = "127.0.0.1",
    disk: Disk | None = None,
    path: str = "data",
) -> Iterator[EtcdPort]:
    """A port for some tests. The member's data lies in memory, unless another disk is given."""
    with lab_proxy(disk, path) as proxy:
        port = EtcdPort(proxy, cors, tls, console, host)
        try:
            yield port
        finally:
            port.close()
