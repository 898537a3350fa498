"""Leader election (paper, section 5.2), and the rules that keep it stable (thesis, 3.10, 4.2.3, 6.2, 9.6).

- Pre-vote: a member raises its term only after a quorum has said that it would vote for it.
- Stickiness: a member that hears from a leader does not help to depose it, whatever the term.
- Check-quorum: a leader that hears from no quorum for an election timeout steps down.
- A member does not campaign if it is not a voter of its configuration, or if it knows of a committed configuration that
  it has not applied.
- A vote is sent only after it is on disk. A candidate counts its own vote once that write is done.
"""

from __future__ import annotations

import math

from .core import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE, NotLeader, ProposalRefused
from .messages import RequestVote, RequestVoteResponse, TimeoutNow
from .quorum import VoteResult, vote_result
from .reconfiguration import Reconfiguration


class Elections(Reconfiguration):
    """Campaigning, voting, and giving up leadership."""

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One tick has passed. Whether to campaign is decided in ``ready``. So an owner may count the ticks that passed
        before a message arrived first, and a leader's message still prevents the campaign."""
        self._election_elapsed += 1
        if self.role == LEADER:
            self._tick_leader()
            return
        self._leader_elapsed += 1
        self._tick_reads()

    def _campaign_due(self) -> bool:
        """Whether this node has heard from no leader for its election timeout, and no promise to one runs."""
        return (
            self._election_elapsed >= self._election_timeout
            and self.role != LEADER
            and not self._promise.holds(self._earliest)
        )

    def _time_out(self) -> None:
        self._election_elapsed = 0
        self._draw_timeout()
        self._reads.fail_all()
        self._campaign()

    def _tick_leader(self) -> None:
        """Check-quorum first: a leader that a quorum no longer hears steps down before it sends another heartbeat."""
        if self._election_elapsed >= self.config.election_ticks:
            self._election_elapsed = 0
            if not self._is_quorum_active():
                self._become_follower(self.term, 0)
                return
            for progress in self.progress.values():
                progress.recent_active = False
        if self.transfer_target:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= self.config.election_ticks:
                self.transfer_target = 0  # it did not take over: keep leading
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._start_round(periodic=True)

    # -- campaigning --------------------------------------------------------------------------------------------------

    def campaign(self) -> None:
        """Campaign now, if this node may campaign and hears from no leader. No effect otherwise."""
        if not self._is_sticky():
            self._campaign()

    def suspect_leader(self, member: int) -> bool:
        """There is a sign that a member has died. If this node follows it, treat it as not heard from lately. Returns
        whether that was so. A promise to the leader that still runs is kept: then nothing happens."""
        if self.role != FOLLOWER or self.leader != member or self._promise.holds(self._earliest):
            return False
        self._leader_elapsed = max(self._leader_elapsed, self.config.election_ticks)
        return True

    def _may_campaign(self) -> bool:
        return (
            self.role != LEADER
            and self.is_voter
            and not self._promise.holds_from_earlier_run(self._earliest)
            and not self.log.has_unapplied_configuration(self.config.max_apply_bytes)
        )

    def _campaign(self, *, transfer: bool = False) -> None:
        """Ask for pre-votes, or for votes at once if the leader has asked this node to take over: then the others are
        told so, and neither stickiness nor a promise to that leader stands in the way."""
        if not self._may_campaign():
            return
        self.taking_over = transfer
        if transfer:
            self._become_candidate(transfer=True)
            return
        if self._promise.holds(self._earliest):
            return
        self._become_follower(self.term, 0)
        self.role = PRE_CANDIDATE
        self._votes[self.id] = True
        self._request_votes(pre_vote=True)
        self._count_votes()

    def _become_candidate(self, *, transfer: bool = False) -> None:
        self._become_follower(self.term + 1, 0)
        self.role = CANDIDATE
        self.vote = self.id
        self._request_votes(transfer=transfer)

    def _request_votes(self, *, pre_vote: bool = False, transfer: bool = False) -> None:
        configuration, log = self.configuration, self.log
        # A request for a pre-vote depends on no write; one for a vote says that this node has voted for itself.
        outbox = self._messages if pre_vote else self._messages_after
        term = self.term + 1 if pre_vote else self.term
        for voter in sorted({*configuration.voters, *configuration.outgoing} - {self.id}):
            outbox.append(RequestVote(self.id, voter, term, log.last_index, log.last_term, pre_vote, transfer))

    def _count_own_vote(self) -> None:
        """Count this candidate's own vote once it is on disk."""
        if self.role == CANDIDATE and self.id not in self._votes and self._saved.term == self.term:
            self._votes[self.id] = True
            self._count_votes()

    def _on_vote_response(self, message: RequestVoteResponse) -> None:
        if message.pre_vote:
            expected = self.term + 1 if message.vote_granted else self.term
            if self.role != PRE_CANDIDATE or message.term != expected:
                return
        elif self.role != CANDIDATE:
            return
        self._votes.setdefault(message.sender, message.vote_granted)
        self._count_votes()

    def _count_votes(self) -> None:
        result = vote_result(self.configuration, self._votes)
        if result is VoteResult.WON:
            if not self._may_campaign():  # a vote has told it of a configuration that it must apply first
                self._become_follower(self.term, 0)
            elif self.role == PRE_CANDIDATE:
                self._become_candidate()
            else:
                self._become_leader()
        elif result is VoteResult.LOST:
            self._become_follower(self.term, 0)

    def _become_leader(self) -> None:
        """Start a term as leader. Nothing of earlier terms counts: all progress, rounds and promises begin empty. The
        no-op lets this leader commit, and so learn everything that is committed (paper, section 8)."""
        self.role = LEADER
        self.leader = self.id
        self.transfer_target = 0
        self._election_elapsed = self._heartbeat_elapsed = 0
        self._votes = {}
        self.progress = {member: self._new_progress() for member in sorted(self.configuration.members)}
        self._round = 0
        self._rounds.clear()
        self._lease_until, self._lease_dropped = -math.inf, False
        self._count_promises()
        self._term_start = self._append_own([b""])
        # Changes by earlier leaders may be anywhere among the unapplied entries.
        self._last_change = self._term_start
        self._count_own_append()

    # -- voting -------------------------------------------------------------------------------------------------------

    def _ignores_candidate(self, message: RequestVote) -> bool:
        """Whether a request for a vote must be ignored entirely, without even entering its term."""
        if message.term < self.term:
            return False  # it changes nothing here, and the answer to a pre-vote tells the candidate the newer term
        if self._promise.holds_from_earlier_run(self._earliest):
            return True
        if message.leadership_transfer and not message.pre_vote:
            # The leader asked for this campaign. A member that has been removed since is ignored all the same.
            configuration = self.configuration
            if message.sender in configuration.voters or message.sender in configuration.outgoing:
                return False
        return self._is_sticky()

    def _on_vote_request(self, message: RequestVote) -> None:
        """Grant or refuse a vote (paper, 5.2 and 5.4.1): at most one candidate a term, and only one whose log is at
        least as up to date as this one. A granted vote leaves after the write (``_messages_after``); a pre-vote
        promises nothing and leaves at once."""
        if message.term != self.term:
            # A pre-vote. For a newer term no vote has been given; in an older term this node cannot vote any more.
            free = message.term > self.term
        else:
            free = self.vote == message.sender or (self.vote == 0 and self.leader == 0)
        log, sender, pre_vote = self.log, message.sender, message.pre_vote
        if not free or not log.is_up_to_date(message.last_log_index, message.last_log_term):
            commit = log.commit_index
            self._messages_after.append(
                RequestVoteResponse(self.id, sender, self.term, False, pre_vote, commit, log.term(commit))
            )
        elif pre_vote:
            self._messages.append(RequestVoteResponse(self.id, sender, message.term, True, True))
        else:
            self.vote = sender
            self._election_elapsed = 0
            self._messages_after.append(RequestVoteResponse(self.id, sender, self.term, True))

    def _learn_commit(self, message: RequestVoteResponse) -> None:
        """Commit an entry that a voter knows to be committed. A committed entry stays committed, whatever the term of
        the message. A member whose old configuration does not let it win may learn here of the next one, in which it
        can."""
        if message.commit_index > self.log.commit_index and self.log.matches(message.commit_index, message.commit_term):
            self.log.commit_to(message.commit_index)

    # -- transfer -----------------------------------------------------------------------------------------------------

    def transfer_leadership(self, target: int) -> None:
        """Transfer leadership to another voter: bring it up to date, then have it campaign (thesis, section 3.10).

        Proposals are refused meanwhile. If the target has not taken over within an election timeout, this node keeps
        leading.

        Raises:
            NotLeader: this node does not lead.
            ProposalRefused: the target is this node, is not a voter, or has lost its state.
        """
        if self.role != LEADER:
            raise NotLeader(self.leader)
        if target == self.id or target not in self.configuration.voters:
            raise ProposalRefused(f"member {target} cannot take over")
        if self.progress[target].lost_state:
            raise ProposalRefused(f"member {target} cannot take over: it has lost its state and waits for a snapshot")
        if target == self.transfer_target:
            return
        self.transfer_target = target
        self._transfer_elapsed = 0
        # For the rest of the term: the TimeoutNow may arrive long after this node has given up the transfer.
        self._lease_dropped = True
        if self.progress[target].match_index == self.log.last_index:
            self._messages.append(TimeoutNow(self.id, target, self.term))

    def hand_over(self) -> bool:
        """A leader that has lost its state transfers leadership to a voter that has one and has answered a heartbeat.
        Returns whether there was such a voter."""
        if self.role != LEADER or not self.needs_snapshot or self.transfer_target:
            return False
        candidates = [voter for voter in self.configuration.voters if voter != self.id and self._can_take_over(voter)]
        if not candidates:
            return False
        self.transfer_leadership(max(candidates, key=self._fitness))
        return True

    def _can_take_over(self, voter: int) -> bool:
        progress = self.progress.get(voter)
        return progress is not None and progress.acked_round > 0 and not progress.lost_state

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        if message.sender == self.leader and self.role == FOLLOWER:
            self._campaign(transfer=True)
