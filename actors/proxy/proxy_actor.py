"""The Ray actor around one proxy: the same proxy as that of `raykeeper proxy`, on one Ray node.

It is named, detached, and tied to its node: Ray restarts it there when its process has died. When the node is lost, the
actor is gone for good, and its name with it. The supervisor starts those that are missing (``actors/cluster``).

The constructor does not raise, because Ray gives up an actor whose constructor raises. A proxy that cannot serve, say
because its port is taken, stays up, says why, and tries again. It is a client of the cluster like any other: it loads
neither the member nor RocksDB (``tests/unit/test_imports.py``).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import threading
import time
from typing import Any

import msgspec
import ray

from ...errors import ClusterMismatch, KeeperError
from ...limits import DEATH_REPORT_CALL_S, PROXY_CONNECT_TIMEOUT_S, PROXY_HOST_STOP_S, PROXY_RETRY_S, ProxyTls
from ...proxy_address import read_advertised_address, read_listen_address
from ...schema.client_identity import ClientIdentity
from ...schema.commands import EndDeadSessions
from ...schema.portable import Portable
from ...telemetry import PROCESS
from ..actor_access import as_the_cluster, cluster_token
from ..client.aio_timeout import within
from ..connect import connect
from ..deadline import covering
from ..handles import Client
from ..leader_call import administer, ask_client, expect
from ..log_files import flush_log, log_to_ray
from ..logs import MemberLog
from ..process import as_daemon
from ..proxy_claims import WatchOffer
from ..ray_metrics import hand_to_ray
from ..transport.descriptors import raise_limit
from .etcd_proxy import EtcdProxy
from .large_blocks import give_back_large_blocks
from .membership_tasks import MembershipTasks
from .process_watch import ProcessWatch
from .proxy_place import proxy_place


class ProxySpec(Portable, frozen=True):
    """What a proxy's actor is started with."""

    cluster_name: str
    cluster: int
    """Cluster id: another cluster of that name is not served."""
    name: str
    """Of the actor, without the cluster's."""
    listen: str
    """As in the cluster's spec, like the next."""
    advertise: str
    tls: ProxyTls = ProxyTls()
    cors: tuple[str, ...] = ()
    console: str = "off"


class ProxyStatus(Portable, frozen=True):
    """What a proxy's actor says of itself."""

    spec: ProxySpec
    node: str
    pid: int
    url: str = ""
    """What clients are told; empty while it does not serve."""
    member: int = 0
    """Id of the member that it speaks for."""
    connections: int = 0
    why_not_serving: str = ""
    failed: bool = False
    """Whether it has tried to serve, and could not."""


encode_proxy_spec = msgspec.msgpack.Encoder().encode
decode_proxy_spec = msgspec.msgpack.Decoder(ProxySpec).decode


