"""Wrong versions of lone reads, which the leader answers at once and the client confirms by a voter's term."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from raykeeper.actors.client.core.confirmed_read import ConfirmedReads, TermQuestion
from raykeeper.raft import Node
from raykeeper.schema.frames import UnconfirmedRead
from simulation.mutants.registry import mutant, patched, together


def _others(node: Any) -> tuple[int, ...]:
    return tuple(voter for voter in node.configuration.voters if voter != node.id)


@mutant("a lone read that does not wait for the voter", "lone reads")
def _does_not_wait() -> AbstractContextManager[None]:
    original = ConfirmedReads.heard_leader

    def heard_leader(reads: Any, read: Any, answer: UnconfirmedRead, now: float) -> bool:
        awaited = original(reads, read, answer, now)
        if awaited:
            reads._question.heard, reads._question.term = True, answer.term
        return awaited

    return patched(ConfirmedReads, "heard_leader", heard_leader)


@mutant("a lone read whose voter may be in any term", "lone reads")
def _any_term() -> AbstractContextManager[None]:
    return patched(
        TermQuestion, "is_confirmed", lambda question, answer: question.term > 0 and question.voter in answer.voters
    )


@mutant("a lone read that counts what a voter has said before", "lone reads")
def _said_before() -> AbstractContextManager[None]:
    original = ConfirmedReads.conclude

    def conclude(reads: Any, now: float) -> Any:
        question, said = reads._question, reads.__dict__.setdefault("said", {})
        if question is None or question.answer is None:
            return original(reads, now)
        fresh, known = question.term, said.pop(question.voter, 0)
        if known:
            question.heard, question.term = True, known
        result = original(reads, now)
        if result is not None and result[2]:
            said[question.voter] = fresh or known
        return result

    return patched(ConfirmedReads, "conclude", conclude)


def _asks_anyone() -> AbstractContextManager[None]:
    """Another member each time, so that it is not always the same one that is asked."""

    def voter(reads: Any, leader: int, now: float) -> int:
        others = [member for member in reads._router.members if member != leader]
        return others[int(now * 7) % len(others)] if leader and others else 0

    return patched(ConfirmedReads, "voter", voter)


@mutant("a lone read that one voter of five confirms", "lone reads", first_seed=170)
def _one_of_five() -> AbstractContextManager[None]:
    one = patched(Node, "confirming_voters", lambda node: _others(node) if node.committed_in_term else ())
    return together(one, _asks_anyone())
