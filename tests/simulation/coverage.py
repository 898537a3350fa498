"""What occurred in a run, and what together: kinds of faults, messages, log entries and changes of state.

Two things occur together if one turn of a member has both (a message that it took in, an entry that it applied, a
change of its own state), or if one of them is a fault that was on in that turn; two faults, if both were on at one
time. Which pairs a run reached is a bitmap (``Coverage.pairs``), so that of thousands of runs the union can be had and
compared. All kinds are listed here once; what is not listed raises, so the share that was reached is of a known whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from raykeeper.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Entry,
    EntryKind,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from raykeeper.schema.commands import ByUser, ClientWrites, Command
from raykeeper.schema.operations import Operation, Range

if TYPE_CHECKING:
    from simulation.member import Member, Process

_decode = msgspec.msgpack.Decoder(Command).decode

FAULTS = (
    "alarm",
    "amnesia",
    "bit rot",
    "bridge",
    "client crash",
    "client pause",
    "clients cut",
    "clock",
    "configure",
    "crash",
    "crash in a turn",
    "failing sync",
    "flapping",
    "forget",
    "full disk",
    "hang",
    "hash",
    "isolate",
    "jump",
    "leap",
    "log rot",
    "membership",
    "one-way",
    "pause",
    "poison",
    "power loss",
    "power loss of all",
    "refused reads",
    "settings",
    "sleep",
    "slow disk",
    "split",
    "stale leader",
    "stall",
    "state loss",
    "stop",
    "storm",
    "transfer",
)
"""As ``Nemesis._begin`` names them."""

_VARIANTS = ("PreVote", "PreVoteResponse", "VoteRefused", "AppendRefused", "CommitNotice", "AppendNothing")
MESSAGES = (*(kind.__name__ for kind in get_args(Message)), *_VARIANTS)
ENTRIES = (
    "no-op",
    "configuration",
    *(kind.__name__ for kind in get_args(Command)),
    *(kind.__name__ for kind in get_args(Operation) if kind is not Range and not kind.__name__.startswith("Ask")),
)
"""Entries of the log; of a client's writes and of a user's commands also what is in them. No read is in any."""

_ROLES = {
    ("follower", "pre-candidate"): "asks for pre-votes",
    ("follower", "candidate"): "campaigns at once",
    ("pre-candidate", "candidate"): "campaigns",
    ("candidate", "leader"): "is elected",
    ("pre-candidate", "leader"): "is elected in one turn",
    ("follower", "leader"): "is elected in one turn",
    ("leader", "follower"): "steps down",
    ("candidate", "follower"): "gives a campaign up",
    ("pre-candidate", "follower"): "gives pre-votes up",
    ("candidate", "pre-candidate"): "campaigns again",
    ("leader", "pre-candidate"): "leaves the lead to campaign",
    ("leader", "candidate"): "leaves the lead to campaign",
}
CHANGES = (
    *dict.fromkeys(_ROLES.values()),
    "starts",
    "starts without its state",
    "serves as leader",
    "learns of a newer term",
    "joint configuration in effect",
    "joint configuration left",
    "becomes a voter",
    "becomes a learner",
    "is removed",
    "holds a lease for reads",
    "loses its lease for reads",
    "installs a snapshot",
    "trims its log",
    "compacts",
    "replaces entries",
)
"""What a member's state went through in a turn, or at its start."""

