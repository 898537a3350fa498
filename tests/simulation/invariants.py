"""The invariants of the design, held against the running cluster after every turn of every member.

The observer sits outside the cluster and sees all members at once, and what their disks would still hold if the power
went now. Raft's five (paper, figure 3): Election Safety, Leader Append-Only, Log Matching, Leader Completeness, State
Machine Safety. Ours: a promise is on disk before it is spoken; what is committed is on the disks of a quorum; nobody
campaigns with a committed configuration unapplied, and none takes effect above the commit index on disk; commit and
applied index and revision only grow; equal entries give equal answers, and equal applied indexes equal content. With
lease reads: no member is elected while another holds a lease, or would hold it by its own clock.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from raykeeper.errors import DataCorrupted
from raykeeper.raft.messages import (
    AppendEntriesResponse,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    HeartbeatResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from raykeeper.schema.commands import Command
from raykeeper.store.log.raft_log import RaftLog
from raykeeper.store.state.machine import State
from simulation.checker import Violation
from simulation.durable_log import DurableLog
from simulation.member import FOLDER

if TYPE_CHECKING:
    from simulation.member import Member, Process
    from simulation.world import World

_decode_command = msgspec.msgpack.Decoder(Command).decode


class _Life:
    """What the observer remembers of one process."""

    def __init__(self) -> None:
        self.commit = 0
        self.applied = 0
        self.revision = 0
        self.term = 0
        self.leading = 0
        """The term that it led at the end of its last turn, 0 for none."""
        self.configuration = Configuration()


class Observer:
    """Watches one world. ``watching`` must be entered while the world runs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.current: Member | None = None
        """The member whose turn it is."""
        self.leaders: dict[int, int] = {}
        self.elected_at = 0.0
        """When the newest leader was."""
        self.commit = 0
        self.entries: dict[tuple[int, int], tuple[Entry, int]] = {}
        """By index and term: the entry, and the term of the one before it."""
        self.applied: dict[int, tuple[Entry, Any]] = {}
        """By index: the entry that was applied, and what it answered."""
        self.votes: dict[tuple[int, int], int] = {}
        self.hashes: dict[int, tuple[str, int]] = {}
        self.told: dict[int, tuple[str, int]] = {}
        """By index of a HashContent: what a member has told of its content."""
        self.snapshots = 0
        self.trims = 0
        self.digest = 0
        self.leases = 0
        """Turns at whose end a leader held its lease."""
        self.checks = 0
        """Comparisons of content hashes that were made."""
        self._lives: dict[int, _Life] = {}
        self._logs: dict[int, DurableLog] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See every append, trim and application as it happens."""
        append, apply, trim, reset = RaftLog.append, State.apply_some, RaftLog.trim, RaftLog.reset
        observer = self

        def watched_append(log: RaftLog, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool) -> None:
            observer.appending(log, entries)
            append(log, entries, hard_state, sync=sync)

        def watched_apply(
            state: State,
            entries: Sequence[Entry],
            configurations: Mapping[int, Configuration] | None = None,
            known: Mapping[int, Command] | None = None,
        ) -> Any:
            for entry in entries:  # what a member decodes once must be what all others decode from the log
                assert entry.index not in (known or {}) or _decode_command(entry.data) == (known or {})[entry.index]
            answers = apply(state, entries, configurations, known)
            observer.applying(entries[: len(answers)], answers)
            return answers

        def watched_trim(log: RaftLog, index: int, configuration: Configuration | None = None) -> None:
            observer.trims += 1
            observer.changed("trims its log")
            trim(log, index, configuration)

        def watched_reset(log: RaftLog, index: int, term: int, configuration: Configuration | None = None) -> None:
            observer.snapshots += 1
            observer.changed("installs a snapshot")
            reset(log, index, term, configuration)

        RaftLog.append, State.apply_some = watched_append, watched_apply  # type: ignore[method-assign,assignment]
        RaftLog.trim, RaftLog.reset = watched_trim, watched_reset  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            RaftLog.append, State.apply_some = append, apply  # type: ignore[method-assign]
            RaftLog.trim, RaftLog.reset = trim, reset  # type: ignore[method-assign]

    def changed(self, what: str) -> None:
        """Something has become of a member, mostly of the one whose turn it is."""
        coverage = self.world.coverage
        (coverage.change_elsewhere if self.current is None else coverage.change)(what)

    # --- lives -------------------------------------------------------------------------------------------------------

    def started(self, member: Member, process: Process) -> None:
        """A process begins over what its disk holds."""
        self._lives[member.id] = _Life()
        self.world.coverage.started(member, process)

    def ended(self, member: Member, process: Process) -> None:
        """A process has ended."""
        self._lives.pop(member.id, None)

    # --- what is spoken ----------------------------------------------------------------------------------------------

    def spoken(self, member: Member, process: Process, messages: Sequence[Message]) -> None:
        """A promise is on disk before it is spoken."""
        synced: DurableLog | None = None
        for message in messages:
            kind = type(message)
            if kind is AppendEntriesResponse:
                if message.success:
                    synced = synced or self.synced(member)
                    if synced.hard_state.term <= message.term and not synced.holds(message.index):
                        self._break(f"{member!r} acknowledges entry {message.index} that is not on its disk: {message}")
            elif kind is RequestVoteResponse:
                if message.vote_granted and message.pre_vote and message.term < self._lives[member.id].term:
                    self._break(f"{member!r} grants a pre-vote for a term in which it cannot vote: {message}")
                if message.vote_granted and not message.pre_vote:
                    synced = synced or self.synced(member)
                    self._vote(member, synced, message.term, message.to, message)
            elif kind is HeartbeatResponse:
                promise = process.replica.node._promise.length
                if promise:
                    synced = synced or self.synced(member)
                    if synced.hard_state.promise < promise:
                        self._break(f"{member!r} promises {promise} s, which is not on its disk: {message}")
            elif kind is RequestVote:
                self._campaigning(member, process)
                if not message.pre_vote:
                    synced = synced or self.synced(member)
                    self._vote(member, synced, message.term, member.id, message)

    def synced(self, member: Member) -> DurableLog:
        """What would be left of a member's Raft log if the power went now."""
        log = self._logs.setdefault(member.id, DurableLog(member.disk, f"{FOLDER}/log"))
        log.refresh()
        return log

    def _vote(self, member: Member, synced: DurableLog, term: int, candidate: int, message: Message) -> None:
        hard = synced.hard_state
        if hard.term < term or (hard.term == term and hard.vote != candidate):
            self._break(f"{member!r} speaks of a vote that is not on its disk ({hard}): {message}")
        if self.votes.setdefault((member.id, term), candidate) != candidate:
            self._break(f"{member!r} votes for {self.votes[member.id, term]} and {candidate} in term {term}")

    def _campaigning(self, member: Member, process: Process) -> None:
        node, log = process.replica.node, process.folder.log
        for index in range(
            max(node.applied_index + 1, log.first_index()), min(node.commit_index, log.last_index()) + 1
        ):
            if log.entries(index, index + 1, 1)[0].kind is EntryKind.CONFIGURATION:
                self._break(f"{member!r} campaigns with the committed configuration of entry {index} unapplied")

    # --- what is written ---------------------------------------------------------------------------------------------

    def appending(self, log: RaftLog, entries: Sequence[Entry]) -> None:
        """Log Matching, by induction over what is appended; and Leader Append-Only."""
        if not entries:
            return
        member = self.current
        life = self._lives.get(member.id) if member is not None else None
        if member is not None and life is not None and member.process is not None:
            node = member.process.replica.node
            leads_on = life.leading and life.leading == node.term and node.role == "leader"
            if leads_on and entries[0].index != log.last_index() + 1:
                self._break(f"the leader {member!r} replaces its own entry {entries[0].index}")
        if entries[0].index <= log.last_index():
            self.changed("replaces entries")
        before = log.term(entries[0].index - 1)
        for entry in entries:
            there, term = self.entries.setdefault((entry.index, entry.term), (entry, before))
            if there is not entry and there != entry:
                self._break(f"two entries {entry.index} of term {entry.term}: {there} and {entry}")
            if term != before:
                self._break(f"entry {entry.index} of term {entry.term} follows terms {term} and {before}")
            before = entry.term

    def applying(self, entries: Sequence[Entry], answers: Sequence[Any]) -> None:
        """State Machine Safety: the same entries everywhere, with the same answers."""
        self.world.coverage.applied(entries)
        for entry, answer in zip(entries, answers, strict=True):
            self.world.chronicle.take_in(entry, answer)
            there, known = self.applied.setdefault(entry.index, (entry, answer))
            if there is not entry and there != entry:
                self._break(f"entry {entry.index} was applied as {there} and as {entry}")
            if known is not answer and known != answer:
                self._break(f"entry {entry.index} answered {known} and now {answer}: {entry}")
            if entry.kind is EntryKind.CONFIGURATION and self.current is not None:
                commit = self.synced(self.current).hard_state.commit
                if commit < entry.index:
                    self._break(f"configuration {entry.index} takes effect above the commit index on disk, {commit}")

    # --- after every turn --------------------------------------------------------------------------------------------

    def turned(self, member: Member, process: Process, messages: Sequence[Message]) -> None:
        """A member has done a turn."""
        life = self._lives[member.id]
        node, state = process.replica.node, process.replica.state
        term, commit, applied, revision = node.term, node.commit_index, state.applied_index, state.revision
        if commit < life.commit or applied < life.applied or revision < life.revision or term < life.term:
            self._break(
                f"{member!r} goes back: commit {life.commit} to {commit}, applied {life.applied} to {applied}, "
                f"revision {life.revision} to {revision}, term {life.term} to {term}"
            )
        if applied > commit:
            self._break(f"{member!r} applied {applied}, though only {commit} is committed")
        leads = node.role == "leader"
        if leads:
            if self.leaders.setdefault(term, member.id) != member.id:
                self._break(f"two leaders in term {term}: m{self.leaders[term]} and {member!r}")
            if life.leading != term:
                self.elected_at = self.world.now
                self.world.trace(f"{member!r} leads in term {term}")
                self._complete(member, process, term)
                self._no_lease_left(member, term)
            self._no_lease_beside(member, process, term)
            if process.replica.duties.term:
                self.world.ages.leads(term)
            if commit > self.commit:
                self._on_quorum(member, process, commit, life.configuration)
        life.leading = term if leads else 0
        life.commit, life.applied, life.revision, life.term = commit, applied, revision, term
        life.configuration = node.configuration
        self.commit = max(self.commit, commit)
        mark = f"{self.world.now:.9f} {member.id} {term} {commit} {applied} {revision} {len(messages)}"
        self.digest = zlib.crc32(mark.encode(), self.digest)
        self.world.coverage.turned(member, process, messages)

    def _no_lease_beside(self, member: Member, process: Process, term: int) -> None:
        """A member that holds a lease now has no successor."""
        if process.replica.node._holds_lease():
            self.leases += 1
            newer = max(self.leaders, default=term)
            if newer > term:
                self._break(f"{member!r} holds its lease of term {term}, and m{self.leaders[newer]} leads in {newer}")

    def _no_lease_left(self, winner: Member, term: int) -> None:
        """At an election no other member holds a lease by its own clock."""
        for other in self.world.members.values():
            process = other.process
            if process is None or other is winner or process.replica.node.role != "leader":
                continue
            node, clock = process.replica.node, copy.copy(process.clock)
            left = node._lease_until - clock.readings()[1]
            if left > 0 and not node._lease_dropped and node.term < term:
                self._break(f"{winner!r} leads in term {term}; {other!r} holds its lease of {node.term} for {left:.4f}")

    def _complete(self, member: Member, process: Process, term: int) -> None:
        """Leader Completeness: a leader's log holds everything committed in earlier terms."""
        log = process.folder.log
        for index, (entry, _) in self.applied.items():
            if entry.term >= term or index < log.first_index():
                continue
            if index > log.last_index() or log.term(index) != entry.term:
                self._break(f"{member!r} leads in term {term} without the committed entry {index} of term {entry.term}")

    def _on_quorum(self, member: Member, process: Process, commit: int, before: Configuration) -> None:
        """What a leader takes for committed is on the disks of a quorum (of the configuration before or after)."""
        log = process.folder.log
        if commit < log.first_index():
            return
        term = log.term(commit)
        if term != process.replica.node.term:
            self._break(f"{member!r} commits entry {commit} of the old term {term} by counting (paper, 5.4.2)")
        holding = {other.id for other in self.world.members.values() if self.synced(other).holds(commit, term)}
        for configuration in (process.replica.node.configuration, before):
            halves = [configuration.voters] + ([configuration.outgoing] if configuration.outgoing else [])
            if configuration.voters and all(2 * len(holding.intersection(half)) > len(half) for half in halves):
                return
        self._break(
            f"{member!r} commits entry {commit} of term {term}, which only {sorted(holding)} have on disk: {before}"
        )

    def compare_content(self) -> None:
        """At equal applied index the logical content hashes equal on every member, also as the members hash it."""
        for member in self.world.members.values():
            for result in member.process.replica.hashing.results if member.process is not None else ():
                digest, other = self.told.setdefault(result.index, (result.digest, member.id))
                if digest != result.digest:
                    self._break(f"at index {result.index} {member!r} has hashed something else than m{other}")
        now: dict[int, list[Member]] = {}
        for member in self.world.members.values():
            if member.process is not None and member.process.replica.state.applied_index:
                now.setdefault(member.process.replica.state.applied_index, []).append(member)
        for applied, members in now.items():
            if len(members) > 1 or applied in self.hashes:
                for member in members:
                    assert member.process is not None
                    try:
                        content = member.process.replica.state.content_hash()
                    except DataCorrupted:
                        continue  # its next turn finds that out
                    known, other = self.hashes.setdefault(applied, (content, member.id))
                    self.checks += 1
                    if known != content:
                        self._break(f"at applied index {applied} the content of {member!r} is not that of m{other}")

    def _break(self, what: str) -> None:
        raise Violation(f"at {self.world.now:.4f} s: {what}")
