"""The metrics of a proxy, and what ``/metrics`` shows: what this process counts, and what its member says of itself.

Names are etcd's where etcd has the thing, so that dashboards made for etcd show it; ``raykeeper_proxy_*`` and
``raykeeper_client_*`` (this process's hub) for the rest. Nothing is added up for a scrape while calls are served:
counts are plain numbers where the thing happens, read when they are asked for.

``/metrics`` is what one etcd member shows: the proxy's figures, and those of the member that it speaks for, without
labels of ours. ``/metrics?members`` shows the figures of every member, each with the label ``member``, and none of the
proxy's: so one target is enough to see the cluster, and nothing is seen twice by who scrapes all proxies plainly.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.exposition import choose_encoder

from ...telemetry import (
    Family,
    FamilyKind,
    Sample,
    Telemetry,
    counter,
    counters,
    gauge,
    gauges,
    labelled,
    merged,
    process_families,
    registry_of,
)
from ..client.hub import Hub
from ..client.hub_figures import hub_families
from .health_pages import HealthPages
from .http2_protocol import Http2Protocol
from .maintenance_service import CLUSTER_VERSION, ETCD_VERSION
from .member_calls import MemberCalls
from .proxy_context import ProxyContext
from .rpc_methods import RpcMethod, RpcMethods
from .rpc_status import RpcCode

HttpRequests = Counter[tuple[str, str, int]]
"""Answers of plain HTTP, by what was asked for, method and status."""
_CODES = {
    RpcCode.OK: "OK",
    RpcCode.CANCELLED: "Canceled",
    RpcCode.UNKNOWN: "Unknown",
    RpcCode.INVALID_ARGUMENT: "InvalidArgument",
    RpcCode.DEADLINE_EXCEEDED: "DeadlineExceeded",
    RpcCode.NOT_FOUND: "NotFound",
    RpcCode.ALREADY_EXISTS: "AlreadyExists",
    RpcCode.PERMISSION_DENIED: "PermissionDenied",
    RpcCode.RESOURCE_EXHAUSTED: "ResourceExhausted",
    RpcCode.FAILED_PRECONDITION: "FailedPrecondition",
    RpcCode.ABORTED: "Aborted",
    RpcCode.OUT_OF_RANGE: "OutOfRange",
    RpcCode.UNIMPLEMENTED: "Unimplemented",
    RpcCode.INTERNAL: "Internal",
    RpcCode.UNAVAILABLE: "Unavailable",
    RpcCode.DATA_LOSS: "DataLoss",
    RpcCode.UNAUTHENTICATED: "Unauthenticated",
}
"""As gRPC for Go writes them."""


class ProxyMetrics:
    """See the module.

    Args:
        telemetry: the process's.
        methods: what the proxy serves by gRPC.
        health: counts its checks.
        hub: the proxy's client of the cluster.
    """

    def __init__(self, telemetry: Telemetry, methods: RpcMethods, health: HealthPages, hub: Hub) -> None:
        self._telemetry = telemetry
        self._methods = methods
        self._health = health
        self._hub = hub
        self.context: ProxyContext | None = None
        """Of the proxy's port, once it listens."""
        self.http_requests: HttpRequests = Counter()
        self._forget_figures = telemetry.add(self.families)

    def close(self) -> None:
        """The proxy has ended."""
        self._forget_figures()

    async def page(self, calls: MemberCalls, member: int, accept: str) -> tuple[bytes, str]:
        """``/metrics`` and its content type.

        Args:
            member: that the proxy speaks for.
            accept: the header of the request, which may ask for the form of OpenMetrics.
        """
        of_member = await calls.figures(member)
        families = self._telemetry.collect()
        if of_member is None:  # what dashboards show of a member that does not answer
            families.append(gauge("etcd_server_has_leader", "Whether the member knows a leader.", 0))
        own = {family.name for family in families}
        # Of what both have (``process_*``), etcd's dashboards show one process: this one.
        families += [family for family in of_member or () if family.name not in own]
        return _encoded(families, accept)

    async def members_page(self, calls: MemberCalls, accept: str) -> tuple[bytes, str]:
        """``/metrics?members`` and its content type."""
        members = calls.members()
        answers = await asyncio.gather(*map(calls.figures, members))
        up = {name: float(answer is not None) for name, answer in zip(members.values(), answers, strict=True)}
        families = [gauges("raykeeper_member_up", "Whether a member has said its figures.", "member", up)]
        for name, answer in zip(members.values(), answers, strict=True):
            families += labelled(answer or (), {"member": name})
        return _encoded(merged(families), accept)

    def families(self) -> Iterator[Family]:
        """What this process counts. Any thread."""
        yield from self._calls()
        yield gauges("etcd_server_version", "The etcd whose API this is.", "server_version", {ETCD_VERSION: 1})
        yield gauges("etcd_cluster_version", "The same of the cluster.", "cluster_version", {CLUSTER_VERSION: 1})
        yield from self._checks()
        yield from self._http()
        yield from self._connections()
        yield from hub_families(self._hub.figures())
        yield from process_families()

    def _calls(self) -> Iterator[Family]:
        started: list[Sample] = []
        handled: list[Sample] = []
        received: list[Sample] = []
        sent: list[Sample] = []
        for method in self._methods.all():
            labels = _labels(method)
            started.append(Sample("_total", method.started, labels))
            received.append(Sample("_total", method.received, labels))
            sent.append(Sample("_total", method.sent, labels))
            for code, count in {RpcCode.OK: method.succeeded, **method.failed}.items():
                if count:
                    handled.append(Sample("_total", count, (*labels, ("grpc_code", _CODES[code]))))
        yield Family("grpc_server_started", "counter", "Calls that were begun.", tuple(started))
        yield Family("grpc_server_handled", "counter", "Calls that have ended.", tuple(handled))
        yield Family("grpc_server_msg_received", "counter", "Messages from clients.", tuple(received))
        yield Family("grpc_server_msg_sent", "counter", "Messages to clients.", tuple(sent))
        methods = list(self._methods.all())
        arrived, left = sum([each.received_bytes for each in methods]), sum([each.sent_bytes for each in methods])
        yield counter("etcd_network_client_grpc_received_bytes", "Bytes of messages from clients by gRPC.", arrived)
        yield counter("etcd_network_client_grpc_sent_bytes", "Bytes of messages to clients by gRPC.", left)

    def _checks(self) -> Iterator[Family]:
        health = self._health
        yield gauge("etcd_server_health_success", "Answers of /health that all is well.", health.succeeded)
        yield gauge("etcd_server_health_failures", "Answers of /health that something is wrong.", health.failed)
        yield _family(
            "etcd_server_healthcheck", "gauge", "How a check ended last.", ("type", "name"), health.last.items()
        )
        labels = ("type", "name", "status")
        yield _family("etcd_server_healthchecks", "counter", "Checks so far.", labels, health.results.items())

    def _http(self) -> Iterator[Family]:
        found = {(handler, method, str(code)): count for (handler, method, code), count in self.http_requests.items()}
        labels = ("handler", "method", "code")
        yield _family("raykeeper_proxy_http_requests", "counter", "Answers of plain HTTP.", labels, found.items())

    def _connections(self) -> Iterator[Family]:
        context = self.context
        if context is None:
            return
        now: Counter[str] = Counter({"http1": 0, "http2": 0, "unknown": context.count_silent()})
        streams = running = 0
        for connection in context.connections():
            now[connection.protocol] += 1
            if isinstance(connection, Http2Protocol):
                streams += len(connection.connection.streams)
                running += connection.running
        yield gauges("raykeeper_proxy_connections", "Open connections.", "protocol", now)
        yield gauge("raykeeper_proxy_max_connections", "The most that may be open.", context.max_connections)
        yield gauge("raykeeper_proxy_streams", "Open streams of HTTP/2.", streams)
        yield gauge("raykeeper_proxy_handlers", "Handlers of such streams that run.", running)
        yield gauge("raykeeper_proxy_held_bytes", "Kept for clients: requests and answers.", context.held.held)
        what = "Connections so far, by what became of them at last."
        yield counters("raykeeper_proxy_connections_ended", what, "how", context.ends)
        yield counter("raykeeper_proxy_connections_accepted", "Connections that were accepted.", context.accepted)


def _encoded(families: Sequence[Family], accept: str) -> tuple[bytes, str]:
    encode, content_type = choose_encoder(accept)
    return encode(registry_of(lambda: families)), content_type


def _labels(method: RpcMethod) -> tuple[tuple[str, str], ...]:
    service, _, name = method.path[1:].rpartition("/")
    return ("grpc_type", method.kind), ("grpc_service", service), ("grpc_method", name)


def _family(
    name: str, kind: FamilyKind, text: str, names: tuple[str, ...], found: Iterable[tuple[tuple[str, ...], float]]
) -> Family:
    """A family whose samples have several labels: the labels' names, and numbers by their values."""
    suffix = "_total" if kind == "counter" else ""
    samples = [Sample(suffix, float(value), tuple(zip(names, values, strict=True))) for values, value in list(found)]
    return Family(name, kind, text, tuple(samples))