CLASSES = {"faults": FAULTS, "messages": MESSAGES, "entries": ENTRIES, "changes": CHANGES}
KINDS = [(class_, name) for class_, names in CLASSES.items() for name in dict.fromkeys(names)]
NUMBER = {kind: number for number, kind in enumerate(KINDS)}
_FIRST_OF = [number * (2 * len(KINDS) - number + 1) // 2 - number for number in range(len(KINDS))]
"""By the lower number of a pair: the bit of the pair is this plus the higher number."""


def pair_bit(one: int, other: int) -> int:
    """The bit of a pair of kinds by their numbers; of a kind with itself, whether it occurred at all."""
    low, high = min(one, other), max(one, other)
    return _FIRST_OF[low] + high


def all_pairs() -> Iterator[tuple[int, int]]:
    """All pairs of numbers of kinds, in the order of their bits."""
    for one in range(len(KINDS)):
        for other in range(one, len(KINDS)):
            yield one, other


class _Known:
    """What was seen of a member at the end of its last turn."""

    __slots__ = ("compacted", "learner", "lease", "role", "serves", "term", "voter")

    def __init__(self) -> None:
        self.role = "follower"
        self.term = -1
        self.serves = self.lease = self.voter = self.learner = False
        self.compacted = 0


class Coverage:
    """What one run reached."""

    def __init__(self) -> None:
        self._rows = [0] * len(KINDS)
        """By kind: a bitmap of the kinds that it occurred with."""
        self._faults = 0
        """Those that are on."""
        self._on: dict[str, int] = {}
        self._turn = 0
        """What occurred in the turn that goes on."""
        self._entries: dict[int, int] = {}
        """By index: the kinds of an entry."""
        self._members: dict[int, _Known] = {}
        self._joint: dict[int, bool] = {}

    # --- faults ------------------------------------------------------------------------------------------------------

    def fault_begins(self, name: str) -> None:
        """A fault is on."""
        bit = 1 << NUMBER["faults", name]
        self._on[name] = self._on.get(name, 0) + 1
        self._faults |= bit
        self._note(bit, self._faults)

    def fault_ends(self, name: str) -> None:
        """A fault is over."""
        self._on[name] -= 1
        if not self._on[name]:
            self._faults &= ~(1 << NUMBER["faults", name])

    def _note(self, bits: int, together: int) -> None:
        while bits:
            lowest = bits & -bits
            self._rows[lowest.bit_length() - 1] |= together
            bits ^= lowest

    # --- turns -------------------------------------------------------------------------------------------------------

    def change(self, name: str) -> None:
        """A member's state changes in the turn that goes on."""
        self._turn |= 1 << NUMBER["changes", name]

    def change_elsewhere(self, name: str) -> None:
        """The same beside all turns, by a member's other thread."""
        bit = 1 << NUMBER["changes", name]
        self._note(bit, bit | self._faults)
        self._note(self._faults, bit)

    def applied(self, entries: Sequence[Entry]) -> None:
        """Entries were applied in the turn that goes on."""
        for entry in entries:
            known = self._entries.get(entry.index)
            if known is None:
                known = self._entries[entry.index] = sum(1 << NUMBER["entries", name] for name in set(_names(entry)))
            self._turn |= known

    def started(self, member: Member, process: Process) -> None:
        """A process begins."""
        known = self._members[member.id] = _Known()
        node, state = process.replica.node, process.replica.state
        known.term, known.compacted = node.term, state.compact_revision
        known.voter = member.id in node.configuration.voters
        known.learner = member.id in node.configuration.learners
        self._joint[member.id] = node.configuration.joint
        self.change("starts without its state" if process.folder.state.lost else "starts")
        self._end_turn()

    def turned(self, member: Member, process: Process, messages: Iterable[Message]) -> None:
        """A member has done a turn: what it took in, and what has become of it."""
        for message in messages:
            self._turn |= _MESSAGE_BITS[type(message)]
            variant = _variant(message)
            if variant:
                self._turn |= 1 << NUMBER["messages", variant]
        known, node = self._members[member.id], process.replica.node
        if node.role != known.role:
            self.change(_ROLES[known.role, node.role])
            known.role = node.role
        if node.term > known.term:
            self.change("learns of a newer term")
            known.term = node.term
        serves = node.committed_in_term
        if serves and not known.serves:
            self.change("serves as leader")
        known.serves = serves
        lease = node.role == "leader" and node._holds_lease()
        if lease != known.lease:
            self.change("holds a lease for reads" if lease else "loses its lease for reads")
            known.lease = lease
        self._configuration(member, known, node)
        compacted = process.replica.state.compact_revision
        if compacted > known.compacted:
            self.change("compacts")
            known.compacted = compacted
        self._end_turn()

    def _configuration(self, member: Member, known: _Known, node: Any) -> None:
        configuration = node.configuration
        voter, learner = member.id in configuration.voters, member.id in configuration.learners
        if voter != known.voter or learner != known.learner:
            self.change("becomes a voter" if voter else "becomes a learner" if learner else "is removed")
            known.voter, known.learner = voter, learner
        if configuration.joint != self._joint[member.id]:
            self._joint[member.id] = configuration.joint
            self.change(f"joint configuration {'in effect' if configuration.joint else 'left'}")

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, 0
        if turn:
            self._note(turn, turn | self._faults)
            self._note(self._faults, turn)

    # --- the result --------------------------------------------------------------------------------------------------

    def pairs(self) -> int:
        """A bitmap of the pairs that were reached; see ``pair_bit``."""
        reached = 0
        for one, row in enumerate(self._rows):
            reached |= (row >> one) << (_FIRST_OF[one] + one)
        return reached


_MESSAGE_BITS = {kind: 1 << NUMBER["messages", kind.__name__] for kind in get_args(Message)}


def _variant(message: Message) -> str:
    if isinstance(message, RequestVote):
        return "PreVote" if message.pre_vote else ""
    if isinstance(message, RequestVoteResponse):
        return "PreVoteResponse" if message.pre_vote else "" if message.vote_granted else "VoteRefused"
    if isinstance(message, AppendEntriesResponse):
        return "" if message.success else "AppendRefused"
    if isinstance(message, AppendEntries):
        return "CommitNotice" if message.commit_only else "" if message.entries else "AppendNothing"
    return ""


def _names(entry: Entry) -> Iterator[str]:
    if entry.kind is EntryKind.CONFIGURATION:
        yield "configuration"
        return
    if not entry.data:
        yield "no-op"
        return
    command: Any = _decode(entry.data)
    yield type(command).__name__
    if isinstance(command, ByUser):
        command = command.command
        yield type(command).__name__
    if isinstance(command, ClientWrites):
        for write in command.writes:
            yield type(write.operation).__name__


# --- of many runs ----------------------------------------------------------------------------------------------------


def table(reached: int) -> list[tuple[str, str]]:
    """Rows for people: how many kinds and pairs occurred, of how many, and which kinds never did."""
    names = list(CLASSES)
    whole: dict[tuple[str, str], int] = {}
    found: dict[tuple[str, str], int] = {}
    missing: dict[str, list[str]] = {name: [] for name in names}
    for bit, (one, other) in enumerate(all_pairs()):
        occurred = reached >> bit & 1
        (first, name), (second, _) = KINDS[one], KINDS[other]
        if one == other:
            if not occurred:
                missing[first].append(name)
            continue
        whole[first, second] = whole.get((first, second), 0) + 1
        found[first, second] = found.get((first, second), 0) + occurred
    sizes = {name: len(dict.fromkeys(kinds)) for name, kinds in CLASSES.items()}
    rows = [
        (
            "kinds that occurred",
            ", ".join(f"{name} {sizes[name] - len(missing[name])} of {sizes[name]}" for name in names),
        ),
        ("pairs that occurred", f"{sum(found.values()):,} of {sum(whole.values()):,}"),
    ]
    rows += [(f"  {one} x {other}", f"{found[one, other]:,} of {whole[one, other]:,}") for one, other in whole]
    rows += [(f"  {name} never", ", ".join(kinds)) for name, kinds in missing.items() if kinds]
    return rows
