"""What the core is configured with and what it hands out: the two faces it turns to its owner."""

from __future__ import annotations

from dataclasses import dataclass, field

from .messages import Entry, HardState, InstallSnapshot, Message, SnapshotMeta


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """How one node runs. All bounds come from the owner. Sizes are bytes, times are ticks.

    Raises:
        ValueError: a value makes no sense.
    """

    id: int
    election_ticks: int = 10
    """A follower that heard nothing for this long, or up to twice this long, campaigns."""
    heartbeat_ticks: int = 1
    max_append_bytes: int
    """Entries in one AppendEntries; at least one always fits."""
    max_append_messages_in_flight: int
    max_append_bytes_in_flight: int
    max_uncommitted_bytes: int
    """Entries that a leader has taken and not yet committed; more are refused, but one proposal always fits."""
    max_apply_bytes: int
    """Committed entries in one ``Ready``; at least one always fits."""
    snapshot_chunk_bytes: int
    promise: float = 0.0
    """For how long a leader asks its followers to stand by it with each heartbeat, in the unit of the owner's clock
    (``Node.set_time``), so that it can serve reads without a round trip; 0: there are no lease reads. See ``lease``."""
    max_promise: float = 3600.0
    """More is promised to nobody: a wrong one would be kept over restarts."""
    clock_drift: float = 0.1
    """Bound on how much faster, as a fraction, any member's clock may run than another's."""

    def __post_init__(self) -> None:
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


@dataclass(slots=True)
class Ready:
    """What the owner has to do, in this order; then it calls ``Node.advance``."""

    messages: list[Message]
    """To send at once: they promise nothing."""
    entries: list[Entry]
    """To append to the log; durable entries from the first of these indexes on are replaced."""
    hard_state: HardState | None
    """To write together with the entries; ``None`` if unchanged and there are none."""
    must_sync: bool
    """The write (or, if there is none, all earlier ones) must be on disk before the next step."""
    messages_after: list[Message]
    """To send after the write: votes, and answers to AppendEntries, are promises."""
    committed: list[Entry]
    """To apply, in order. CONFIGURATION entries go through ``Node.apply_configuration``."""
    chunk: InstallSnapshot | None = None
    """To store; then ``snapshot_progress``, and in the end ``snapshot_installed`` or ``snapshot_rejected``."""
    read_states: list[tuple[int, int]] = field(default_factory=list)
    """(context, index): those reads are linearizable once ``index`` is applied."""
    failed_reads: list[int] = field(default_factory=list)
    """Contexts that will never be confirmed, since the leader is lost: ask again."""
    rejected_snapshots: list[SnapshotMeta] = field(default_factory=list)
    """Images of ours that a receiver found damaged: the next ``Storage.snapshot`` should be another one."""
