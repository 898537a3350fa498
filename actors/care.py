"""What a member looks after beside its loop: room on its disk, and whether its content is that of the others.

Each member watches the size of its state (quota) and what is free on its disk (reserve), and has the leader raise its
NOSPACE alarm through the log, or end it: while any is on, the whole cluster takes no puts and grants no leases, and
deletes, compaction and keep-alives go on. etcd wants an operator to disarm such an alarm; here it ends by itself, well
below the mark at which it began, so that it does not flap. The size is that of the state's files, as etcd's is that of
its database's, and no alarm is raised before what is only logged was moved into tables. While it is on, the member
gives the space of deleted data back to the disk, which RocksDB alone does when it likes.

The leader now and then has all members compare their contents (``content_check``), and raises CORRUPT for whoever
differs. A member that learns this of itself, while a majority agrees, has its state rebuilt from the others'.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ..errors import DataCorrupted
from ..limits import (
    CARE_PATIENCE,
    CARE_PAUSE,
    CHECK_AGAIN,
    CHECK_ATTEMPTS,
    CHECK_RETRY,
    CHECK_SILENCE,
    CHECK_TIMEOUT,
    POLL_PAUSE,
    QUOTA_CLEARS,
    RECLAIM_PAUSE,
    RESERVE_CLEARS,
    Limits,
)
from ..store.commands import Administration, AlarmKind, Answer, ContentAsked, HashContent, SetAlarm
from .administration import administer, expect
from .content_check import Comparison, judge
from .protocol import ContentHash, MemberStatus
from .roster import ask_all, member_actors, pause
from .seat import member_name
from .server import Server


def free_bytes(path: str) -> int:
    """What this process may still write to the file system of a path."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def lacks_space(on: bool, size: int, free: int, limits: Limits) -> str:
    """Why a member's NOSPACE alarm should be on; empty if it should not.

    Args:
        on: whether it is: then it ends only with some room to spare.
        size: bytes of the member's state.
        free: bytes free on its disk.
    """
    quota = limits.quota_bytes * (QUOTA_CLEARS if on else 1.0)
    reserve = limits.reserve_bytes * (RESERVE_CLEARS if on else 1.0)
    if free < reserve:
        return f"{_megabytes(free)} are free on its disk, and {_megabytes(limits.reserve_bytes)} are to be kept free"
    if size >= quota:
        return f"its data takes {_megabytes(size)} of a quota of {_megabytes(limits.quota_bytes)}"
    return ""


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def should_rebuild(member: int, server: Server, begun: int) -> str:
    """Why this member must have its state rebuilt: its CORRUPT alarm is on, and a majority has none.

    Args:
        begun: last index of the log with which this process began. What was found of the state before that has led to
            a new one already; it is judged anew.
    """
    alarms, voters = server.state.alarms, server.state.configuration.voters
    corrupt = {who for who, kind in alarms if kind is AlarmKind.CORRUPT}
    if member not in corrupt or 2 * len(corrupt.intersection(voters)) >= len(voters):
        return ""
    if not any(result.index > begun for result in server.hashing.results):
        return ""
    return alarms[member, AlarmKind.CORRUPT]


