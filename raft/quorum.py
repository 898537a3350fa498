"""Majorities: what a configuration as a whole has decided.

A plain configuration decides by a majority of its voters. A joint one needs majorities of both the incoming and the
outgoing voters (thesis, section 4.3). Learners never count. These are pure functions of a configuration and of a value
for each member; they do not know what is being decided.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Iterable, Mapping
from typing import TypeVar

from .messages import Configuration

_Number = TypeVar("_Number", int, float)


class VoteResult(enum.Enum):
    """The state of an election."""

    PENDING = 0
    WON = 1
    LOST = 2


def is_majority(part: int, whole: int) -> bool:
    """Whether this many are more than half of them all."""
    return 2 * part > whole


def majority_value(values: Iterable[_Number]) -> _Number:
    """The highest value that a majority of the given ones has reached; 0 for no values at all."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0


def quorum_value(configuration: Configuration, value_of: Callable[[int], _Number]) -> _Number:
    """The highest value that a quorum has reached, such as the log index that may be committed."""
    value = majority_value(map(value_of, configuration.voters))
    if configuration.outgoing:
        value = min(value, majority_value(map(value_of, configuration.outgoing)))
    return value


def has_quorum(configuration: Configuration, members: Container[int]) -> bool:
    """Whether these members are a quorum. Without voters there is none."""
    return bool(configuration.voters) and quorum_value(configuration, lambda member: int(member in members)) == 1


def vote_result(configuration: Configuration, votes: Mapping[int, bool]) -> VoteResult:
    """The outcome of an election in which these votes have come in. Only the votes of voters count."""
    if not configuration.voters:
        return VoteResult.LOST
    result = _vote_result(configuration.voters, votes)
    if configuration.outgoing:
        other = _vote_result(configuration.outgoing, votes)
        if VoteResult.LOST in (result, other):
            return VoteResult.LOST
        if VoteResult.PENDING in (result, other):
            return VoteResult.PENDING
    return result


def _vote_result(voters: tuple[int, ...], votes: Mapping[int, bool]) -> VoteResult:
    granted = sum(votes.get(voter, False) for voter in voters)
    if is_majority(granted, len(voters)):
        return VoteResult.WON
    missing = sum(voter not in votes for voter in voters)
    return VoteResult.PENDING if is_majority(granted + missing, len(voters)) else VoteResult.LOST
