"""Says in the log which requests were slow, and where their time went; which answers were big; who floods and who lags.

The fast path pays for a comparison of two numbers: everything here is called only when one of them was too large. The
log's own rate limit (``actors/logs.py``) bounds the lines.

A write's time has four parts: it *waits* in the inbox until it is proposed, is written to the *log* of this member,
waits for the word of a *quorum*, and is *applied*. A linearizable read *waits* for a quorum's word, and is *read*.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from ...limits import (
    BIG_ANSWER_BYTES,
    LAG_LOG_REVISIONS,
    LAG_LOG_S,
    MAX_SLOW_APPENDS,
    SHOWN_KEY_BYTES,
    SLOW_KEPT,
    SLOW_S,
)
from ...raft import Entry
from ...schema.commands import ByUser, ClientWrites, Command
from ...schema.frames import Read
from ...schema.key_spaces import USER_SPACE
from ...schema.operations import Compact, Delete, LeaseGrant, LeaseRevoke, Operation, Put, Range, Txn
from ...schema.operator_frames import SlowRequest
from ..logs import MemberLog
from .events import Proposal
from .watches import WatchFigures


class SlowRequests:
    """See the module; any thread, except that appends and writes are the loop's.

    Args:
        log: where the lines go.
        wall: seconds since 1970; without it, nothing is kept to be shown.
    """

    def __init__(self, log: MemberLog, wall: Callable[[], float] | None = None) -> None:
        self._log = log
        self._wall = wall
        self.recent: deque[SlowRequest] = deque(maxlen=SLOW_KEPT)
        """The last slow requests."""
        self._appends: deque[tuple[int, int, float]] = deque(maxlen=MAX_SLOW_APPENDS)
        """First and last index, and seconds, of the last writes to the log that took longer than ``NOTED_APPEND_S``."""
        self._lagging = (b"", 0.0)
        """The stream that lags, and since when."""
        self.apply_began = 0.0
        """When the entries that are answered now began to be applied, on the member's clock; and..."""
        self.apply_took = 0.0
        """... how many seconds that took."""
        self._closed = False
        self.writes = self.reads = self.big_answers = self.floods = 0
        """Of each, how many there were; for metrics."""

    # -- writes -------------------------------------------------------------------------------------------------------

    def note_append(self, entries: Sequence[Entry], seconds: float) -> None:
        """These entries were written to the log in more than ``NOTED_APPEND_S``."""
        if entries:
            self._appends.append((entries[0].index, entries[-1].index, seconds))

    def wrote(self, proposal: Proposal, index: int, proposed_at: float) -> None:
        """A proposal was answered more than ``SLOW_S`` after it had arrived."""
        self.writes += 1
        began, took = self.apply_began, self.apply_took
        log = sum(seconds for first, last, seconds in self._appends if first <= index <= last)
        what, whole = describe_command(proposal.decoded), began + took - proposal.arrival
        parts = (max(0.0, proposed_at - proposal.arrival), log, max(0.0, began - proposed_at - log), took)
        self._log.info(
            "slow request: %s took %.3f s: %.3f waiting, %.3f log, %.3f quorum, %.3f apply (index %d, session %x)",
            what,
            whole,
            *parts,
            index,
            proposal.session,
        )
        self._keep(whole, what, "{:.3f} waiting, {:.3f} log, {:.3f} quorum, {:.3f} apply".format(*parts))

    # -- reads --------------------------------------------------------------------------------------------------------

    def read(self, reads: Sequence[Read], waited: float, took: float, size: int) -> None:
        """Reads were answered: after more than ``SLOW_S``, or with more than ``BIG_ANSWER_BYTES``.

        Args:
            waited: seconds until they were allowed to run.
            took: seconds in which they ran.
            size: bytes of the answer.
        """
        what = describe_ranges([read.range for read in reads])
        if waited + took >= SLOW_S:
            self.reads += 1
            line = "slow request: %s took %.3f s: %.3f waiting, %.3f reading (%d bytes)"
            self._log.info(line, what, waited + took, waited, took, size)
            self._keep(waited + took, what, f"{waited:.3f} waiting, {took:.3f} reading")
        if size >= BIG_ANSWER_BYTES:
            self.big_answers += 1
            self._log.info("big answer: %d bytes for %s (a limit, or count_only, or keys_only?)", size, what)

    def _keep(self, took: float, what: str, parts: str) -> None:
        if self._wall is not None:
            self.recent.append(SlowRequest(self._wall(), round(took, 3), f"{what}: {parts}"))

    # -- clients that flood, watchers that lag ------------------------------------------------------------------------

    def refused(self, event: object) -> None:
        """An event was refused because the inbox is full, or because the member stops."""
        if self._closed:
            return
        self.floods += 1
        session = event.session if isinstance(event, Proposal) else 0
        self._log.warning(
            "clients flood this member: its inbox is full; it refuses requests, as of session %x", session
        )

    def close(self) -> None:
        """The member stops: it refuses requests because of that."""
        self._closed = True

    def follow_watches(self, figures: WatchFigures, now: float) -> None:
        """How watches are now: one line for a stream that has lagged for ``LAG_LOG_S``, and again after as long."""
        if figures.lag < LAG_LOG_REVISIONS:
            self._lagging = (b"", now)
            return
        stream, since = self._lagging
        if stream != figures.slowest:
            self._lagging = (figures.slowest, now)
        elif now - since >= LAG_LOG_S:
            self._lagging = (stream, now)
            self._log.warning(
                "a watcher lags: stream %s of %s has %d revisions to read, and its client has not asked for %.1f s",
                stream.hex(),
                figures.source or "an unknown client",
                figures.lag,
                figures.silent,
            )


def describe_command(command: Command | None) -> str:
    """What a command does, for people: kinds, and the first key. Values are not shown."""
    if isinstance(command, ByUser):
        command = command.command
    if not isinstance(command, ClientWrites):
        return "a command" if command is None else type(command).__name__
    writes = command.writes
    first = _describe_operation(writes[0].operation)
    return first if len(writes) == 1 else f"{first} and {len(writes) - 1} more"


def _describe_operation(operation: Operation) -> str:
    if isinstance(operation, Put):
        return f"put of {_key(operation.key)} ({len(operation.value or b'')} bytes)"
    if isinstance(operation, Delete):
        return f"delete of {_range(operation.keys.key, operation.keys.end)}"
    if isinstance(operation, Range):
        return describe_ranges([operation])
    if isinstance(operation, Txn):
        most = max(len(operation.success), len(operation.failure))
        return f"txn of {len(operation.compare)} comparisons, {most} operations"
    if isinstance(operation, Compact):
        return f"compaction to {operation.revision}"
    if isinstance(operation, LeaseGrant | LeaseRevoke):
        return f"{type(operation).__name__} {operation.id}"
    return type(operation).__name__


def describe_ranges(ranges: Sequence[Range]) -> str:
    """What reads are for, for people."""
    if not ranges:
        return "no read"
    first = ranges[0]
    more = f" and {len(ranges) - 1} more" if len(ranges) > 1 else ""
    return f"read of {_range(first.keys.key, first.keys.end)}{more}"


def _range(key: bytes, end: bytes | None) -> str:
    if end is None:
        return _key(key)
    return f"[{_key(key)}, {_key(end) if end else 'the last key'})"


def _key(key: bytes) -> str:
    """A user's key as the user writes it; one of a coordination call as it is stored."""
    key = key[1:] if key.startswith(USER_SPACE) else key
    return repr(key[:SHOWN_KEY_BYTES])[1:] + ("..." if len(key) > SHOWN_KEY_BYTES else "")
