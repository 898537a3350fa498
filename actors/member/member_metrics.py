"""The metrics of one member: read from its parts when somebody asks, on that thread.

Names are etcd's where etcd has the thing, with the same types and labels; ``raykeeper_*`` for the rest. Where an etcd
member counts something of its own that has another cause here, the meaning is that of the dashboards: a WAL fsync is
one of the Raft log, a commit of the backend one write of applied entries to RocksDB.

Numbers of one scrape may be of different moments. What a snapshot from the leader replaces (the state) starts to count
again, as after a restart of the process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

from ...errors import KeeperError
from ...limits import (
    METRICS_SCAN_PAUSE_S,
    METRICS_SCANNED_KEYS,
)
from ...schema.answers import RangeAnswer
from ...schema.key_range import KeyRange
from ...schema.key_spaces import RESERVED_SPACE
from ...schema.operations import Range
from ...schema.operator_frames import MemberStatus
from ...telemetry import (
    Family,
    Sample,
    counter,
    counters,
    gauge,
    gauges,
    histogram,
    histograms,
    process_families,
)
from ..naming import member_name
from ..transport.lane_server import LaneServer
from ..transport.peer_transport import PeerTransport
from .inbox import Inbox
from .replica import Replica
from .request_handler import RequestHandler

_LINES = (b"lock", b"election", b"rwlock", b"semaphore", b"queue", b"barrier", b"partitioner")
"""The kinds of coordination calls whose contenders have tickets (``actors/recipes/contenders.py``)."""
_EXCLUSIVE = (b"lock", b"election")
"""... of which one contender holds and the others wait."""


class MemberMetrics:
    """See the module.

    Args:
        status: makes the member's status.
        lanes: ``None`` for a member without.
    """

    def __init__(
        self,
        replica: Replica,
        handler: RequestHandler,
        inbox: Inbox,
        transport: PeerTransport,
        lanes: LaneServer | None,
        status: Callable[[], MemberStatus],
    ) -> None:
        self._replica = replica
        self._handler = handler
        self._inbox = inbox
        self._transport = transport
        self._lanes = lanes
        self._status = status
        self._contenders: Counter[bytes] = Counter()
        self._names: Counter[bytes] = Counter()
        self._scan_at = 0.0

    def families(self) -> Iterator[Family]:
        """All that there is now. Any thread."""
        status = self._status()
        yield from self._raft(status)
        yield from self._disk(status)
        yield from self._keys(status)
        yield from self._leases_and_sessions()
        yield from self._watches()
        yield from self._contended()
        yield from self._loop()
        yield from self._network()
        yield from process_families()

    # -- what etcd has, too -------------------------------------------------------------------------------------------

    def _raft(self, status: MemberStatus) -> Iterator[Family]:
        replica = self._replica
        proposals, reads = replica.proposals, replica.reads
        yield gauge("etcd_server_has_leader", "Whether the member knows a leader.", status.leader != 0)
        yield gauge("etcd_server_is_leader", "Whether it leads.", status.leader == status.member)
        yield gauge("etcd_server_is_learner", "Whether it is a learner.", status.member in status.learners)
        yield gauges("etcd_server_id", "The member's id.", "server_id", {f"{status.member:x}": 1})
        yield counter("etcd_server_leader_changes_seen", "Other leaders than before.", replica.leader_changes)
        yield gauge("etcd_server_proposals_committed_total", "Its commit index.", status.commit_index)
        yield gauge("etcd_server_proposals_applied_total", "Its applied index.", status.applied_index)
        yield gauge("etcd_server_proposals_pending", "Proposals in the log that are not applied.", proposals.pending)
        yield counter("etcd_server_proposals_failed", "Proposals refused, or of unknown outcome.", proposals.failed)
        yield counter("etcd_server_slow_apply", "Batches that took over 0.1 s to apply.", replica.slow_applies)
        yield counter("etcd_server_slow_read_indexes", "Frames of reads that took over 0.1 s.", replica.slow.reads)
        yield counter("etcd_server_read_indexes_failed", "Reads whose time passed before a quorum spoke.", reads.failed)
        late = "Times that a leader's heartbeat was late by more than its interval."
        yield counter("etcd_server_heartbeat_send_failures", late, replica.late_heartbeats)
        arriving = replica.snapshots.is_receiving
        yield gauge("etcd_server_snapshot_apply_in_progress_total", "Whether a snapshot arrives.", arriving)
        yield gauge("etcd_server_quota_backend_bytes", "Size at which puts are refused.", replica.limits.quota_bytes)
        yield gauge("raykeeper_raft_term", "Its Raft term.", status.term)
        yield gauge("raykeeper_raft_log_last_index", "The last index in its log.", status.last_log_index)
        yield gauge("raykeeper_raft_log_first_index", "The first index in its log.", status.first_log_index)
        yield gauge("raykeeper_raft_voters", "Voters, as far as it knows.", len(status.voters))
        yield gauge("raykeeper_raft_learners", "Learners, as far as it knows.", len(status.learners))
        yield gauge("raykeeper_serving", "Whether it serves clients.", not status.why_not_serving)
        silent = {member_name(member): seconds for member, seconds in status.silent.items()}
        yield gauges("raykeeper_peer_silent_seconds", "Of a leader: how long a member was silent.", "To", silent)
        matched: dict[str, float] = {}
        if replica.is_leader:
            for member, progress in list(replica.node.progress.items()):
                if member != status.member:
                    matched[member_name(member)] = max(0, status.last_log_index - progress.match_index)
        yield gauges("raykeeper_peer_lag_entries", "Of a leader: entries that a member's log lacks.", "To", matched)
        lacking = {member_name(member): seconds for member, seconds in status.lacking_for.items()}
        lacks = "Of a leader: for how long a member's log has lacked what is committed."
        yield gauges("raykeeper_peer_lag_seconds", lacks, "To", lacking)
        alarms = [
            Sample("", 1.0, (("holder", member_name(alarm.member)), ("alarm", alarm.kind))) for alarm in status.alarms
        ]
        yield Family("raykeeper_alarm", "gauge", "1 for each alarm.", tuple(alarms))

    def _disk(self, status: MemberStatus) -> Iterator[Family]:
        folder, snapshots = self._replica.folder, self._replica.snapshots
        syncs, writes = folder.log.sync_times, folder.state.write_times
        yield histogram("etcd_disk_wal_fsync_duration_seconds", "Fsyncs of the Raft log.", syncs)
        yield histogram("etcd_disk_backend_commit_duration_seconds", "Writes of applied entries to RocksDB.", writes)
        yield gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the Raft log.", folder.log.written_bytes)
        packed = "From a checkpoint of the state to a snapshot of it."
        yield histogram("etcd_disk_backend_snapshot_duration_seconds", packed, snapshots.pack_times)
        operators = self._handler.operators
        yield histogram("etcd_disk_backend_defrag_duration_seconds", "Defragmentations.", operators.defragment_times)
        yield gauge("etcd_disk_defrag_inflight", "Whether one runs.", operators.defragmenting)
        yield histogram("etcd_mvcc_hash_rev_duration_seconds", "Hashing of keys (HashKV).", operators.hash_times)
        yield gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes of its state and log on disk.", status.db_size)
        in_use = min(status.db_size_in_use, status.db_size)
        yield gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Of these bytes, those not overwritten or deleted; roughly.",
            in_use,
        )
        yield gauge("raykeeper_disk_free_bytes", "Free on its disk, at the last look.", status.free_bytes)
        yield gauge("raykeeper_raft_log_bytes", "Bytes of the entries that its log holds.", folder.log.size_bytes)
        yield counter("raykeeper_snapshots_made", "Snapshots made for other members.", snapshots.made)
        yield counter(
            "raykeeper_snapshots_installed", "Snapshots from a leader that were taken over.", snapshots.installed
        )

    def _keys(self, status: MemberStatus) -> Iterator[Family]:
        state = self._replica.state
        mvcc, executor = state.mvcc, state.executor
        yield counter("etcd_mvcc_put", "Puts that were applied.", mvcc.puts)
        yield counter("etcd_mvcc_delete", "Keys that were deleted.", mvcc.deletes)
        yield counter("etcd_mvcc_txn", "Transactions that were applied.", executor.txns)
        yield counter("etcd_mvcc_range", "Ranges that were read.", state.ranges)
        yield counter("etcd_debugging_mvcc_range", "The same, under the older name.", state.ranges)
        yield gauge("etcd_debugging_auth_revision", "Changes of users and roles.", state.users.head.revision)
        compacted = "Records of changes that compaction removed."
        yield counter("etcd_debugging_mvcc_db_compaction_keys", compacted, state.compacted_changes)
        yield gauge("etcd_debugging_mvcc_current_revision", "The revision that it has applied.", status.revision)
        yield gauge("etcd_debugging_mvcc_compact_revision", "The oldest that it can read.", status.compact_revision)
        yield gauge(
            "raykeeper_remembered_requests", "Requests with an id that are remembered.", state.remembered_requests
        )

    def _leases_and_sessions(self) -> Iterator[Family]:
        state = self._replica.state
        executor, renewed = state.executor, self._replica.duties.leases_renewed
        yield counter("etcd_debugging_lease_granted", "Leases that were granted.", executor.granted)
        yield histogram("etcd_debugging_lease_ttl_total", "TTLs of leases that were granted.", executor.lease_ttls)
        yield counter("etcd_debugging_lease_revoked", "Leases that were revoked.", executor.revoked)
        yield counter("etcd_debugging_lease_renewed", "Keep-alives that this leader has answered.", renewed)
        yield counter("etcd_debugging_server_lease_expired", "Leases that ran out.", executor.expired)
        yield gauge("raykeeper_leases", "Leases that there are.", len(state.leases))
        yield gauge("raykeeper_sessions", "Client processes with a session.", len(state.sessions))

    def _watches(self) -> Iterator[Family]:
        watches = self._replica.watches
        now = watches.figures(self._replica.turn_began)
        yield gauge("etcd_debugging_mvcc_watch_stream_total", "Streams of watches: client processes.", now.streams)
        yield gauge("etcd_debugging_mvcc_watcher_total", "Watches.", now.watches)
        yield gauge("etcd_debugging_mvcc_slow_watcher_total", "Watches with something to read.", now.due)
        yield counter("etcd_debugging_mvcc_events", "Events that were sent to watches.", watches.events_sent)
        yield gauge("raykeeper_watch_lag_revisions", "Revisions that the slowest watch has not read.", now.lag)
        yield gauge("raykeeper_watch_silent_seconds", "For how long its client has not asked.", now.silent)

    # -- coordination -------------------------------------------------------------------------------------------------

    def _contended(self) -> Iterator[Family]:
        """Contenders are keys: they are counted by a scan with a bound, once in a while."""
        now = time.monotonic()
        if now >= self._scan_at:
            self._scan_at = now + METRICS_SCAN_PAUSE_S
            self._contenders, self._names = self._scan()
        contenders = {kind.decode(): self._contenders[kind] for kind in _LINES}
        held = {kind.decode(): self._names[kind] for kind in _EXCLUSIVE}
        waiting = {kind.decode(): self._contenders[kind] - self._names[kind] for kind in _EXCLUSIVE}
        what = f"Contenders by kind of call; of each, at most {METRICS_SCANNED_KEYS} keys are looked at."
        yield gauges("raykeeper_contenders", what, "kind", contenders)
        yield gauges("raykeeper_locks_held", "Names that are held: of locks and elections.", "kind", held)
        yield gauges("raykeeper_locks_waited_for", "Contenders that wait for such a name.", "kind", waiting)

    def _scan(self) -> tuple[Counter[bytes], Counter[bytes]]:
        """Contenders and names by kind. A ticket's key is ``r<kind>/<name>/p/<ticket>``."""
        contenders: Counter[bytes] = Counter()
        names: Counter[bytes] = Counter()
        state = self._replica.state
        for kind in _LINES:
            area = RESERVED_SPACE + kind
            wanted = Range(
                KeyRange(area + b"/", area + b"0"), limit=METRICS_SCANNED_KEYS, keys_only=True, uncounted=True
            )
            try:
                found = state.range(wanted, page_items=METRICS_SCANNED_KEYS, page_bytes=1 << 20)
            except KeeperError:  # the state is being replaced
                continue
            if not isinstance(found, RangeAnswer):
                continue
            tickets = [parts for item in found.items if len(parts := item.key.split(b"/")) == 4 and parts[2] == b"p"]
            contenders[kind] = len(tickets)
            names[kind] = len({parts[1] for parts in tickets})
        return contenders, names

    # -- the process --------------------------------------------------------------------------------------------------

    def _loop(self) -> Iterator[Family]:
        replica = self._replica
        events, size, frames = self._inbox.depths
        yield histogram("raykeeper_turn_duration_seconds", "Turns of the member's loop.", replica.turn_times)
        yield histogram("raykeeper_turn_events", "Messages and events of a turn.", replica.turn_sizes)
        yield histogram("raykeeper_batch_writes", "Writes of a client's frame.", self._handler.batch_sizes)
        depths = {"events": events, "frames": frames, "proposals": replica.proposals.pending}
        depths["reads"] = replica.reads.pending
        yield gauges("raykeeper_queue_depth", "What waits in the member, by kind.", "queue", depths)
        yield gauge("raykeeper_queue_bytes", "Bytes of clients' requests that wait in the inbox.", size)
        yield counter("raykeeper_slow_writes", "Writes that took over 0.1 s here.", replica.slow.writes)
        yield counter("raykeeper_big_answers", "Answers to reads of over 4 MiB.", replica.slow.big_answers)
        yield counter("raykeeper_refused_requests", "Requests refused because the inbox was full.", replica.slow.floods)
        yield gauge("raykeeper_clock_seconds", "The clock of the member's host, since 1970.", time.time())

    def _network(self) -> Iterator[Family]:
        transport = self._transport
        trips = {f"{member:x}": seen for member, seen in dict(self._replica.round_trips).items()}
        what = "Of a leader: heartbeats and their answers."
        yield histograms("etcd_network_peer_round_trip_time_seconds", what, "To", trips)
        sent = {f"{member:x}": count for member, count in dict(transport.sent_bytes).items()}
        yield counters("etcd_network_peer_sent_bytes", "Bytes sent to a member.", "To", sent)
        received = {f"{member:x}": count for member, count in dict(transport.received_bytes).items()}
        yield counters("etcd_network_peer_received_bytes", "Bytes received from a member.", "From", received)
        failures = {f"{member:x}": count for member, count in dict(transport.failures).items()}
        yield counters("etcd_network_peer_sent_failures", "What could not be sent to a member.", "To", failures)
        me = f"{self._replica.folder.identity.member:x}"
        active = [Sample("", 1.0, (("Local", me), ("Remote", f"{to:x}"))) for to in transport.with_lane()]
        yield Family("etcd_network_active_peers", "gauge", "Members to which a lane is open.", tuple(active))
        offsets = {member_name(member): ahead for member, ahead in transport.clocks.offsets().items()}
        what = "By how much the clock of a member's host is ahead of this one's."
        yield gauges("raykeeper_peer_clock_offset_seconds", what, "To", offsets)
        yield counters("raykeeper_peer_frames", "Frames to and from members.", "what", transport.counters())
        of_clients, of_peers = (0, 0) if self._lanes is None else self._lanes.lanes_open()
        lanes = {"clients": of_clients, "peers": of_peers}
        yield gauges("raykeeper_lanes", "Open lanes.", "of", lanes)
