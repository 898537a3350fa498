"""Builds the parts of a serving member, in order: each gets what it needs when it is constructed.

::

    lanes, waker <- inbox <- links <- transport <- replica <- handler <- poller

An arrow points from a part to one that uses it. What flows back are return values and events in the inbox.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

from ...limits import (
    BACKGROUND_THREADS,
    MIN_PEER_CALL_TIMEOUT_S,
    Settings,
    decode_settings,
)
from ...proxy_address import port_range
from ...schema.operator_frames import MemberStatus
from ...store.data_dir import DataDir
from ...telemetry import Telemetry
from ..logs import MemberLog
from ..one_thread import NoThreadLeft, lacks_thread
from ..process_tracer import process_tracer
from ..transport.lane import HAS_LANES
from ..transport.lane_address import lane_host
from ..transport.lane_server import LaneServer
from ..transport.lane_tls import ServerTls, TlsUnusable, tls_files
from ..transport.peer_dialer import PeerDialer
from ..transport.peer_lanes import LaneLinks
from ..transport.peer_transport import PeerTransport
from .backup_source import BackupSource
from .clock import member_clock
from .death_reports import DeathReports
from .events import BackgroundDone, Unreachable
from .fast_failover import FastFailover
from .inbox import Inbox
from .operator_requests import OperatorRequests
from .poller import InboxPoller, LanePoller, Poller, Waker
from .replica import Replica
from .request_handler import RequestHandler
from .request_spans import RequestSpans
from .snapshots import Background
from .throttle import Throttle


class ProcessLocation(NamedTuple):
    """Where a member's process runs."""

    node: str
    """Ray node id."""
    host: str
    """The node's address."""


class Parts(NamedTuple):
    """The parts of a serving member."""

    inbox: Inbox
    lanes: LaneServer | None
    transport: PeerTransport
    workers: tuple[ThreadPoolExecutor, ...]
    replica: Replica
    handler: RequestHandler
    failover: FastFailover
    poller: Poller
    backups: BackupSource


class _BackedUp(NamedTuple):
    """What a backup needs of a member."""

    inbox: Inbox
    replica: Replica


def wire(
    folder: DataDir,
    lookup: Callable[[int], Any],
    status: Callable[[], MemberStatus],
    location: ProcessLocation | None,
    telemetry: Telemetry,
) -> Parts:
    """Build the parts of a member.

    Args:
        folder: the opened data.
        lookup: finds the actor of a member (see ``PeerTransport``).
        status: makes the member's status.
        location: where lanes may be opened to it; without one, everything goes by actor calls, and no death of a
            client's process is noticed.
        telemetry: where its figures are collected.

    A part that cannot be built ends those before it: a start that the disk or the system refuses is tried again, and
    each try must leave no descriptor and no thread.
    """
    with ExitStack() as made:
        parts = _wire(folder, lookup, status, location, telemetry, made)
        made.pop_all()
    return parts


