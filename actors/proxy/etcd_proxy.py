"""One proxy: etcd's services over a client of the cluster, on a port of their own."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Mapping, Sequence, Set

from ...errors import Unavailable
from ...limits import PROXY_TIMEOUT_S, ProxyTls
from ...proxy_address import AdvertisedAddress, ListenAddress, client_url
from ...proxy_notices import ProxyNotice, leave_notice, start_of, withdraw_notice
from ...schema.auth_operations import ROOT
from ...telemetry import Telemetry
from ..client.aio import AsyncKeyValueClient
from ..client.login import Credentials
from ..logs import MemberLog
from .cluster_service import MembershipOperations
from .console_site import ConsoleSite
from .etcd_backend import EtcdBackend
from .etcd_http import EtcdHttp
from .etcd_services import EtcdServices
from .member_calls import MemberCalls
from .proxy_audit import ProxyAudit
from .proxy_listener import ProxyListener
from .proxy_place import ProxyPlace, node_addresses
from .proxy_registry import ProxyEntry, ProxyRegistry
from .proxy_tls import ProxyTlsContext
from .relay_server import RelayServer, relay_server
from .rpc_methods import RpcMethods
from .rpc_status import RpcError
from .view_ray import RayForShells


class EtcdProxy:
    """See the module. Made and used on the event loop that serves.

    Args:
        handle: a client's; its namespace holds the keys of etcd's clients.
        operations: changes of the cluster's members.
        log: for an operator.
        place: where it runs.
        registered: whether other proxies tell clients of this one.
        cors: origins whose web pages may ask by HTTP; ``*`` for all.
        console: ``read`` or ``act`` to serve the console, ``off`` not to.
        telemetry: the process's; by default, one of its own.
        cluster_token: gives a token of the cluster itself, for this proxy's entry in the directory, and to log in users
            whose certificates were shown; empty while users are not needed.
    """

    def __init__(
        self,
        handle: AsyncKeyValueClient,
        operations: MembershipOperations,
        log: MemberLog,
        place: ProxyPlace,
        *,
        registered: bool = True,
        cors: Sequence[str] = (),
        console: str = "off",
        telemetry: Telemetry | None = None,
        cluster_token: Callable[[], bytes] | None = None,
    ) -> None:
        self._handle = handle
        # A user of the proxy's own is for its entry in the directory alone: no client may pass for it.
        if cluster_token is not None:
            self._handle = handle._with_credentials(
                Credentials(ROOT, cluster_token=cluster_token, purpose="a proxy's place in the directory")
            )
        self._backend = EtcdBackend(handle._without_user(), 0, cluster_token)
        self._operations = operations
        self._log = log
        self._place = place
        self._registered = registered
        self._calls: MemberCalls | None = None
        self._cors = cors
        self._console = console
        self._telemetry = telemetry
        self._http: EtcdHttp | None = None
        self._listener: ProxyListener | None = None
        self._registry: ProxyRegistry | None = None
        self._url = ""
        self._pinned: frozenset[int] = frozenset()
        self._notice = ""
        self._relay: RelayServer | None = None

    @property
    def url(self) -> str:
        """What clients are told; empty before the start."""
        return self._url

    @property
    def member(self) -> int:
        """Id of the member that it speaks for: its answers name it."""
        return self._backend.member

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._listener.connection_count() if self._listener is not None else 0

    async def start(
        self, listen: ListenAddress, advertised: AdvertisedAddress | None = None, tls: ProxyTls | None = None
    ) -> tuple[str, int]:
        """Find the cluster, and begin to serve; returns the address.

        Args:
            listen: the first of its ports that is free is taken.
            advertised: what clients are told, unless it is that address.
            tls: the files for TLS; none, or none named, for none.

        Raises:
            KeeperError: the cluster was not found, or no member serves.
            OSError: the address cannot be had, or the files for TLS are wrong.
        """
        secured = ProxyTlsContext(tls, self._log) if tls is not None and tls.cert_file else None
        await self._backend.open(PROXY_TIMEOUT_S)
        self._calls = MemberCalls(self._backend.hub, self._backend.cluster)
        try:
            voters = await self._voters()
        except RpcError as error:
            raise Unavailable(f"no member of the cluster serves: {error.text}") from None
        near = self._near()
        # Until the directory says which of them others speak for.
        self._backend.member = min(voters, key=lambda voter: (voter not in near, voter))
        audit = ProxyAudit(self._backend.cluster_name, self._place.name or "proxy")
        services = EtcdServices(self._backend, self._operations, self._client_urls, audit)
        methods = RpcMethods()
        services.register(methods)
        console = None
        if self._console != "off":
            nodes = node_addresses if self._place.ray else None
            console = ConsoleSite(services, self._operations, self._console, nodes)
        http = EtcdHttp(self._backend, services, methods, self._cors, self._telemetry, console)
        self._http = http
        self._listener = ProxyListener(methods, self._log, http.handle, tls=secured)
        http.metrics.context = self._listener.context
        bound = await self._listen(self._listener, listen)
        self._url = client_url(advertised, bound, self._place.node_address, tls=secured is not None)
        entry = ProxyEntry(self._url, self.member, self._place.node, os.getpid(), self._place.name)
        registry = ProxyRegistry(self._handle, entry, self._voters, self._near, self._speak_for, self._log)
        self._registry = registry
        if self._registered:
            await registry.start()
        if self._place.ray:
            ray = RayForShells(self._backend.cluster_name, self._backend.cluster)
            self._relay = await relay_server(self._backend.hub.transport, ray, self._log)
            self._leave_notice(bound, tls if secured is not None else None)
        return bound

    def _leave_notice(self, bound: tuple[str, int], tls: ProxyTls | None) -> None:
        """Tell shells on this node where it listens. Without that they ask Ray, so it may fail."""
        loopback = "::1" if ":" in bound[0] else "127.0.0.1"
        notice = ProxyNotice(
            self._handle.cluster_name,
            self._handle.cluster_id,
            self._place.ray,
            client_url(None, bound, loopback, tls=tls is not None),
            "" if tls is None else tls.cert_file,
            tls is not None and tls.client_cert_auth,
            os.getpid(),
            start_of(os.getpid()),
            "" if self._relay is None else self._relay.path,
        )
        try:
            self._notice = leave_notice(notice)
        except OSError as error:
            self._log.warning("shells on this node go by Ray: %s", error)

    async def close(self) -> None:
        """Deregister, and accept no more; calls have a moment to end."""
        if self._notice:
            withdraw_notice(self._notice)
        if self._relay is not None:
            await self._relay.close()
        if self._registry is not None:
            await self._registry.close()
        if self._listener is not None:
            await self._listener.close()
        if self._http is not None:
            self._http.metrics.close()

    async def _listen(self, listener: ProxyListener, listen: ListenAddress) -> tuple[str, int]:
        for port in listen.ports:
            try:
                return await listener.listen(listen.host, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or port == listen.last:
                    raise
        raise AssertionError("a range of ports is not empty")

    async def _voters(self) -> Collection[int]:
        assert self._calls is not None
        status = await self._calls.any_status(self.member)
        self._pinned = frozenset(known.id for known in status.table if known.pin in self._place.pins)
        return status.voters

    def _near(self) -> Set[int]:
        """The members that belong on this node, whether they run or not; if Ray does not tell, those that were seen."""
        return self._pinned or self._backend.hub.near

    def _speak_for(self, member: int) -> None:
        self._backend.member = member

    async def _client_urls(self, linearizable: bool) -> Mapping[int, Sequence[str]]:
        return {} if self._registry is None else await self._registry.urls(linearizable)
