"""Trims the log: a log that is long enough gives up what the state holds on disk (paper, section 7)."""

from __future__ import annotations

from time import monotonic

from ...limits import SLOW_S, Limits
from ...store.data_dir import DataDir
from .operator_log import OperatorLog
from .snapshots import Background, Snapshots


class LogTrimmer:
    """Trims one member's log.

    Args:
        folder: the member's data.
        snapshots: those that it sends; the log must continue them.
        limits: the cluster's limits.
        background: runs the flush of the state elsewhere.
        operator_log: told of flushes that are slow or fail.
    """

    def __init__(
        self,
        folder: DataDir,
        snapshots: Snapshots,
        limits: Limits,
        background: Background,
        operator_log: OperatorLog,
    ) -> None:
        self._folder = folder
        self._snapshots = snapshots
        self.limits = limits
        self._background = background
        self._operator_log = operator_log
        self._flushing = False

    def trim(self) -> None:
        """If the log is long enough, have the state flushed in the background, and trim up to what was applied before:
        otherwise a crash could leave neither the entries nor their effect. After a flush that has failed nothing is
        trimmed, and the next sweep tries again."""
        log, state = self._folder.log, self._folder.state
        if self._flushing or state.lost or self._last_index_to_trim() < log.first_index():
            return
        flushed, configuration = state.applied_index, state.configuration
        began = monotonic()
        self._flushing = True

        def trim(error: Exception | None) -> None:
            self._flushing = False
            trim_to = min(self._last_index_to_trim(), flushed)
            if (took := monotonic() - began) >= SLOW_S:
                self._operator_log.slow_sync(took, trim_to)
            if self._folder.state is not state:
                return
            if error is not None:
                self._operator_log.failed_sync(error)
            elif log.first_index() <= trim_to:
                log.trim(trim_to, configuration)

        self._background(state.flush, trim)

    def _last_index_to_trim(self) -> int:
        """The last index to trim, 0 while the log is short enough. What remains suffices for followers that lag a
        little, so that they need no snapshot, and it continues a snapshot that is being sent."""
        log, limits, applied = self._folder.log, self.limits, self._folder.state.applied_index
        first = log.first_index()
        size = log.size_bytes
        if applied - first + 1 < limits.log_cut_entries + limits.log_keep_entries and size < limits.log_cut_bytes:
            return 0
        mean = size / max(1, log.last_index() - first + 1)
        keep = min(limits.log_keep_entries, int(limits.log_cut_bytes / 2 / max(1.0, mean)))
        needed = self._snapshots.needed_from()
        return applied - keep if needed is None else min(applied - keep, needed)
