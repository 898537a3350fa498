"""Changing the configuration, on every member when it applies the entry.

A configuration takes effect when its entry is applied, never when it is appended. What makes that safe: an entry is
handed out for applying only together with a commit index that covers it, both on disk before it is applied; the next
change is proposed only after the leader has applied the last one, so whoever holds the next one in its log also knows
that the last one is committed; and nobody campaigns while it knows of a committed one that it has not applied.
"""

from __future__ import annotations

from collections.abc import Sequence

from .configuration import InvalidChange, apply_change, decode_change, encode_change
from .confirmation import Confirmation
from .core import LEADER, InvalidProposal, NotLeader, ProposalRefused
from .messages import Change, Configuration, ConfigurationChange, Entry, EntryKind, HeartbeatResponse, TimeoutNow
from .quorum import quorum_value


class Membership(Confirmation):
    """Configuration changes."""

    def propose_change(self, changes: Sequence[Change], context: bytes = b"") -> int:
        """Propose to change the configuration in effect; no changes: to leave the joint one.

        Args:
            changes: what is to be different. If it alters more than one voter it goes through a joint configuration,
                which the leader leaves by itself.
            context: handed through in the entry, for the proposer.

        Returns:
            The index of the entry. Whether it took effect shows when it is applied.

        Raises:
            NotLeader: another node has to be asked.
            ProposalRefused: another change is under way, or this one makes no sense.
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
            raise ProposalRefused("every voter that would be left has lost its state and waits for another")
        return self._append_change(change)

    def _check_proposable(self) -> None:
        if self.role != LEADER:
            raise NotLeader(self.leader)
        if self.transfer_target or self._retiring:
            raise ProposalRefused("leadership is being handed over")

    def _append_change(self, change: ConfigurationChange) -> int:
        self._last_change = self._append_own([encode_change(change)], EntryKind.CONFIGURATION)
        return self._last_change

    def apply_configuration(self, entry: Entry) -> Configuration:
        """Apply a committed CONFIGURATION entry; for the owner to call when it applies the entry.

        Returns:
            The configuration now in effect: the same object as before if the change was void.
        """
        try:
            configuration = apply_change(self.configuration, decode_change(entry.data), entry.index)
        except InvalidChange:
            return self.configuration
        self.configuration = configuration
        if self.role == LEADER:
            self._lead_configuration(configuration)
        return configuration

    def _lead_configuration(self, configuration: Configuration) -> None:
        members = configuration.members
        self.progress = {member: progress for member, progress in self.progress.items() if member in members}
        for member in sorted(members - self.progress.keys()):
            self.progress[member] = self._new_progress()
        voters = {*configuration.voters, *configuration.outgoing}
        if self.transfer_target not in voters:
            self.transfer_target = 0
        self._retiring = 0 if self.id in voters else configuration.index
        # A smaller quorum may have what the larger one was still missing.
        self._maybe_commit(self.log.last_index)
        self._count_promises()
        self._on_rounds_answered()
        self._sends_due = True

    def _leave_joint_when_due(self) -> None:
        """The leader leaves a joint configuration as soon as it is applied (thesis, section 4.3). Whoever becomes
        leader in the middle of a change finishes it so."""
        configuration = self.configuration
        if not configuration.joint or not configuration.auto_leave or self.role != LEADER:
            return
        if self._last_change <= self.log.applied_index and configuration.index <= self.log.applied_index:
            self._append_change(ConfigurationChange(configuration.index))

    def _on_heartbeat_response(self, message: HeartbeatResponse) -> None:
        super()._on_heartbeat_response(message)
        self._retire_when_due()

    def _retire_when_due(self) -> None:
        """A leader that its configuration no longer has as a voter goes on leading, without a vote (thesis, section
        4.2.2), until a quorum knows that this is committed; then it hands over. Had it gone at once, those who stay
        might wait for its vote."""
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
        """Leader: the other voter whose log is closest to ours, this node itself if there is none."""
        others = [voter for voter in self.configuration.voters if voter != self.id and voter in self.progress]
        return max(others, key=self._fitness, default=self.id)

    def _has_lost_state(self, member: int) -> bool:
        if member == self.id:
            return self.needs_image
        progress = self.progress.get(member)
        return progress is not None and progress.wanted > 0

    def _fitness(self, voter: int) -> tuple[bool, int, int]:
        """How well a voter could take over."""
        progress = self.progress[voter]
        return not progress.wanted, progress.match_index, -voter
