"""Membership changes (thesis, chapter 4): proposed by the leader, in effect on each member when it applies the entry.

A configuration takes effect when its entry is applied, not when it is appended (as in etcd's raft library; the thesis
uses it when it is appended). Three rules make that safe. A member applies the entry only after both the entry and a
commit index that covers it are on disk. The leader proposes the next change only after it has applied the last one, so
a member that holds the next one in its log knows that the last one is committed. And no member campaigns while it knows
of a committed configuration that it has not applied.
"""

from __future__ import annotations

from collections.abc import Sequence

from .configuration import InvalidChange, apply_change, decode_change, encode_change
from .core import LEADER, InvalidProposal, NotLeader, ProposalRefused
from .heartbeats import HeartbeatRounds
from .messages import Configuration, ConfigurationChange, Entry, EntryKind, HeartbeatResponse, MemberChange, TimeoutNow
from .quorum import quorum_value


class Reconfiguration(HeartbeatRounds):
    """Proposing and applying configuration changes."""

    def propose_change(self, changes: Sequence[MemberChange], context: bytes = b"") -> int:
        """Propose a change of the configuration in effect. Empty ``changes`` leave the joint configuration.

        Args:
            changes: the steps. If they alter more than one voter, they go through a joint configuration, which the
                leader leaves on its own.
            context: passed on in the entry, for the proposer.

        Returns:
            The index of the entry. Whether the change took effect is known when it is applied.

        Raises:
            NotLeader: another node has to be asked.
            ProposalRefused: another change is under way, or leadership is being transferred.
            InvalidProposal: the change is not valid on the configuration in effect.
        """
        self._check_proposable()
        if self._last_change > self.log.applied_index:
            raise ProposalRefused("another configuration change is under way")
        change = ConfigurationChange(self.configuration.index, tuple(changes), context)
        try:
            result = apply_change(self.configuration, change, self.log.last_index + 1)
        except InvalidChange as error:
            raise InvalidProposal(str(error)) from error
        if all(self._has_lost_state(voter) for voter in result.voters):
            raise ProposalRefused("every voter that would be left has lost its state and waits for a snapshot")
        return self._append_change(change)

    def _check_proposable(self) -> None:
        if self.role != LEADER:
            raise NotLeader(self.leader)
        if self.transfer_target or self._retiring:
            raise ProposalRefused("leadership is being transferred")

    def _append_change(self, change: ConfigurationChange) -> int:
        self._last_change = self._append_own([encode_change(change)], EntryKind.CONFIGURATION)
        return self._last_change

    def apply_configuration(self, entry: Entry) -> Configuration:
        """Apply a committed CONFIGURATION entry. The owner calls this when it applies the entry.

        Returns:
            The configuration now in effect; the same object as before if the change was void.
        """
        try:
            configuration = apply_change(self.configuration, decode_change(entry.data), entry.index)
        except InvalidChange:
            return self.configuration
        self.configuration = configuration
        if self.role == LEADER:
            self._lead_under_configuration(configuration)
        return configuration

    def _lead_under_configuration(self, configuration: Configuration) -> None:
        """Go on leading under a configuration that has just taken effect. Everything that a quorum decides is counted
        again before any member hears of the change: commit index, promises, confirmed reads."""
        members = configuration.members
        self.progress = {member: progress for member, progress in self.progress.items() if member in members}
        for member in sorted(members - self.progress.keys()):
            self.progress[member] = self._new_progress()
        voters = {*configuration.voters, *configuration.outgoing}
        if self.transfer_target not in voters:
            self.transfer_target = 0
        self._retiring = 0 if self.id in voters else configuration.index
        # The new quorum may already hold entries that the old one lacked.
        self._maybe_commit(self.log.last_index)
        self._count_promises()
        self._on_rounds_answered()
        self._sends_due = True

    def _leave_joint_when_due(self) -> None:
        """The leader leaves a joint configuration as soon as it is applied (thesis, section 4.3). A leader elected in
        the middle of a change finishes it in the same way."""
        configuration = self.configuration
        if not configuration.joint or not configuration.auto_leave or self.role != LEADER:
            return
        if self._last_change <= self.log.applied_index and configuration.index <= self.log.applied_index:
            self._append_change(ConfigurationChange(configuration.index))

    def _on_heartbeat_response(self, message: HeartbeatResponse) -> None:
        super()._on_heartbeat_response(message)
        self._retire_when_due()

    def _retire_when_due(self) -> None:
        """A leader that is no longer a voter of its configuration keeps leading, without counting itself, until a
        quorum knows that the configuration is committed (thesis, section 4.2.2). Then it transfers leadership. If it
        left at once, the remaining voters might still need its vote under the old configuration."""
        if not self._retiring:
            return
        known = quorum_value(self.configuration, lambda voter: self.progress[voter].known_commit)
        if known < self._retiring:
            return
        voters = self.configuration.voters
        successor = max(voters, key=self._fitness)
        self._messages.append(TimeoutNow(self.id, successor, self.term))
        self._become_follower(self.term, 0)

    def most_up_to_date_peer(self) -> int:
        """Leader: the other voter whose log is most up to date; this node itself if there is none."""
        others = [voter for voter in self.configuration.voters if voter != self.id and voter in self.progress]
        return max(others, key=self._fitness, default=self.id)

    def _has_lost_state(self, member: int) -> bool:
        if member == self.id:
            return self.needs_snapshot
        progress = self.progress.get(member)
        return progress is not None and progress.lost_state

    def _fitness(self, voter: int) -> tuple[bool, int, int]:
        """How fit a voter is to take over leadership."""
        progress = self.progress[voter]
        return not progress.lost_state, progress.match_index, -voter
