"""``/metrics`` of a proxy, in Prometheus's text form: what this process counts, and what its member says of itself.

Names are etcd's where etcd has the thing, so that dashboards made for etcd show it; ``raykeeper_proxy_*`` for the rest.
Nothing is added up for a scrape while calls are served: counts are plain numbers where the thing happens, read when
they are asked for. All of it hangs on one registry, which is handed in.

Of what etcd's server knows about its own leader, this process sees only what its member says when it is scraped; a
leader that came and went in between is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ...limits import Limits
from ...schema.frames import MemberStatus
from .health_pages import HealthPages
from .http2_protocol import Http2Protocol
from .maintenance_service import CLUSTER_VERSION, ETCD_VERSION
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
_CALL = ["grpc_type", "grpc_service", "grpc_method"]


class ProxyMetrics(Collector):
    """See the module.

    Args:
        registry: the process's; the collector and those of process and platform are registered with it.
        methods: what the proxy serves by gRPC.
        health: counts its checks.
    """

    def __init__(self, registry: CollectorRegistry, methods: RpcMethods, health: HealthPages) -> None:
        self._registry = registry
        self._methods = methods
        self._health = health
        self.context: ProxyContext | None = None
        """Of the proxy's port, once it listens."""
        self.http_requests: HttpRequests = Counter()
        self._status: MemberStatus | None = None
        self._limits = Limits()
        self._leader = 0
        self._leader_changes = 0
        registry.register(self)
        PlatformCollector(registry)
        ProcessCollector(registry=registry)

    def page(self, status: MemberStatus | None, limits: Limits, accept: str) -> tuple[bytes, str]:
        """The page and its content type.

        Args:
            status: of the member that the proxy speaks for, if it answers.
            limits: of the cluster.
            accept: the header of the request, which may ask for the form of OpenMetrics.
        """
        self._status, self._limits = status, limits
        if status is not None and status.leader not in (0, self._leader):
            self._leader, self._leader_changes = status.leader, self._leader_changes + 1
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        """Nothing is collected for the sake of names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All that there is now."""
        yield from self._calls()
        yield from self._member()
        yield from self._checks()
        yield from self._http()
        yield from self._connections()

    def _calls(self) -> Iterator[Metric]:
        started = CounterMetricFamily("grpc_server_started", "Calls that were begun.", labels=_CALL)
        handled = CounterMetricFamily("grpc_server_handled", "Calls that have ended.", labels=[*_CALL, "grpc_code"])
        received = CounterMetricFamily("grpc_server_msg_received", "Messages from clients.", labels=_CALL)
        sent = CounterMetricFamily("grpc_server_msg_sent", "Messages to clients.", labels=_CALL)
        for method in self._methods.all():
            labels = _labels(method)
            started.add_metric(labels, method.started)
            received.add_metric(labels, method.received)
            sent.add_metric(labels, method.sent)
            for code, count in {RpcCode.OK: method.succeeded, **method.failed}.items():
                if count:
                    handled.add_metric([*labels, _CODES[code]], count)
        yield from (started, handled, received, sent)

    def _member(self) -> Iterator[Metric]:
        status = self._status
        has_leader = status is not None and status.leader != 0
        yield _gauge("etcd_server_has_leader", "Whether the member knows a leader.", has_leader)
        yield _counter("etcd_server_leader_changes_seen", "Leaders, as scrapes saw them.", self._leader_changes)
        yield _named("etcd_server_version", "The etcd whose API this is.", "server_version", ETCD_VERSION)
        yield _named("etcd_cluster_version", "The same of the cluster.", "cluster_version", CLUSTER_VERSION)
        quota = self._limits.quota_bytes
        yield _gauge("etcd_server_quota_backend_bytes", "Bytes of a state at which puts are refused.", quota)
        if status is None:
            return
        yield _named("etcd_server_id", "The member that the proxy speaks for.", "server_id", f"{status.member:x}")
        yield _gauge("etcd_server_is_leader", "Whether it leads.", status.leader == status.member)
        yield _gauge("etcd_server_is_learner", "Whether it is a learner.", status.member in status.learners)
        committed, applied = status.commit_index, status.applied_index
        yield _gauge("etcd_server_proposals_committed_total", "Its commit index.", committed)
        yield _gauge("etcd_server_proposals_applied_total", "Its applied index.", applied)
        size, in_use = status.db_size, min(status.db_size_in_use, status.db_size)
        yield _gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes of its state on disk.", size)
        yield _gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "... without what was overwritten.", in_use)
        yield _gauge("etcd_debugging_mvcc_current_revision", "The revision that it has applied.", status.revision)
        yield _gauge("etcd_debugging_mvcc_compact_revision", "The oldest that it can read.", status.compact_revision)
        yield _gauge("raykeeper_member_term", "Its Raft term.", status.term)
        yield _gauge("raykeeper_member_sessions", "Client processes with a session.", status.session_count)
        yield _gauge("raykeeper_member_free_bytes", "Free on its disk.", status.free_bytes)
        alarms = GaugeMetricFamily("raykeeper_alarm", "1 for each alarm.", labels=["member", "alarm"])
        for alarm in status.alarms:
            alarms.add_metric([f"{alarm.member:x}", alarm.kind], 1)
        yield alarms

    def _checks(self) -> Iterator[Metric]:
        health = self._health
        yield _gauge("etcd_server_health_success", "Answers of /health that all is well.", health.succeeded)
        yield _gauge("etcd_server_health_failures", "Answers of /health that something is wrong.", health.failed)
        last = GaugeMetricFamily("etcd_server_healthcheck", "How a check ended last.", labels=["type", "name"])
        for (page, name), good in health.last.items():
            last.add_metric([page, name], good)
        yield last
        labels = ["type", "name", "status"]
        results = CounterMetricFamily("etcd_server_healthchecks", "Checks so far.", labels=labels)
        for key, count in health.results.items():
            results.add_metric(key, count)
        yield results

    def _http(self) -> Iterator[Metric]:
        labels = ["handler", "method", "code"]
        found = CounterMetricFamily("raykeeper_proxy_http_requests", "Answers of plain HTTP.", labels=labels)
        for (handler, method, code), count in self.http_requests.items():
            found.add_metric([handler, method, str(code)], count)
        yield found

    def _connections(self) -> Iterator[Metric]:
        context = self.context
        if context is None:
            return
        now: Counter[str] = Counter({"http1": 0, "http2": 0, "unknown": 0})
        streams = running = 0
        for connection in context.connections():
            now[connection.protocol] += 1
            if isinstance(connection, Http2Protocol):
                streams += len(connection.connection.streams)
                running += connection.running
        open_now = GaugeMetricFamily("raykeeper_proxy_connections", "Open connections.", labels=["protocol"])
        for protocol, count in now.items():
            open_now.add_metric([protocol], count)
        yield open_now
        yield _gauge("raykeeper_proxy_max_connections", "The most that may be open.", context.max_connections)
        yield _gauge("raykeeper_proxy_streams", "Open streams of HTTP/2.", streams)
        yield _gauge("raykeeper_proxy_handlers", "Handlers of such streams that run.", running)
        yield _gauge("raykeeper_proxy_held_bytes", "Kept for clients: requests and answers.", context.held.held)
        what = "Connections so far, by what became of them at last."
        ends = CounterMetricFamily("raykeeper_proxy_connections_ended", what, labels=["how"])
        for how, count in context.ends.items():
            ends.add_metric([how], count)
        yield ends
        yield _counter("raykeeper_proxy_connections_accepted", "Connections that were accepted.", context.accepted)


def _labels(method: RpcMethod) -> list[str]:
    service, _, name = method.path[1:].rpartition("/")
    return [method.kind, service, name]


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _named(name: str, text: str, label: str, value: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    family.add_metric([value], 1)
    return family
