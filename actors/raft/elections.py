"""Leader election (paper, section 5.2) with what a cluster needs that is not left alone (thesis, 3.10, 4.2.3, 9.6).

- Pre-vote: nobody raises its term before a quorum says that it would vote for it.
- Stickiness: who hears from a leader helps nobody to depose it, whatever the term.
- Check-quorum: a leader that hears from no quorum for an election timeout steps down.
- A member that is no voter of its configuration, or knows of a committed configuration that it has not applied, does
  not campaign.
- A vote is spoken only once it is on disk, one's own included: a candidate counts itself when the write is done.
"""

from __future__ import annotations

import math

from .core import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE, NotLeader, ProposalRefused
from .membership import Membership
from .messages import RequestVote, RequestVoteResponse, TimeoutNow
from .quorum import VoteResult, vote_result


class Elections(Membership):
    """Becoming leader, ceasing to be it, and voting."""

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Time passes: one tick. Whether it is time to campaign is looked at when ``ready`` is asked for: so an owner
        may count first what had passed before a message came, and the word of a leader still puts the node at ease."""
        self._election_elapsed += 1
        if self.role == LEADER:
            self._tick_leader()
            return
        self._leader_elapsed += 1
        self._tick_reads()

    def _campaign_due(self) -> bool:
        """Whether this node has heard of no leader for its election timeout, and has promised nothing."""
        return (
            self._election_elapsed >= self._election_timeout
            and self.role != LEADER
            and not self._promise.runs(self._least)
        )

    def _time_out(self) -> None:
        self._election_elapsed = 0
        self._draw_timeout()
        self._reads.fail_all()
        self._campaign()

    def _tick_leader(self) -> None:
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
                self.transfer_target = 0  # it did not take over: go on leading
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._begin_round(periodic=True)

    # -- campaigning --------------------------------------------------------------------------------------------------

    def campaign(self) -> None:
        """Campaign now, if this node may and hears from no leader; nothing happens otherwise."""
        if not self._is_sticky():
            self._campaign()

    def leader_may_be_gone(self, member: int) -> bool:
        """There is a hint that a member has died: if it leads, count it as not heard of lately, and do not stand by it.
        Whether it was followed. With lease reads nothing happens: what was promised to a leader is kept."""
        if self.role != FOLLOWER or self.leader != member or self._promise.runs(self._least):
            return False
        self._leader_elapsed = max(self._leader_elapsed, self.config.election_ticks)
        return True

    def _may_campaign(self) -> bool:
        return (
            self.role != LEADER
            and self.is_voter
            and not self._promise.is_quiet(self._least)
            and not self.log.has_unapplied_configuration(self.config.max_apply_bytes)
        )

    def _campaign(self, *, transfer: bool = False) -> None:
        if not self._may_campaign():
            return
        if transfer:  # the leader wishes it: no pre-vote
            self._become_candidate(transfer=True)
            return
        if self._promise.runs(self._least):
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
        # A pre-vote promises nothing; a real one tells that we voted for ourselves.
        outbox = self._messages if pre_vote else self._messages_after
        term = self.term + 1 if pre_vote else self.term
        for voter in sorted({*configuration.voters, *configuration.outgoing} - {self.id}):
            outbox.append(RequestVote(self.id, voter, term, log.last_index, log.last_term, pre_vote, transfer))

    def _count_own_vote(self) -> None:
        """Our vote for ourselves is on disk."""
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
            if not self._may_campaign():  # it has just learned of a configuration that it has to apply first
                self._become_follower(self.term, 0)
            elif self.role == PRE_CANDIDATE:
                self._become_candidate()
            else:
                self._become_leader()
        elif result is VoteResult.LOST:
            self._become_follower(self.term, 0)

    def _become_leader(self) -> None:
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
        # Changes of earlier leaders may be anywhere in what is not yet applied.
        self._last_change = self._term_start
        self._count_own_append()

    # -- voting -------------------------------------------------------------------------------------------------------

    def _ignores_candidate(self, message: RequestVote) -> bool:
        """Whether a request for a vote must leave no trace, not even in the term."""
        if message.term < self.term:
            return False  # it changes nothing here, and the answer to a pre-vote tells the candidate our term
        if self._promise.is_quiet(self._least):
            return True
        if message.leadership_transfer and not message.pre_vote:
            # Its leader asked it to. A member that was removed in the meantime has no such excuse.
            configuration = self.configuration
            if message.sender in configuration.voters or message.sender in configuration.outgoing:
                return False
        return self._is_sticky()

    def _on_vote_request(self, message: RequestVote) -> None:
        if message.term != self.term:
            # A pre-vote: one in a newer term binds nobody; one in an older term asks for what this node cannot give.
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
        """What is committed is so for ever, whoever says it and in whatever term. A member that was left behind with a
        configuration in which it cannot win may learn here of the next one, in which it can."""
        if message.commit_index > self.log.commit_index and self.log.matches(message.commit_index, message.commit_term):
            self.log.commit_to(message.commit_index)

    # -- transfer -----------------------------------------------------------------------------------------------------

    def transfer_leadership(self, target: int) -> None:
        """Hand the leadership to another voter: bring it up to date, then have it campaign (thesis, section 3.10).

        No proposals are taken meanwhile. If it has not taken over within an election timeout, this node goes on.

        Raises:
            NotLeader: this node does not lead.
            ProposalRefused: the target is this node, or no voter.
        """
        if self.role != LEADER:
            raise NotLeader(self.leader)
        if target == self.id or target not in self.configuration.voters:
            raise ProposalRefused(f"member {target} cannot take over")
        if self.progress[target].wanted:
            raise ProposalRefused(f"member {target} cannot take over: it has lost its state and waits for another")
        if target == self.transfer_target:
            return
        self.transfer_target = target
        self._transfer_elapsed = 0
        # For the rest of the term: a TimeoutNow may arrive long after the transfer was given up.
        self._lease_dropped = True
        if self.progress[target].match_index == self.log.last_index:
            self._messages.append(TimeoutNow(self.id, target, self.term))

    def hand_over(self) -> bool:
        """Leader without a state: hand over to a voter that has answered a heartbeat and has one, if there is any;
        whether there is."""
        if self.role != LEADER or not self.needs_image or self.transfer_target:
            return False
        able = [voter for voter in self.configuration.voters if voter != self.id and self._is_able(voter)]
        if not able:
            return False
        self.transfer_leadership(max(able, key=self._fitness))
        return True

    def _is_able(self, voter: int) -> bool:
        progress = self.progress.get(voter)
        return progress is not None and progress.acked_round > 0 and not progress.wanted

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        if message.sender == self.leader and self.role == FOLLOWER:
            self._campaign(transfer=True)