class Caretaker:
    """Two threads beside a serving member's loop.

    Args:
        cluster_name, cluster: the cluster.
        server: the member; only what other threads may read of it is read.
        path: the member's folder.
        tidy: called now and then, for what is to be dropped when it is idle.
    """

    def __init__(
        self, cluster_name: str, cluster: int, server: Server, path: str, tidy: Callable[[], None] = lambda: None
    ) -> None:
        self._name = cluster_name
        self._cluster = cluster
        self._server = server
        self._path = path
        self._tidy = tidy
        self._member = server.folder.identity.member
        self._begun = server.folder.log.last_index()
        self._ended = threading.Event()
        self._next_reclaim = 0.0
        self.free = 0
        """Bytes free on the disk when it was last looked at."""
        for name, look, patience in (("room", self._look_at_disk, CARE_PAUSE), ("content", self._compare, CHECK_RETRY)):
            threading.Thread(target=self._repeat, args=(look, patience), name=f"care for {name}", daemon=True).start()

    def stop(self) -> None:
        """Look after nothing any more; a look that is under way goes on."""
        self._ended.set()

    def _repeat(self, look: Callable[[], None], seconds: float) -> None:
        while not self._ended.wait(seconds):
            # No leader, no disk, no data, no Ray: the loop and the status tell of it, and the next look may do better.
            with suppress(Exception):
                look()

    def _administer(self, command: Administration) -> Answer:
        return expect(administer(self._name, self._cluster, command, time.monotonic() + CARE_PATIENCE))

    # -- room ---------------------------------------------------------------------------------------------------------

    def _look_at_disk(self) -> None:
        self._tidy()
        state = self._server.state
        self.free = free_bytes(self._path)
        place = (self._member, AlarmKind.NOSPACE)
        on = place in state.alarms
        size = state.size()
        if not on and size >= state.limits.quota_bytes:
            # Much of it may be a log of what stands in tables already, was overwritten, or gets smaller when it is
            # compressed: what counts is what is left of it.
            state.flush()
            size = state.size()
        why = lacks_space(on, size, self.free, state.limits)
        if bool(why) != on and self._member in state.configuration.members:
            self._administer(SetAlarm(self._member, AlarmKind.NOSPACE, bool(why), why))
        if on and why and time.monotonic() >= self._next_reclaim:
            self._next_reclaim = time.monotonic() + RECLAIM_PAUSE
            state.reclaim(self.free)
        damaged = should_rebuild(self._member, self._server, self._begun)
        if damaged:
            state.report_damage(DataCorrupted(damaged))

    # -- content ------------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Compare the contents, if this member leads and it is time, whoever led when they were last compared."""
        server = self._server
        interval = server.timings.check_interval
        if any(kind is AlarmKind.CORRUPT for _, kind in server.state.alarms):
            interval = min(interval, CHECK_AGAIN)
        if not server.is_leader or server.seconds_since_check < interval:
            return
        compared = compare_contents(self._name, self._cluster, time.monotonic() + CHECK_TIMEOUT, routine=True)
        self.raise_alarms(compared)

    def raise_alarms(self, compared: Comparison) -> None:
        """Have the CORRUPT alarms be on for whoever differs, and for nobody else who was compared."""
        alarms = self._server.state.alarms
        for member in compared.hashes:
            on = (member, AlarmKind.CORRUPT) in alarms
            if on != (member in compared.odd):
                self._administer(SetAlarm(member, AlarmKind.CORRUPT, not on, "" if on else describe(compared, member)))


def describe(compared: Comparison, member: int) -> str:
    """What is to be said of a member whose content is odd."""
    where = f"at log index {compared.index} (revision {compared.revision})"
    if compared.certain:
        return f"its content differs from that of the majority {where}"
    return f"the members' contents differ {where}, and there is no majority that could tell who is right"


def compare_contents(cluster_name: str, cluster: int, deadline: float, *, routine: bool = False) -> Comparison:
    """Have all members hash their contents at one index of the log, and compare.

    Args:
        deadline: by ``time.monotonic``; who has not said by then is ``silent``.
        routine: whether this is what a leader does every ``check_interval``.

    Raises:
        Unavailable, RequestTimeout: no leader took the question.
        ClusterNotFound, ClusterMismatch: no such cluster runs.
    """
    for _ in range(CHECK_ATTEMPTS):
        asked = expect(administer(cluster_name, cluster, HashContent(routine), deadline))
        assert isinstance(asked, ContentAsked)
        compared = _collect(cluster_name, cluster, asked.index, deadline)
        if not compared.silent or compared.odd or time.monotonic() >= deadline:
            break
    return compared


def _collect(cluster_name: str, cluster: int, index: int, deadline: float) -> Comparison:
    """The hashes of all members as of a log index, once each has told it or can no longer have it."""
    found: dict[int, ContentHash] = {}
    began, heard = time.monotonic(), dict[int, float]()
    while True:
        statuses: dict[int, MemberStatus] = ask_all(member_actors(cluster_name), "status")
        statuses = {member: status for member, status in statuses.items() if status.cluster == cluster}
        for member, status in statuses.items():
            heard[member] = time.monotonic()
            for result in status.contents:
                if result.index == index:
                    found[member] = result
        never = {member for member, status in statuses.items() if _will_never_tell(status, index)}
        newest = max(statuses.values(), key=lambda status: status.applied_index, default=None)
        voters = newest.voters if newest is not None else ()
        everybody = sorted({*voters, *(newest.learners if newest is not None else ())})
        silence = time.monotonic() - CHECK_SILENCE
        never |= {member for member in everybody if heard.get(member, began) < silence}
        if (everybody and set(everybody) <= set(found) | never) or time.monotonic() >= deadline:
            return judge(index, found, voters, everybody)
        pause(POLL_PAUSE)


def _will_never_tell(status: MemberStatus, index: int) -> bool:
    """Whether a member has gone past an index without a hash: hashes come in the order of the log."""
    if status.why_not_serving and not status.applied_index:
        return False  # it is starting; what comes of that is not known yet
    newest = status.contents[-1].index if status.contents else 0
    return index <= status.contents_begin or newest > index


def told(compared: Comparison) -> str:
    """The result of a comparison for people, in one line."""
    if compared.odd:
        odd = ", ".join(map(member_name, compared.odd))
        return f"{odd}: {describe(compared, compared.odd[0])}"
    silent = f"; {', '.join(map(member_name, compared.silent))} did not say" if compared.silent else ""
    return f"the contents of {len(compared.hashes)} members are equal{silent}"
