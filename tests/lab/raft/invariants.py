"""Raft's five safety properties (paper, figure 3) as a check to run on live nodes after every step.

``Invariants`` watches any number of nodes from outside and remembers what it has seen, so that each look costs about as
much as what is new since the last one. It reads the nodes only; it is for tests and for the simulator.
"""

from __future__ import annotations

import hashlib

from raykeeper.raft.core import LEADER
from raykeeper.raft.log import EntryCompacted
from raykeeper.raft.messages import Entry
from raykeeper.raft.node import Node

_PAGE_BYTES = 1 << 30


class Violation(AssertionError):
    """A property that Raft guarantees does not hold. The message names it."""


def _require(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise Violation(f"{name}: {what}")


def _content(entry: Entry) -> bytes:
    return hashlib.blake2b(entry.data, digest_size=16, salt=bytes([entry.kind])).digest()


class _Seen:
    """What was last seen of one node object."""

    __slots__ = ("commit_index", "last_index", "leading_term", "node", "term", "terms", "vote")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.term = 0
        self.vote = 0
        self.commit_index = 0
        self.last_index = 0
        self.leading_term = 0
        self.terms: dict[int, int] = {}
        """Index to term, of the entries seen in its log; entries after ``last_index`` are stale."""


class Invariants:
    """Remembers what a set of nodes has shown, and raises ``Violation`` when something can not be."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._leaders: dict[int, int] = {}
        self._entries: dict[tuple[int, int], tuple[int, bytes]] = {}
        """(index, term) to (term of the entry before, content)."""
        self._committed: dict[int, tuple[int, bytes]] = {}
        """Index to (term, content), as first committed anywhere."""
        self._commit_index = 0
        self._commit_term = 0
        """Highest term in which a commit was seen: leaders of later terms must have it all."""

    def check(self, *nodes: Node) -> None:
        """Look at nodes: at each one that has changed since the last look.

        A restarted node is a new object, and is looked at afresh.

        Raises:
            Violation: one of the five properties is broken.
        """
        for node in nodes:
            seen = self._seen.get(node.id)
            if seen is None or seen.node is not node:
                seen = self._seen[node.id] = _Seen(node)
            self._check_terms(node, seen)
            self._check_leader(node, seen)
            self._check_log(node, seen)
            self._check_committed(node, seen)

    def _check_terms(self, node: Node, seen: _Seen) -> None:
        _require(node.term >= seen.term, "Terms", f"member {node.id} went from term {seen.term} back to {node.term}")
        if node.term == seen.term and seen.vote:
            _require(node.vote == seen.vote, "Votes", f"member {node.id} changed its vote in term {node.term}")
        seen.term, seen.vote = node.term, node.vote
        applied, commit, last = node.applied_index, node.commit_index, node.last_index
        _require(
            applied <= commit <= last, "Order", f"member {node.id}: applied {applied}, commit {commit}, last {last}"
        )
        _require(commit >= seen.commit_index, "Commit", f"member {node.id}: commit index fell to {commit}")

    def _check_leader(self, node: Node, seen: _Seen) -> None:
        if node.role != LEADER:
            seen.leading_term = 0
            return
        other = self._leaders.setdefault(node.term, node.id)
        _require(other == node.id, "Election Safety", f"members {other} and {node.id} both lead in term {node.term}")
        if seen.leading_term == node.term:
            _require(
                node.last_index >= seen.last_index
                and self._term(node, seen.last_index) in (None, seen.terms.get(seen.last_index)),
                "Leader Append-Only",
                f"leader {node.id} of term {node.term} removed or replaced entry {seen.last_index}",
            )
            return
        seen.leading_term = node.term
        # By Log Matching the newest committed entry stands for all before it.
        if self._commit_index and node.term > self._commit_term:
            expected = self._committed[self._commit_index][0]
            held = self._term(node, self._commit_index) if node.last_index >= self._commit_index else -1
            _require(
                held in (None, expected),
                "Leader Completeness",
                f"leader {node.id} of term {node.term} lacks committed entry {self._commit_index} of term {expected}",
            )

    def _check_log(self, node: Node, seen: _Seen) -> None:
        """Log Matching, by induction: an index and a term determine the entry and the term of the one before it."""
        log = node.log
        first = log.storage.first_index()
        low = min(log.last_index, seen.last_index)
        while low >= first and seen.terms.get(low) != log.term(low):
            low -= 1
        low = max(low + 1, first)
        if low <= log.last_index:
            previous = log.term(low - 1)
            for entry in log.entries(low, log.last_index + 1, _PAGE_BYTES):
                _require(entry.index == low, "Log Matching", f"member {node.id} holds {entry.index} in place of {low}")
                _require(entry.term >= previous, "Log Matching", f"member {node.id}: the term falls at {entry.index}")
                known = (previous, _content(entry))
                first_seen = self._entries.setdefault((entry.index, entry.term), known)
                _require(
                    first_seen == known,
                    "Log Matching",
                    f"member {node.id} has another entry {entry.index} of term {entry.term} than was seen elsewhere",
                )
                seen.terms[entry.index] = previous = entry.term
                low += 1
        seen.last_index = log.last_index

    def _check_committed(self, node: Node, seen: _Seen) -> None:
        """State Machine Safety: at each index all nodes commit, and so apply, the same entry."""
        commit, first = node.commit_index, node.log.storage.first_index()
        low = max(seen.commit_index + 1, first)
        if low <= commit:
            for entry in node.log.entries(low, commit + 1, _PAGE_BYTES):
                known = (entry.term, _content(entry))
                committed = self._committed.setdefault(entry.index, known)
                _require(
                    committed == known,
                    "State Machine Safety",
                    f"member {node.id} commits another entry {entry.index} than was committed elsewhere",
                )
        elif commit == first - 1 and commit in self._committed:  # from a snapshot
            _require(
                node.log.term(commit) == self._committed[commit][0],
                "State Machine Safety",
                f"member {node.id} has a snapshot of {commit} that ends in another term than was committed",
            )
        seen.commit_index = commit
        if commit > self._commit_index and commit in self._committed:
            self._commit_index = commit
            self._commit_term = node.term

    @staticmethod
    def _term(node: Node, index: int) -> int | None:
        """Term of an entry; ``None`` if it was trimmed, and so is committed."""
        try:
            return node.log.term(index)
        except EntryCompacted:
            return None
