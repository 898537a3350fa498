"""The configuration of a node, and ``Ready``, its output."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from .messages import Entry, HardState, InstallSnapshot, Message, SnapshotMeta


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """Settings of one node. Sizes are in bytes, times in ticks unless stated otherwise.

    Raises:
        ValueError: a value is out of its range.
    """

    id: int
    election_ticks: int = 10
    """The shortest election timeout. A follower that hears from no leader for this long, up to twice as long,
    campaigns."""
    heartbeat_ticks: int = 1
    max_append_bytes: int
    """Bound on the entries of one AppendEntries; one entry always fits."""
    max_append_messages_in_flight: int
    max_append_bytes_in_flight: int
    max_uncommitted_bytes: int
    """Bound on a leader's uncommitted entries: proposals beyond it are refused, but one alone always fits."""
    max_apply_bytes: int
    """Bound on the committed entries of one ``Ready``; one entry always fits."""
    snapshot_chunk_bytes: int
    promise: float = 0.0
    """Seconds on the owner's clock (``Node.set_time``) for which each heartbeat asks the follower to elect no other
    leader, so that the leader can serve reads without a round trip. 0: no lease reads. See ``leader_lease``."""
    max_promise: float = 3600.0
    """Seconds. A heartbeat that asks for more is ignored: a wrong promise would be kept over restarts."""
    quorum_first: bool = False
    """A leader sends to a quorum at once, and to the others when the owner says so. See ``quorum_first``."""
    clock_drift: float = 0.1
    """Bound on how much faster any member's clock may run than another's, as a fraction."""

    def __post_init__(self) -> None:
        """A leader must be heard within every election timeout (paper, 5.6: broadcast time below election timeout), a
        promise must end, and no bound may be so small that nothing ever fits."""
        if self.id < 1:
            raise ValueError("a member id is at least 1")
        if self.heartbeat_ticks < 1 or self.election_ticks <= self.heartbeat_ticks:
            raise ValueError("1 <= heartbeat_ticks < election_ticks must hold")
        if not 0 <= self.clock_drift < 1:
            raise ValueError("0 <= clock_drift < 1 must hold")
        if not 0 <= self.promise <= self.max_promise:
            raise ValueError("0 <= promise <= max_promise must hold")
        bounds = (
            self.max_append_bytes,
            self.max_append_messages_in_flight,
            self.max_append_bytes_in_flight,
            self.max_uncommitted_bytes,
            self.max_apply_bytes,
            self.snapshot_chunk_bytes,
        )
        if min(bounds) < 1:
            raise ValueError("every bound is at least 1")


class Ready(msgspec.Struct):
    """What the owner has to do, in this order; afterwards it calls ``Node.advance``."""

    messages: list[Message]
    """To send at once: they depend on nothing that is to be written."""
    entries: list[Entry]
    """To append to the log. They replace durable entries from the first of these indexes on."""
    hard_state: HardState | None
    """To write together with the entries; ``None`` if unchanged and there are none."""
    must_sync: bool
    """The write (or, if there is none, all earlier ones) must be on disk before the next step."""
    messages_after: list[Message]
    """To send after the write: votes and answers to AppendEntries promise that something is on disk."""
    committed: list[Entry]
    """To apply, in order. CONFIGURATION entries go through ``Node.apply_configuration``."""
    chunk: InstallSnapshot | None = None
    """A chunk to store. Report it with ``snapshot_progress``, and at the end with ``snapshot_installed`` or
    ``snapshot_rejected``."""
    read_states: list[tuple[int, int]] = []
    """(context, index): these reads are linearizable once ``index`` is applied."""
    failed_reads: list[int] = []
    """Contexts that will not be confirmed, because the leader is lost: ask again."""
    rejected_snapshots: list[SnapshotMeta] = []
    """Snapshots of this node that a receiver found damaged: the next ``Storage.snapshot`` should be another one."""
