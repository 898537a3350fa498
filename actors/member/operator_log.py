"""What an operator wants to read afterwards about one replica: who led, why that changed, who was lost, what was slow.

Changes are not reported to this file. It compares what the replica is with what it was, the leadership in each turn and
everything else once a heartbeat interval, and logs the difference. So no path can forget a line, and a turn in which
nothing changes costs a few comparisons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from ...raft import Entry, Node, Ready
from ...raft.messages import Configuration, EntryKind
from ...raft.progress import ProgressState
from ...schema.commands import AlarmKind, ClientWrites, Command
from ..logs import MemberLog
from ..naming import member_name

if TYPE_CHECKING:
    from .replica import Replica

_decode_command = msgspec.msgpack.Decoder(Command).decode
_CAMPAIGNS = ("pre-candidate", "candidate")


class OperatorLog:
    """Logs what changes on one replica. For the loop's thread.

    Args:
        log: where they go.
        node: the replica's consensus.
        alarms, compact_revision: of the state as it was opened.
    """

    def __init__(
        self, log: MemberLog, node: Node, alarms: Mapping[tuple[int, AlarmKind], str], compact_revision: int
    ) -> None:
        self.log = log
        self._node = node
        self._role = node.role
        self._term = node.term
        self._leader = node.leader
        self._transfer_target = node.transfer_target
        self._last_led = ""
        """Who led last, and in which term, for people; empty if no leader is known."""
        self._alarms = dict(alarms)
        self._compact_revision = compact_revision
        self._configuration = node.configuration
        self._silent: dict[int, float] = {}
        """Members that the leader has reported as silent, and for how long they had been at the last look."""
        self._snapshots_to: set[int] = set()
        self._not_serving = False

    # -- leadership ---------------------------------------------------------------------------------------------------

    def follow_leadership(self) -> None:
        """Log what has changed in role, term and leader since the last call."""
        node = self._node
        if node.transfer_target != self._transfer_target:
            self._log_transfer(node)
        if node.leader == self._leader and node.role == self._role and node.term == self._term:
            return
        self._log_leadership(node)
        if node.leader:
            self._last_led = f"{member_name(node.leader)} led in term {node.term}"
        self._role, self._term, self._leader = node.role, node.term, node.leader

    def _log_transfer(self, node: Node) -> None:
        if node.transfer_target:
            why = "its state is lost" if node.needs_snapshot else "it was asked to"
            self.log.info("hands leadership over to %s: %s", member_name(node.transfer_target), why)
        elif node.role == "leader":
            self.log.info("leads on: %s did not take over", member_name(self._transfer_target))
        self._transfer_target = node.transfer_target

    def _log_leadership(self, node: Node) -> None:
        """A step down first, with its reason; then what came of an election."""
        info, leader = self.log.info, member_name(node.leader)
        if self._role == "leader" and node.role != "leader":
            info("no longer leads since term %d: %s", self._term, self._why_stepped_down(node))
        if node.role == "leader":
            if (self._role, self._term) != ("leader", node.term):
                info("won the election and leads in term %d (%s)", node.term, self._before())
        elif node.leader:
            if (node.leader, node.term) != (self._leader, self._term):
                lost = "lost the election: " if self._role in _CAMPAIGNS else ""
                info("%s%s leads in term %d (%s)", lost, leader, node.term, self._before())
        elif node.role in _CAMPAIGNS:
            if self._role not in _CAMPAIGNS:
                why = "the leader has asked it to" if node.taking_over else "it hears from no leader"
                info("campaigns in term %d: %s (%s)", node.term, why, self._before())
        elif self._role in _CAMPAIGNS:
            info("lost the election: no leader is known in term %d", node.term)
        elif self._leader and self._role != "leader":
            info("%s leads no longer: an election has begun in term %d", member_name(self._leader), node.term)

    def _before(self) -> str:
        return f"before, {self._last_led}" if self._last_led else "no leader was known before"

    def _why_stepped_down(self, node: Node) -> str:
        if node.leader:
            return f"{member_name(node.leader)} leads in term {node.term}"
        if node.term > self._term:
            return f"an election has begun in term {node.term}"
        if not node.is_voter:
            return "it is no longer a voter"
        return "for an election timeout it has not heard from a quorum"

    # -- everything else ----------------------------------------------------------------------------------------------

    def follow_state(self, replica: Replica, now: float) -> None:
        """Log what has changed since the last call in the members' health and in the state."""
        state = replica.state
        if state.alarms != self._alarms:
            self._log_alarms(state.alarms)
        if state.compact_revision != self._compact_revision:
            self._compact_revision = state.compact_revision
            self.log.info("history is compacted up to revision %d", self._compact_revision)
        if self._node.configuration != self._configuration:
            self._configuration = self._node.configuration
            self.log.info("the configuration is now %s", describe_configuration(self._configuration))
        why = replica.why_not_serving
        if bool(why) != self._not_serving:
            self._not_serving = bool(why)
            if why:
                self.log.warning("serves no client: %s", why)
            else:
                self.log.info("serves clients again: its state is rebuilt")
        changes = replica.config_changes
        self._log_silence(changes.silent_for(now) if replica.is_leader else {}, changes.silence)
        self._log_snapshots()

    def _log_alarms(self, alarms: Mapping[tuple[int, AlarmKind], str]) -> None:
        for (member, kind), why in alarms.items():
            if (member, kind) not in self._alarms:
                self.log.warning("alarm %s of %s is on: %s", kind.name, member_name(member), why)
        for member, kind in self._alarms:
            if (member, kind) not in alarms:
                self.log.info("alarm %s of %s is off", kind.name, member_name(member))
        self._alarms = dict(alarms)

    def _log_silence(self, silent_for: Mapping[int, float], limit: float) -> None:
        """Which members a leader has lost, and which are back. Another leader reports for itself."""
        for member, seconds in silent_for.items():
            if seconds >= limit:
                if member not in self._silent:
                    self.log.warning("%s is lost: nothing was heard from it for %.1f s", member_name(member), seconds)
                self._silent[member] = seconds
            elif member in self._silent:
                self.log.info("%s is back after %.1f s", member_name(member), self._silent.pop(member))
        for member in self._silent.keys() - silent_for.keys():
            del self._silent[member]

    def _log_snapshots(self) -> None:
        """To which followers a leader sends snapshots."""
        progress = self._node.progress
        sent_to = {member for member, each in progress.items() if each.state is ProgressState.SNAPSHOT}
        if sent_to == self._snapshots_to:
            return
        for member in sorted(sent_to - self._snapshots_to):
            self.log.info("%s needs entries that the log no longer holds, and is sent a snapshot", member_name(member))
        for member in sorted(self._snapshots_to - sent_to):
            if member in progress:
                index = progress[member].match_index
                self.log.info("%s needs no snapshot any more: its log reaches %d", member_name(member), index)
        self._snapshots_to = sent_to

    # -- slow turns and disks -----------------------------------------------------------------------------------------

    def slow_append(self, seconds: float, ready: Ready) -> None:
        """Writing to the log took longer than ``SLOW_S``."""
        size = sum(len(entry.data) for entry in ready.entries)
        what = "with fsync" if ready.must_sync else "without fsync"
        self.log.info("slow disk: %d log entries (%d bytes) %s took %.3f s", len(ready.entries), size, what, seconds)

    def slow_sync(self, seconds: float, trim_to: int) -> None:
        """The flush of the state took longer than ``SLOW_S``."""
        self.log.info("slow disk: flush of the state took %.3f s, before trimming the log up to %d", seconds, trim_to)

    def failed_sync(self, error: Exception) -> None:
        """The flush of the state has failed."""
        self.log.warning("the log cannot be trimmed: the flush of the state has failed: %s", error)

    def slow_apply(self, seconds: float, entries: Sequence[Entry]) -> None:
        """Applying entries took longer than ``SLOW_S``."""
        sizes = [len(entry.data) for entry in entries]
        self.log.info(
            "slow apply: %d entries up to index %d took %.3f s (%d bytes, the largest entry %d): %s",
            len(entries),
            entries[-1].index if entries else 0,
            seconds,
            sum(sizes),
            max(sizes, default=0),
            _Contents(entries),
        )

    def command_error(self, index: int, error: Exception) -> None:
        """A command has raised an error while it was applied: a bug, on every member in the same way."""
        self.log.error("a bug: the command at index %d raised an error", index, exc_info=error)

    def slow_turn(self, seconds: float, times: TurnTimes, messages: Sequence[object], events: Sequence[object]) -> None:
        """A turn took longer than ``SLOW_S``."""
        kinds = Counter(type(each).__name__ for each in (*messages, *events))
        self.log.info(
            "slow turn: %.3f s, of which append %.3f, apply %.3f, housekeeping %.3f; it had taken %s",
            seconds,
            times.append,
            times.apply,
            times.housekeeping,
            _counted(kinds),
        )