class ProxyHost:
    """What runs in the actor; started by the supervisor, or by a launch.

    Args:
        spec: an encoded :class:`ProxySpec`.
    """

    def __init__(self, spec: bytes) -> None:
        as_daemon()
        raise_limit()
        give_back_large_blocks()
        self._spec = decode_proxy_spec(spec)
        log_to_ray(self._spec.cluster_name, self._spec.name)
        self._log = MemberLog("proxy", self._spec.cluster_name, self._spec.name)
        self._place = proxy_place(self._spec.name)
        self._proxy: EtcdProxy | None = None
        self._why = "it is starting"
        self._failed = False
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._over = threading.Event()
        self._watch: ProcessWatch | None = None
        self._watch_lock = threading.Lock()
        # What exists by now stays: the garbage collector need not visit it again.
        gc.collect()
        gc.freeze()
        threading.Thread(target=self._run, name="proxy", daemon=True).start()
        hand_to_ray(self._spec.cluster_name, self._spec.name, self._log)

    def status(self) -> ProxyStatus:
        """How it is."""
        proxy = self._proxy
        if proxy is None:
            return ProxyStatus(
                self._spec, self._place.node, os.getpid(), why_not_serving=self._why, failed=self._failed
            )
        return ProxyStatus(self._spec, self._place.node, os.getpid(), proxy.url, proxy.member, proxy.connections)

    def watch_offer(self) -> WatchOffer | None:
        """How a process of this node is watched, so that what it held is free when it is dead (``process_watch.py``);
        ``None`` if that cannot be."""
        with self._watch_lock:
            if self._watch is None:
                try:
                    self._watch = ProcessWatch(self._who, self._end_sessions, self._log)
                except OSError as error:
                    self._log.warning("no process can be watched: %s", error)
                    return None
            return self._watch.offer

    def _who(self, session: int) -> ClientIdentity | None:
        spec = self._spec
        deadline = time.monotonic() + DEATH_REPORT_CALL_S
        with covering(DEATH_REPORT_CALL_S):  # Ray too may not answer
            client = ask_client(spec.cluster_name, spec.cluster, session, deadline, as_the_cluster)
        return None if client is None else client.identity

    def _end_sessions(self, sessions: tuple[int, ...]) -> None:
        spec = self._spec
        deadline = time.monotonic() + DEATH_REPORT_CALL_S
        with covering(DEATH_REPORT_CALL_S):
            expect(administer(spec.cluster_name, spec.cluster, EndDeadSessions(sessions), deadline, as_the_cluster))

    def stop(self) -> bool:
        """Called before it is killed: deregister, and let calls end for a moment; whether all of that is done."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        done = self._over.wait(PROXY_HOST_STOP_S)
        flush_log()
        return done

    # -- the thread that serves ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._over.set()

    async def _serve(self) -> None:
        """Serve until the end; whatever prevents that is tried again."""
        while not self._stopping.is_set():
            try:
                kv = await asyncio.to_thread(self._connect)
                try:
                    await self._serve_with(kv)
                finally:
                    kv.close()
            except (KeeperError, OSError) as error:
                self._fail(str(error))
            except Exception as error:
                self._fail(f"{type(error).__name__}: {error}")
                self._log.exception("a fault")
            await within(PROXY_RETRY_S, self._stopping.wait())

    def _connect(self) -> Client:
        spec = self._spec
        kv = connect(spec.cluster_name, timeout=PROXY_CONNECT_TIMEOUT_S)
        if kv.cluster_id != spec.cluster:
            kv.close()
            raise ClusterMismatch(
                f"the cluster {spec.cluster_name} that runs has the id {kv.cluster_id:x}, not {spec.cluster:x}"
            )
        return kv

    async def _serve_with(self, kv: Client) -> None:
        spec = self._spec
        listen = read_listen_address(spec.listen)
        if listen is None:  # the cluster was told by a version that writes addresses otherwise
            raise OSError(f"cannot listen on {spec.listen!r}: it is not an address")
        operations = MembershipTasks(spec.cluster_name, self._log)
        proxy = EtcdProxy(
            kv.aio,
            operations,
            self._log,
            self._place,
            cors=spec.cors,
            console=spec.console,
            cluster_token=lambda: cluster_token(spec.cluster_name),
            telemetry=PROCESS,
        )
        try:
            try:
                await proxy.start(listen, read_advertised_address(spec.advertise), spec.tls)
            except OSError as error:
                message = f"cannot listen on {listen}: {error.strerror or error}"
                if error.errno == errno.EADDRINUSE:
                    message += "; proxy_listen may name a range of ports"
                raise OSError(message) from error
            self._proxy = proxy
            self._log.info("serves %s, process %d", proxy.url, os.getpid())
            await self._stopping.wait()
        finally:
            self._proxy, self._why = None, "it is stopping"
            await proxy.close()

    def _fail(self, why: str) -> None:
        self._why, self._failed = why, True
        self._log.warning("does not serve: %s", why)


_remote: Any = ray.remote
ProxyActor: Any = _remote(num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=4)(ProxyHost)
