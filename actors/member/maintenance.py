"""Maintenance beside a member's loop: space on its disk, and whether its content equals the others'.

Each member watches the size of its state (quota) and the free space on its disk (reserve), and has the leader raise or
clear its NOSPACE alarm through the log. While any is on, the whole cluster refuses puts and lease grants; deletes,
compaction and keep-alives go on. In etcd an operator has to disarm such an alarm; here it is cleared automatically,
well below the level that raised it, so that it does not flap. The size is that of the state's files, as etcd's is that
of its database file, and before an alarm is raised the memtables are flushed. While it is on, the member compacts
tables to return the space of deleted data, which RocksDB would do later.

The leader regularly has all members compare their contents (``check_interval``), and raises CORRUPT for those that
differ. A member with that alarm, while a majority has none, has its state rebuilt from the others'.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from ...errors import DataCorrupted, KeeperError
from ...limits import (
    ALARM_RETRY_S,
    CHECK_REPEAT_S,
    CHECK_RETRY_S,
    CHECK_TIMEOUT_S,
    DISK_CHECK_PAUSE_S,
    QUOTA_CLEAR_FRACTION,
    RECLAIM_PAUSE_S,
    RESERVE_CLEAR_FACTOR,
    Limits,
)
from ...raft.quorum import is_majority
from ...schema.answers import Answer
from ...schema.commands import Administration, AlarmKind, SetAlarm
from ...store.engine.files import free_bytes
from ..consistency import Comparison, compare_contents, describe
from ..leader_call import administer, expect
from ..logs import MemberLog
from ..one_thread import NoThreadLeft, start_thread
from .replica import Replica


def lacks_space(on: bool, size: int, free: int, limits: Limits) -> str:
    """Why a member's NOSPACE alarm should be on; empty if it should not.

    Args:
        on: whether it is on now: then it is cleared only with some room to spare.
        size: bytes of the member's state.
        free: bytes free on its disk.
    """
    quota = limits.quota_bytes * (QUOTA_CLEAR_FRACTION if on else 1.0)
    reserve = limits.reserve_bytes * (RESERVE_CLEAR_FACTOR if on else 1.0)
    if free < reserve:
        return f"{_megabytes(free)} are free on its disk, and {_megabytes(limits.reserve_bytes)} are to be kept free"
    if size >= quota:
        return f"its data takes {_megabytes(size)} of a quota of {_megabytes(limits.quota_bytes)}"
    return ""


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def should_rebuild(member: int, replica: Replica, begun: int) -> str:
    """Why this member must have its state rebuilt: its CORRUPT alarm is on, and a majority has none. Else empty.

    Args:
        begun: last index of the log when this process started. A state found damaged before that has been rebuilt
            since, so a newer hash must confirm the alarm.
    """
    alarms, voters = replica.state.alarms, replica.state.configuration.voters
    corrupt = {each for each, kind in alarms if kind is AlarmKind.CORRUPT}
    if member not in corrupt or not is_majority(len(voters) - len(corrupt.intersection(voters)), len(voters)):
        return ""
    if not any(result.index > begun for result in replica.hashing.results):
        return ""
    return alarms[member, AlarmKind.CORRUPT]


class Maintenance:
    """Two threads beside a serving member's loop.

    Args:
        cluster_name, cluster: the cluster.
        replica: the member; only what any thread may read is read.
        path: the member's data directory.
        tidy: called regularly, to drop what is idle.

    Raises:
        NoThreadLeft: the system has no thread left.
    """

    def __init__(
        self, cluster_name: str, cluster: int, replica: Replica, path: str, tidy: Callable[[], None] = lambda: None
    ) -> None:
        self._name = cluster_name
        self._cluster = cluster
        self._replica = replica
        self._path = path
        self._tidy = tidy
        self._log = MemberLog("member", cluster_name, replica.folder.identity.name)
        self._member = replica.folder.identity.member
        self._begun = replica.folder.log.last_index()
        self._ended = threading.Event()
        self._next_reclaim = 0.0
        self.free = 0
        """Bytes free on the disk at the last check."""
        for name, check, pause in (
            ("room", self._check_disk, DISK_CHECK_PAUSE_S),
            ("content", self._compare, CHECK_RETRY_S),
        ):
            repeat = partial(self._repeat, check, pause)
            try:
                start_thread(threading.Thread(target=repeat, name=f"maintenance: {name}", daemon=True))
            except NoThreadLeft:
                self.stop()  # the one that was started
                raise

    def stop(self) -> None:
        """Stop; a check in progress goes on."""
        self._ended.set()

    def _repeat(self, check: Callable[[], None], seconds: float) -> None:
        while not self._ended.wait(seconds):
            try:
                check()
            except KeeperError as error:  # no leader, or not in time: the next check may succeed
                self._log.debug("maintenance has failed, and is tried again: %s", error)
            except Exception as error:  # no disk, no data or no Ray: the loop and the status report that, too
                self._log.info("maintenance has failed, and is tried again: %r", error)

    def _administer(self, command: Administration) -> Answer:
        return expect(administer(self._name, self._cluster, command, time.monotonic() + ALARM_RETRY_S))

    # -- room ---------------------------------------------------------------------------------------------------------

    def _check_disk(self) -> None:
        """Raise or clear this member's NOSPACE alarm, reclaim space while it is on, and have the state rebuilt if it
        was found to differ."""
        self._tidy()
        state = self._replica.state
        self.free = free_bytes(self._path)
        alarm = (self._member, AlarmKind.NOSPACE)
        on = alarm in state.alarms
        size = state.size()
        if not on and size >= state.limits.quota_bytes:
            # Much of it may be in memory, overwritten or compressible, or in tables already: what counts is the size
            # after a flush.
            state.flush()
            size = state.size()
        why = lacks_space(on, size, self.free, state.limits)
        if bool(why) != on and self._member in state.configuration.members:
            self._administer(SetAlarm(self._member, AlarmKind.NOSPACE, bool(why), why))
        if on and why and time.monotonic() >= self._next_reclaim:
            self._next_reclaim = time.monotonic() + RECLAIM_PAUSE_S
            state.reclaim(self.free)
        damaged = should_rebuild(self._member, self._replica, self._begun)
        if damaged:
            state.report_damage(DataCorrupted(damaged))

    # -- content ------------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Compare the contents, if this member leads and a check is due, counted from the last one under any leader."""
        replica = self._replica
        interval = replica.timings.check_interval
        if any(kind is AlarmKind.CORRUPT for _, kind in replica.state.alarms):
            interval = min(interval, CHECK_REPEAT_S)
        if not replica.is_leader or replica.seconds_since_check < interval:
            return
        compared = compare_contents(self._name, self._cluster, time.monotonic() + CHECK_TIMEOUT_S, routine=True)
        self.raise_alarms(compared)

    def raise_alarms(self, compared: Comparison) -> None:
        """Raise CORRUPT alarms for the members that differ, and clear those of the others that were compared."""
        alarms = self._replica.state.alarms
        for member in compared.hashes:
            on = (member, AlarmKind.CORRUPT) in alarms
            if on != (member in compared.odd):
                self._administer(SetAlarm(member, AlarmKind.CORRUPT, not on, "" if on else describe(compared, member)))