def _wire(
    folder: DataDir,
    lookup: Callable[[int], Any],
    status: Callable[[], MemberStatus],
    location: ProcessLocation | None,
    telemetry: Telemetry,
    made: ExitStack,
) -> Parts:
    """As :func:`wire`; ``made`` ends what has been built."""
    identity = folder.identity
    settings = decode_settings(folder.state.settings) if folder.state.settings else Settings()
    timings, limits = settings.timings, settings.limits

    transport_log = MemberLog("transport", identity.cluster_name, identity.name)
    lanes = None
    if location is not None and settings.lanes and HAS_LANES:
        host = lane_host(settings.lane_interface, location.host, transport_log)
        tls = None
        try:
            files = tls_files(os.environ)
            tls = ServerTls(files) if files is not None else None
        except TlsUnusable as error:
            transport_log.warning("TLS is wanted, so there are no lanes to other nodes: %s", error)
            host = ""
        lanes = LaneServer(
            cluster=identity.cluster,
            member=identity.member,
            node=location.node,
            host=host,
            ports=port_range(settings.lane_ports) or range(0),
            tls=tls,
            log=transport_log,
        )
        made.callback(lanes.close)
    waker = Waker()
    inbox = Inbox(limits, waker.wake if lanes is None else lanes.wake)

    links = None
    if lanes is not None and location is not None:
        dialer = PeerDialer(cluster=identity.cluster, member=identity.member, node=location.node, lookup=lookup)
        links = LaneLinks(
            member=identity.member,
            lanes=lanes,
            dial=dialer.dial,
            hand_over=lambda then: inbox.put_own(BackgroundDone(then)),
            clock=member_clock,
            log=transport_log,
        )
    spans = RequestSpans(process_tracer(), identity.cluster_name, identity.member, member_clock)
    transport = PeerTransport(
        cluster=identity.cluster,
        member=identity.member,
        lookup=lookup,
        deliver=inbox.put_frame,
        unreachable=lambda member: inbox.put_own(Unreachable(member)),
        give_up_after=max(MIN_PEER_CALL_TIMEOUT_S, timings.election_timeout),
        clock=member_clock,
        lanes=links,
        log=transport_log,
        traced=spans.proposed,
        trace_arrived=spans.arrived,
    )
    made.callback(transport.close)
    workers = ThreadPoolExecutor(max_workers=BACKGROUND_THREADS, thread_name_prefix="background")
    made.callback(workers.shutdown, wait=False)
    own_worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="operator")
    made.callback(own_worker.shutdown, wait=False)
    replica = Replica(
        folder=folder,
        timings=timings,
        limits=limits,
        send=transport.send,
        clock=member_clock,
        rng=random.Random(),
        background=_in_background(workers, inbox),
        throttle=Throttle(),
        wall=time.time,
        spans=spans,
    )
    made.callback(replica.slow.close)
    operators = OperatorRequests(_BackedUp(inbox, replica), _in_background(own_worker, inbox), Throttle(), member_clock)
    handler = RequestHandler(
        replica,
        inbox.put_event,
        member_clock,
        status,
        operators,
        **({} if lanes is None else {"monitor": lanes.monitor}),
        figures=telemetry.collect,
    )
    log = MemberLog("member", identity.cluster_name, identity.name)
    failover = FastFailover(replica.node, random.Random(), log)
    deaths = DeathReports(
        identity.cluster,
        identity.member,
        leader=lambda: replica.leader,
        ask_here=handler.handle_request,
        lookup=lookup,
        token=handler.own_token,
        log=log,
    )
    poller: Poller = InboxPoller(inbox, waker, member_clock)
    if lanes is not None and links is not None:
        poller = LanePoller(
            inbox,
            lanes,
            links,
            transport,
            replica,
            failover,
            handler.handle_request,
            deaths.report,
            member_clock,
            log,
        )
    return Parts(inbox, lanes, transport, (workers, own_worker), replica, handler, failover, poller, operators.backups)


def _in_background(workers: ThreadPoolExecutor, inbox: Inbox) -> Background:
    """A function that runs slow work on a worker thread, and then has the loop call ``then``.

    The first worker starts here. If there is no thread left for another one later, the work waits for those there are.

    Raises:
        NoThreadLeft: nor is there one for the first.
    """
    try:
        workers.submit(lambda: None)
    except RuntimeError as error:
        if lacks_thread(error):
            raise NoThreadLeft(f"no thread could be started for work in the background: {error}") from None
        raise

    def background(work: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        def run() -> None:
            error: Exception | None = None
            try:
                work()
            except Exception as caught:
                error = caught
            inbox.put_own(BackgroundDone(lambda: then(error)))

        try:
            workers.submit(run)
        except RuntimeError as caught:  # of a thread more: the work is queued by then
            if not lacks_thread(caught):
                raise

    return background
