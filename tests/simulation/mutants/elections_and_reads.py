"""Wrong versions of elections, of commits, and of the confirmation of reads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from raykeeper.raft import Node
from raykeeper.raft.log import Log
from raykeeper.raft.messages import AppendEntriesResponse, Entry, HardState, RequestVote, RequestVoteResponse
from raykeeper.raft.quorum import majority_value
from raykeeper.raft.ready import Ready
from raykeeper.store.log.raft_log import RaftLog
from simulation.mutants.registry import mutant, patched


@mutant("no fsync before a vote", "elections")
def _no_fsync_before_a_vote() -> AbstractContextManager[None]:
    append = RaftLog.append

    def without(log: RaftLog, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        append(log, entries, hard_state, sync=sync and bool(entries))

    return patched(RaftLog, "append", without)


@mutant("an acknowledgement before the member's own fsync", "power")
def _acknowledgement_before_fsync() -> AbstractContextManager[None]:
    original = Node.ready

    def ready(node: Node) -> Ready:
        made = original(node)
        early = [message for message in made.messages_after if isinstance(message, AppendEntriesResponse)]
        made.messages = [*made.messages, *early]
        made.messages_after = [message for message in made.messages_after if message not in early]
        return made

    return patched(Node, "ready", ready)


@mutant("an old term's entry committed by counting", "figure 8")
def _old_term_committed() -> AbstractContextManager[None]:
    def maybe_commit(node: Any, reached: int) -> None:
        if reached <= node.log.commit_index:
            return
        index = majority_value([node.progress[voter].match_index for voter in node.configuration.voters])
        if node.configuration.outgoing:
            index = min(
                index, majority_value([node.progress[voter].match_index for voter in node.configuration.outgoing])
            )
        if node.log.commit_to(index):
            node._sends_due = True

    return patched(Node, "_maybe_commit", maybe_commit)


@mutant("a follower that is sent nothing yet counts towards the quorum", "partitions")
def _waiting_counted() -> AbstractContextManager[None]:
    original = Node._waiting_followers

    def waiting(node: Any) -> Sequence[int]:
        found = original(node)
        for member in found:
            node.progress[member].match_index = node.log.last_index
        return found

    return patched(Node, "_waiting_followers", waiting)


@mutant("a follower that waits is sent nothing, even if others are silent", "partitions")
def _never_sent() -> AbstractContextManager[None]:
    return patched(Node, "send_deferred", lambda node: setattr(node, "sends_deferred", False))


@mutant("a read without confirming leadership", "partitions")
def _unconfirmed_read() -> AbstractContextManager[None]:
    return patched(Node, "_holds_lease", lambda node: True)


@mutant("a campaign with a configuration unapplied", "membership", first_seed=90)
def _campaign_unapplied() -> AbstractContextManager[None]:
    return patched(Log, "has_unapplied_configuration", lambda log, page_bytes: False)


@mutant("a pre-vote for a term in which it cannot vote", "elections")
def _late_pre_vote() -> AbstractContextManager[None]:
    original = Node._on_vote_request

    def on_vote_request(node: Any, message: RequestVote) -> None:
        if message.pre_vote and message.term < node.term:
            node._messages.append(RequestVoteResponse(node.id, message.sender, message.term, True, True))
            return
        original(node, message)

    return patched(Node, "_on_vote_request", on_vote_request)
