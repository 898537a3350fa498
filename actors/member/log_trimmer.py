"""Trims the log: a log that is long enough gives up what the state holds on disk (paper, section 7)."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from ...limits import SLOW_S, Limits
from ...store.data_dir import DataDir
from .snapshots import Snapshots


class LogTrimmer:
    """Trims one member's log.

    Args:
        folder: the member's data.
        snapshots: those that it sends; the log must continue them.
        limits: the cluster's limits.
        slow_sync: told of a slow sync of the state: its seconds, and up to which index the log is trimmed.
    """

    def __init__(
        self, folder: DataDir, snapshots: Snapshots, limits: Limits, slow_sync: Callable[[float, int], None]
    ) -> None:
        self._folder = folder
        self._snapshots = snapshots
        self.limits = limits
        self._slow_sync = slow_sync

    def trim(self) -> None:
        """Trim the log up to what is applied. The state is synced first, past the new start of the log: otherwise a
        loss of power could leave neither the entries nor their effect."""
        log, state = self._folder.log, self._folder.state
        trim_to = self._last_index_to_trim()
        if trim_to >= log.first_index():
            began = monotonic()
            state.sync()
            if (took := monotonic() - began) >= SLOW_S:
                self._slow_sync(took, trim_to)
            log.trim(trim_to, state.configuration)

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