class _Contents:
    """What entries hold, as text: decoded only if the line is written."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries

    def __str__(self) -> str:
        """Never raises, since a log line must not end a turn: what cannot be decoded is named as such."""
        kinds: Counter[str] = Counter()
        for entry in self._entries:
            if entry.kind is EntryKind.CONFIGURATION or not entry.data:
                kinds["configuration" if entry.data else "no-op"] += 1
                continue
            try:
                command = _decode_command(entry.data)
            except (msgspec.MsgspecError, RecursionError):
                kinds["unknown command"] += 1
                continue
            if isinstance(command, ClientWrites):
                kinds.update(type(write.operation).__name__ for write in command.writes)
            else:
                kinds[type(command).__name__] += 1
        return _counted(kinds)


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "nothing"


class TurnTimes:
    """Seconds of one turn that went into what may be slow. In real time, whatever the replica's clock shows: only log
    lines depend on them."""

    __slots__ = ("append", "apply", "began", "housekeeping")

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A turn begins."""
        self.began = monotonic()
        self.append = self.apply = self.housekeeping = 0.0


def describe_configuration(configuration: Configuration) -> str:
    """For people: ``voters m1 m2 m3, learners m4``."""
    parts = [("voters", configuration.voters), ("outgoing voters", configuration.outgoing)]
    parts.append(("learners", configuration.learners))
    return ", ".join(f"{what} {' '.join(map(member_name, members))}" for what, members in parts if members)
