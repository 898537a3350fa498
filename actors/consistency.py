"""Comparing what the members hold: all hash it as of one index of the log, and the majority says which are right.

Every member hashes what it holds as of that index (``actors/member/hashing.py``) and keeps the hash for a while. This
module requests that, collects the hashes and compares them. Used by ``raykeeper check`` and, in the background, by the
leader.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from ..limits import CHECK_ATTEMPTS, CHECK_SILENCE_S, POLL_PAUSE_S
from ..raft.quorum import is_majority
from ..schema.answers import ContentAsked
from ..schema.commands import HashContent
from ..schema.operator_frames import ContentHash, MemberStatus
from .deadline import pause_between_checks
from .leader_call import administer, expect
from .member_access import answering, member_statuses
from .naming import member_name


def describe(compared: Comparison, member: int) -> str:
    """The message about a member whose content is odd."""
    where = f"at log index {compared.index} (revision {compared.revision})"
    if compared.certain:
        return f"its content differs from that of the majority {where}"
    return f"the members' contents differ {where}, and there is no majority that could tell which is right"


def compare_contents(cluster_name: str, cluster: int, deadline: float, *, routine: bool = False) -> Comparison:
    """Have all members hash their contents at one index of the log, and compare.

    Args:
        deadline: by ``time.monotonic``; a member that has not answered by then is ``silent``.
        routine: whether this is the comparison that a leader makes every ``check_interval``.

    Raises:
        Unavailable, RequestTimeout: no leader accepted the request.
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
    """Collect the hashes of all members as of a log index, until each has reported it or can no longer have it, or the
    deadline. A member that is silent for ``CHECK_SILENCE_S`` is not waited for."""
    found: dict[int, ContentHash] = {}
    began, heard = time.monotonic(), dict[int, float]()
    while True:
        answers = answering(member_statuses(cluster_name))
        statuses = {member: status for member, status in answers.items() if status.cluster == cluster}
        for member, status in statuses.items():
            heard[member] = time.monotonic()
            for result in status.contents:
                if result.index == index:
                    found[member] = result
        without = {member for member, status in statuses.items() if _cannot_report(status, index)}
        newest = max(statuses.values(), key=lambda status: status.applied_index, default=None)
        voters = newest.voters if newest is not None else ()
        all_members = sorted({*voters, *(newest.learners if newest is not None else ())})
        silence = time.monotonic() - CHECK_SILENCE_S
        without |= {member for member in all_members if heard.get(member, began) < silence}
        if (all_members and set(all_members) <= set(found) | without) or time.monotonic() >= deadline:
            return judge(index, found, voters, all_members)
        pause_between_checks(POLL_PAUSE_S)


def _cannot_report(status: MemberStatus, index: int) -> bool:
    """Whether a member has passed an index without a hash of it: hashes are made in the order of the log."""
    if status.why_not_serving and not status.applied_index:
        return False  # it is starting: whether it will have the hash is not known yet
    newest = status.contents[-1].index if status.contents else 0
    return index <= status.contents_begin or newest > index


def summary(compared: Comparison) -> str:
    """The result of a comparison in words, in one line."""
    if compared.odd:
        odd = ", ".join(map(member_name, compared.odd))
        return f"{odd}: {describe(compared, compared.odd[0])}"
    silent = f"; {', '.join(map(member_name, compared.silent))} did not answer" if compared.silent else ""
    return f"the contents of {len(compared.hashes)} members are equal{silent}"


class Comparison(msgspec.Struct, frozen=True):
    """The result of comparing the members' contents.

    Attributes:
        index, revision, compact_revision: what the contents were compared as of: log index, newest revision, and
            compact revision; 0 if no member has answered.
        hashes: hash of the content, in hexadecimal, by member.
        odd: members whose content is not the majority's; without a majority, all that were compared, if any differ.
        certain: whether a majority of the configuration agrees, so that it is known which members are wrong.
        silent: members that have not answered; they may be down, or too slow.
    """

    index: int
    revision: int
    compact_revision: int
    hashes: Mapping[int, str]
    odd: tuple[int, ...]
    certain: bool
    silent: tuple[int, ...]

    @property
    def equal(self) -> bool:
        """Whether all members that have answered hold the same."""
        return not self.odd


def judge(
    index: int, found: Mapping[int, ContentHash], voters: Sequence[int], all_members: Sequence[int]
) -> Comparison:
    """Compare the hashes of the members' contents at a log index.

    Args:
        voters: of the configuration; a majority of them decides which content is right.
        all_members: voters and learners.
    """
    hashes = {member: found[member].digest for member in all_members if member in found}
    counts = Counter(hashes[member] for member in voters if member in hashes)
    best, votes = counts.most_common(1)[0] if counts else ("", 0)
    certain = is_majority(votes, len(voters))
    if len(set(hashes.values())) <= 1:
        odd: tuple[int, ...] = ()
    elif certain:
        odd = tuple(member for member in hashes if hashes[member] != best)
    else:
        odd = tuple(hashes)
    one = next(iter(found.values()), ContentHash(index, 0, 0, ""))
    silent = tuple(member for member in all_members if member not in hashes)
    return Comparison(index, one.revision, one.compact_revision, hashes, odd, certain, silent)
