"""What the cluster's settings mean for a member's consensus core."""

from __future__ import annotations

from ...limits import MAX_PROMISE_S, Limits, Timings
from ...raft import NodeConfig
from ...store.data_dir import Identity


def node_config(identity: Identity, timings: Timings, limits: Limits) -> NodeConfig:
    """The core's configuration under these settings; a tick is a heartbeat interval.

    Whether there are lease reads is fixed when the cluster is created, so every member knows it from its first start.
    """
    return NodeConfig(
        id=identity.member,
        promise=min(timings.election_timeout, MAX_PROMISE_S) if identity.settings.lease_reads else 0.0,
        max_promise=MAX_PROMISE_S,
        quorum_first=True,
        clock_drift=identity.settings.clock_drift,
        election_ticks=max(2, round(timings.election_timeout / timings.heartbeat_interval)),
        heartbeat_ticks=1,
        max_append_bytes=limits.max_append_bytes,
        max_append_messages_in_flight=limits.max_append_messages_in_flight,
        max_append_bytes_in_flight=limits.max_append_bytes_in_flight,
        max_uncommitted_bytes=limits.max_uncommitted_bytes,
        max_apply_bytes=limits.max_apply_bytes,
        snapshot_chunk_bytes=limits.snapshot_chunk_bytes,
    )
